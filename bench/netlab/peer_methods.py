"""The peers of bench/netlab/peers.py: each a way to train the same model on the same links.

A peer is made by a function (model, inner, settings) -> (module to call, optimizer, close), where
`inner(model)` makes the inner optimizer; the optimizer's `step()` has the communication in it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

import thinwire as tw

Inner = Callable[[nn.Module], torch.optim.Optimizer]
Made = tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]
LIGHTHOUSE = 29600
_houses = itertools.count()
WARM = 2
"""Steps that DDP's post-local-SGD hook begins with as DDP: its buckets are built in the first."""


def hooked(model: nn.Module, said: dict[str, Any]) -> DistributedDataParallel:
    """Returns the model under DDP, with torch's hook of that name where one is named."""
    hook = said.get("hook")
    # PowerSGD with several buckets crashes or hangs over Gloo, and post-local SGD gains nothing by
    # them; for the others they are torch's own choice.
    one = 1000 if hook in ("powersgd", "post_local_sgd") else None
    wrapped = DistributedDataParallel(model, bucket_cap_mb=one)
    if hook == "fp16":
        wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif hook == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=said["rank"], start_powerSGD_iter=2
        )
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return wrapped


def ddp(model: nn.Module, inner: Inner, said: dict[str, Any]) -> Made:
    wrapped, optimizer = hooked(model, said), inner(model)
    if said.get("hook") == "post_local_sgd":
        alone, _ = dist.new_subgroups(group_size=1)
        state = PostLocalSGDState(None, alone, WARM, post_local_gradient_allreduce=False)
        wrapped.register_comm_hook(state, post_localSGD_hook)
        optimizer = PostLocalSGDOptimizer(optimizer, every(said["H"]))
    return wrapped, optimizer, lambda: None


def every(H: int) -> PeriodicModelAverager:
    """Returns torch's averager, its rounds after every H-th step, so that all are judged alike.

    Without a warm-up it averages after the first step, and then after steps 1 + H, 1 + 2 H.
    """
    return PeriodicModelAverager(period=H, warmup_steps=H - 1)


def post_local_sgd_optimizer(model: nn.Module, inner: Inner, said: dict[str, Any]) -> Made:
    return model, PostLocalSGDOptimizer(inner(model), every(said["H"])), lambda: None


def alone(model: nn.Module, inner: Inner, said: dict[str, Any]) -> Made:
    return model, inner(model), lambda: None


def torchft(model: nn.Module, inner: Inner, said: dict[str, Any]) -> Made:
    from torchft.coordination import LighthouseServer
    from torchft.local_sgd import DiLoCo, LocalSGD
    from torchft.manager import Manager
    from torchft.process_group import ProcessGroupGloo

    class OnInterface(ProcessGroupGloo):  # type: ignore[misc]
        """Theirs listens where the host's name leads, which is loopback in a namespace."""

        def _create_pg(self, store: Any, rank: int, world_size: int) -> Any:
            gloo = dist.ProcessGroupGloo
            options = gloo._Options()
            options._timeout = self._timeout
            options._devices = [gloo.create_device(interface=os.environ["GLOO_SOCKET_IFNAME"])]
            group = dist.ProcessGroup(store, rank, world_size)
            group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
            backend = gloo(store, rank, world_size, options)
            backend._set_sequence_number_for_group()
            group._register_backend(
                torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend
            )
            return group

    rank, N, master = dist.get_rank(), dist.get_world_size(), os.environ["MASTER_ADDR"]
    own = f"{master.rpartition('.')[0]}.{rank + 1}" if "NETLAB_REPORT" in os.environ else master
    # One after another in one process, each with a lighthouse of its own.
    port, house = LIGHTHOUSE + next(_houses), None
    if rank == 0:
        house = LighthouseServer(bind=f"{master}:{port}", min_replicas=N, join_timeout_ms=1000)
    dist.barrier()
    store = dist.TCPStore(own, 0, is_master=True, wait_for_workers=False)
    long = timedelta(seconds=300)
    manager = Manager(
        pg=OnInterface(timeout=long),
        load_state_dict=model.load_state_dict,
        state_dict=model.state_dict,
        min_replica_size=N,
        use_async_quorum=False,
        init_sync=False,
        timeout=long,
        rank=0,
        world_size=1,
        store_addr=own,
        store_port=store.port,
        lighthouse_addr=f"http://{master}:{port}",
        replica_id=f"peer{rank}",
        hostname=own,
    )
    optimizer = inner(model)
    # The first quorum connects the group: as for all others, that is before the first step.
    manager.start_quorum()
    assert manager.should_commit()
    if said["algorithm"] == "local_sgd":
        held: Any = LocalSGD(manager, model, optimizer, sync_every=said["H"])
    else:
        outer = torch.optim.SGD(
            model.parameters(), lr=said["outer_lr"], momentum=said["momentum"], nesterov=True
        )
        held = DiLoCo(manager, [model], optimizer, outer, sync_every=said["H"])
    stack = contextlib.ExitStack()
    stack.enter_context(held)

    def close(store: Any = store) -> None:  # Who holds this holds the store, which all ask.
        dist.barrier()
        stack.close()
        manager.shutdown(wait=False)
        dist.barrier()
        if house is not None:
            house.shutdown()

    return model, optimizer, close


