"""Where a worker sits: in a process group, in a transport of one's own, or in a `LockStep`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch.distributed as dist

from thinwire.transport import Alone, DistributedTransport, Paced, Transport
from thinwire.wire.frame import HEADER, length


@dataclass(frozen=True)
class Seat:
    """A place in a group of one process: rank and N, with no wire; `LockStep` runs them all.

    Args:
        rank: this worker.
        N: workers in all.
    """

    rank: int
    N: int


Group: TypeAlias = "dist.ProcessGroup | Seat | Paced | Transport | None"


def transport_of(group: Group, hard: float | None) -> Transport | None:
    """Returns what moves the frames of a worker there; None on a `Seat`.

    Args:
        group: as `LocalSGD` takes it.
        hard: seconds after which a wait of a process group ends with a `RoundTimeout`.
    """
    if isinstance(group, Seat):
        return None
    if isinstance(group, Paced):
        return group.over(HEADER, length, hard)
    if isinstance(group, Transport):
        return group
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return Alone()
    return DistributedTransport(group, HEADER, length, hard)


def place_of(group: Group, transport: Transport | None) -> tuple[int, int]:
    """Returns the worker's rank and N."""
    if isinstance(group, Seat):
        return group.rank, group.N
    assert transport is not None
    return transport.rank, transport.size
