"""Compute: how long each worker's local steps take, as a value; what slows it down, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from thinwire.keys import Key
from thinwire.value import Value, in_range

_FULL = float(1 << 32)
_NORMAL = NormalDist()
FACTOR, STRAGGLE, AWAY, AWAY_FOR = range(4)
"""The draws of a worker and of each of its steps."""


@dataclass(frozen=True, repr=False)
class Compute(Value):
    """How long a worker computes between two things it says.

    Args:
        step: seconds of a local step of the middle worker.
        spread: of workers: each takes step * exp(spread * normal), for good.
        straggle: chance that a step takes `straggle_by` times as long.
        straggle_by: how many times.
        away: chance before each step that the worker goes away, and comes back with its state.
        away_for: seconds it stays away, on average; exponential.
        round: seconds that coding and decoding take, once a round.
        seed: of all draws.

    Example:
        >>> Compute(0.5).seconds(rank=3, step=7)
        0.5
    """

    step: float
    spread: float = 0.0
    straggle: float = 0.0
    straggle_by: float = 5.0
    away: float = 0.0
    away_for: float = 30.0
    round: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("step", "away_for", "round"):
            in_range(self, name, getattr(self, name), 0.0, 1e6)
        in_range(self, "spread", self.spread, 0.0, 3.0)
        in_range(self, "straggle", self.straggle, 0.0, 1.0)
        in_range(self, "straggle_by", self.straggle_by, 1.0, 1e4)
        in_range(self, "away", self.away, 0.0, 1.0)

    @property
    def even(self) -> bool:
        """Whether each step of a worker takes as long as its last."""
        return not (self.straggle or self.away)

    def factor(self, rank: int) -> float:
        """Returns how many times as long as the middle worker's this one's steps are."""
        if not self.spread:
            return 1.0
        return math.exp(self.spread * _NORMAL.inv_cdf(self._draw(rank, 0, FACTOR)))

    def seconds(self, rank: int, step: int) -> float:
        """Returns how long that step of that worker takes, absence before it in."""
        took = self.step * self.factor(rank)
        if self.straggle and self._draw(rank, step, STRAGGLE) < self.straggle:
            took *= self.straggle_by
        if self.away and self._draw(rank, step, AWAY) < self.away:
            took -= self.away_for * math.log(self._draw(rank, step, AWAY_FOR))
        return took

    def steps(self, rank: int, first: int, n: int) -> float:
        """Returns how long n steps of that worker take, from that one on."""
        if self.even:
            return n * self.step * self.factor(rank)
        return sum(self.seconds(rank, step) for step in range(first, first + n))

    def _draw(self, rank: int, step: int, which: int) -> float:
        # Never 0 or 1, where a logarithm or an inverse would be infinite.
        return (Key(self.seed, step, rank).draw(which).words[0] + 0.5) / _FULL