def preset(said: dict[str, Any]) -> Any:
    """Returns the preset of these settings: a method, H and, of a sparse one, the density."""
    H, density = said["H"], said.get("density", 0.01)
    made: dict[str, Callable[[], Any]] = {
        "signtopk": lambda: tw.qsparse_local_sgd(
            H, tw.TopK(density=density) >> tw.Sign(), tw.Gather()
        ),
        "topk4": lambda: tw.qsparse_local_sgd(
            H, tw.TopK(density=density) >> tw.QSGD(bits=4), tw.Gather()
        ),
        "ring8": lambda: tw.qprsgd_ring(H),
        "gossip8": lambda: tw.qprsgd_gossip(H),
        "delegate": lambda: tw.vanilla(delegate=True),
    }
    return made[said["method"]]()


def thinwire(model: nn.Module, inner: Inner, said: dict[str, Any]) -> Made:
    return model, tw.LocalSGD(model, inner(model), **preset(said)), lambda: None


KINDS: dict[str, Callable[[nn.Module, Inner, dict[str, Any]], Made]] = {
    "alone": alone,
    "ddp": ddp,
    "post_local_sgd_optimizer": post_local_sgd_optimizer,
    "torchft": torchft,
    "thinwire": thinwire,
}

PEERS: dict[str, dict[str, Any]] = {
    "DDP": {"kind": "ddp", "family": "ddp"},
    "DDP fp16": {"kind": "ddp", "hook": "fp16", "family": "ddp"},
    "DDP PowerSGD": {"kind": "ddp", "hook": "powersgd", "family": "powersgd"},
    "DDP post-local SGD": {"kind": "ddp", "hook": "post_local_sgd", "family": "local_sgd"},
    "PostLocalSGDOptimizer": {"kind": "post_local_sgd_optimizer", "family": "local_sgd"},
    "torchft LocalSGD": {"kind": "torchft", "family": "local_sgd"},
    "torchft DiLoCo": {"kind": "torchft", "family": "diloco"},
    "thinwire SignTopK": {"kind": "thinwire", "family": "signtopk"},
    "thinwire TopK 4 bits": {"kind": "thinwire", "family": "topk4"},
    "thinwire ring 8 bits": {"kind": "thinwire", "family": "ring8"},
    "thinwire gossip 8 bits": {"kind": "thinwire", "family": "gossip8"},
}
"""By name; `family` is where `tune.py` tuned it: one algorithm under several names is tuned once.
"""
