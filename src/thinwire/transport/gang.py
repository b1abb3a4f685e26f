"""A process group that a restarted gang can make again in the store of the one before."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from thinwire.errors import TransportError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

GLANCE = 0.05
"""Seconds between two looks into the store."""


def init_process_group(backend: str = "gloo", timeout: timedelta = timedelta(minutes=30)) -> None:
    """Makes the default process group of the workers that `torchrun` started just now.

    As `torch.distributed.init_process_group`, for `torchrun --max-restarts`: of torch 2.13 the
    restarted workers share the store of the life before and may find its addresses there, where
    nobody listens any more. These here first agree on a name that is new.

    Args:
        backend: of the group.
        timeout: how long any wait of the group may last; a stopped peer is noticed no sooner.

    Raises:
        TransportError: not all workers came.
    """
    # Not every build of torch has these.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, N = next(rendezvous("env://", timeout=timeout))
    name = meet(store, rank, N, os.urandom(8).hex(), timeout)
    dist.init_process_group(
        backend,
        store=PrefixStore(f"thinwire/{name}", store),
        rank=rank,
        world_size=N,
        timeout=timeout,
    )


def meet(store: Store, rank: int, N: int, own: str, timeout: timedelta) -> str:
    """Returns a name that exactly the workers of this life agree on, whatever the store holds.

    Rank 0 invites under a name of its own; each other answers with its own name, and knows by
    hearing that name again that it was not the invitation of a rank 0 that is gone.

    Args:
        store: that all share, perhaps with dead ones' keys.
        rank: this worker.
        N: workers in all.
        own: a name that nobody had before.
        timeout: for all to come.

    Raises:
        TransportError: not all came.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    if rank == 0:
        store.set("thinwire/invitation", own)
        for other in range(1, N):
            answer = f"thinwire/{own}/answer/{other}"
            _wait(store, answer, deadline, f"rank {other}")
            store.set(f"thinwire/{own}/welcome/{store.get(answer).decode()}", "")
        return own
    while True:
        _wait(store, "thinwire/invitation", deadline, "rank 0")
        name: str = store.get("thinwire/invitation").decode()
        store.set(f"thinwire/{name}/answer/{rank}", own)
        while store.get("thinwire/invitation").decode() == name:
            if store.check([f"thinwire/{name}/welcome/{own}"]):
                return name
            if time.monotonic() > deadline:
                raise TransportError(f"waited too long for rank 0 to start; rank {rank} is here")
            time.sleep(GLANCE)


def _wait(store: Store, key: str, deadline: float, whom: str) -> None:
    while not store.check([key]):
        if time.monotonic() > deadline:
            raise TransportError(f"waited too long for {whom} to start")
        time.sleep(GLANCE)
