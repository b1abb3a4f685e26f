"""What one round did, for whoever asked to be told, and for the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass

LOG = logging.getLogger("thinwire")


@dataclass(frozen=True)
class RoundReport:
    """What one round did, as its worker saw it.

    Args:
        round: its number, from 0.
        local_steps: H of that round.
        uplink: framed bytes of this worker's message.
        sent: bytes that left for other ranks.
        received: bytes that came from other ranks.
        residual_cleared: whether the residual was dropped before it, at a learning-rate drop.
        lost: frames that this worker waited for and that never came.
        repaired: whether a dense round of its neighbourhood made good what it had missed before.
        repair_bytes: bytes of such rounds, its own and its neighbours', sent and received.
        skipped: whether something was not finite, so that nobody said anything: this worker's
            pseudo-gradient of the round is forgotten.
        dropped: the ranks without which it was held, since something of theirs was not finite:
            theirs is forgotten.
    """

    round: int
    local_steps: int
    uplink: int
    sent: int
    received: int
    residual_cleared: bool
    lost: int = 0
    repaired: bool = False
    repair_bytes: int = 0
    skipped: bool = False
    dropped: tuple[int, ...] = ()

    def log(self, rank: int) -> None:
        """Writes to the log what a user should know of it."""
        where = f"rank {rank}, round {self.round}"
        if self.lost:
            LOG.warning("%s: %d frames never came; it will ask for replicas", where, self.lost)
        if self.repaired:
            LOG.warning("%s: repaired by one dense round of its neighbourhood", where)
