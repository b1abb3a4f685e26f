"""Mending: a worker that missed a neighbour's message asks for replicas, and is right again.

A worker keeps p = x^_i - sum_j W_ij x^_j and not the replicas x^_j, so what it missed it cannot
tell from what it heard. Three rounds of one neighbourhood make it good:

    t        a message does not come: from here on p is short of W_ij said_j
    t + 1    this worker's own message is a PLEA
    t + 2    who heard the plea puts its replica, as it is before this round, before its message

In every round one frame goes each way over each edge, whatever is lost: a worker never waits for
a frame that another, which did not hear its plea, does not know to send. Where a replica is
missing, or the plea was, it pleads again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from thinwire import host
from thinwire.exchange.base import Here, Memory
from thinwire.host import Bytes
from thinwire.wire.frame import HEADER, REPAIR_PART, Kind, part_of, seal


@dataclass(frozen=True, eq=False)
class Mending:
    """What a worker asks of its neighbours in a round, and what they asked of it.

    Args:
        rounds: since the message that it missed; 0 where it missed none.
        asked: the neighbours that pleaded in the last round.
        anchor: (d,) float32, of this worker.
        ahead: (d,) float32, how far its replica x^_i is ahead of it; None for not at all.
    """

    rounds: int
    asked: tuple[int, ...]
    anchor: Tensor
    ahead: Tensor | None

    @staticmethod
    def of(mem: Memory, anchor: Tensor, ahead: Tensor | None) -> Mending:
        """Returns what a memory says of it."""
        asked = mem["asked"].tolist() if "asked" in mem else ()
        return Mending(int(mem["missed"]), tuple(asked), anchor, ahead)

    @property
    def replica(self) -> Tensor:
        """x^_i before this round, (d,) float32."""
        return self.anchor if self.ahead is None else self.anchor + self.ahead

    @property
    def pleads(self) -> bool:
        """Whether its message of this round is a plea."""
        return self.rounds % 2 == 1

    @property
    def awaits(self) -> bool:
        """Whether its neighbours tell it their replicas in this round, if they heard its plea."""
        return self.rounds > 0 and not self.pleads

    def with_replica(self, frame: Bytes, here: Here) -> dict[int, Bytes]:
        """Returns this worker's message, its replica before it, for each that asked for that."""
        if not self.asked:
            return {}
        at = here.address(here.rank, REPAIR_PART)
        told = seal(Kind(frame[3]), at, host.bytes_of(self.replica), frame[HEADER:])
        return dict.fromkeys(self.asked, told)

    def is_told(self, frame: Bytes) -> bool:
        """Returns whether that frame of a neighbour should hold its replica."""
        return self.awaits and part_of(frame) == REPAIR_PART

    def after(self, missed: bool, mended: bool, pleas: tuple[int, ...]) -> Memory:
        """Returns what to remember of it for the next round.

        Args:
            missed: whether a message of this round did not come.
            mended: whether the replicas came.
            pleas: who pleaded in this round.
        """
        lasts = missed or (self.rounds > 0 and not mended)
        rounds = self.rounds + 1 if lasts else 0
        asked = {"asked": host.ints(list(pleas))} if pleas else {}
        return {"missed": host.ints([rounds]), **asked}
