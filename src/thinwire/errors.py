"""Every error thinwire raises, in one tree.

ThinwireError
  ConfigError(ValueError)   two settings disagree; raised when they are written
  FrameError                these bytes are no frame of ours
  TransportError            bytes could not be moved
    PeerLost                one rank is gone
    RoundTimeout            a round waited longer than it may
  NonFiniteError            a NaN or an infinity, with rank, round and tensor
  DivergedError             replicas that must agree do not
  SnapshotError             a snapshot could not be written, or none can be read
"""

from __future__ import annotations


class ThinwireError(Exception):
    """The root: catch this to catch everything thinwire raises on purpose."""


class ConfigError(ThinwireError, ValueError):
    """Two settings disagree, or one is out of range; nothing has been sent or changed."""


class FrameError(ThinwireError):
    """These bytes are no frame that this round can use: truncated, altered, foreign or stale."""


class TransportError(ThinwireError):
    """The transport could not move a frame."""


class PeerLost(TransportError):
    """The connection to one rank broke.

    Args:
        rank: the rank that is gone.
        why: what the transport underneath said.
    """

    def __init__(self, rank: int, why: str) -> None:
        self.rank = rank
        self.why = why
        # Whoever breaks off breaks its own connections: the first to go is rarely one's neighbour.
        super().__init__(
            f"lost rank {rank}: {why}. It may have left because it lost another itself: its own "
            "last line names whom"
        )


class RoundTimeout(TransportError):
    """A round waited for a rank longer than the group's timeout allows.

    Args:
        rank: the rank that was waited for.
        why: what the transport underneath said.
    """

    def __init__(self, rank: int, why: str) -> None:
        self.rank = rank
        self.why = why
        super().__init__(
            f"waited too long for rank {rank}: {why}. If it is only slow, give the process group "
            "a longer timeout, or Watch(deadline=Deadline(hard=...)) a longer one where you set it"
        )


class NonFiniteError(ThinwireError):
    """A pseudo-gradient holds a NaN or an infinity; no rank applied anything.

    Args:
        found: (rank, tensor name) of each worker that holds one; rank -1 stands for the sum.
        round: the round that was refused.
    """

    def __init__(self, found: list[tuple[int, str]], round: int) -> None:
        self.found = found
        self.round = round
        where = "; ".join(
            f"rank {rank}, tensor {name!r}" if rank >= 0 else f"the sum over ranks, tensor {name!r}"
            for rank, name in found
        )
        super().__init__(
            f"NaN or infinity in round {round}: {where}. Nothing was applied here; "
            "lower the learning rate, clip the gradients or look at that worker's data"
        )


class DivergedError(ThinwireError):
    """Replicas that must hold the same bits do not; raised on every rank alike.

    Args:
        ranks: those that differ from most; where there is no majority, all that hold it.
        tensor: the first in which they do.
        round: rounds done when they were compared.
    """

    def __init__(self, ranks: list[int], tensor: str, round: int) -> None:
        self.ranks = ranks
        self.tensor = tensor
        self.round = round
        whose = f"rank {ranks[0]} differs" if len(ranks) == 1 else f"ranks {ranks} differ"
        super().__init__(
            f"after {round} rounds {whose} from the rest or from each other, first in {tensor}. "
            "Replicas that must hold the same bits have parted: resume all ranks from the last "
            "snapshot, and look at what writes to the parameters between rounds, and at that "
            "machine's memory"
        )


class SnapshotError(ThinwireError):
    """A snapshot could not be written, or there is none that can be read."""
