"""Compute: how long each worker's local steps take, as a value; what slows it down, and when."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from statistics import NormalDist

from thinwire.errors import ConfigError
from thinwire.keys import Key
from thinwire.value import Value, in_range, whole

_FULL = float(1 << 32)
_NORMAL = NormalDist()
FACTOR, STRAGGLE, AWAY, AWAY_FOR = range(4)
"""The draws of a worker and of each of its steps."""


@dataclass(frozen=True)
class Busy:
    """The worker computes for so many seconds.

    Args:
        seconds: on a core.
    """

    seconds: float


class Cores:
    """The cores of a machine on which all workers run: who asks first is served first.

    Args:
        n: how many; None for one for each who asks.
    """

    def __init__(self, n: int | None) -> None:
        self._free = None if n is None else [0.0] * n

    def serve(self, at: float, seconds: float) -> float:
        """Returns when what is asked at that time, and takes so long on a core, is done."""
        if self._free is None:
            return at + seconds
        done = max(at, self._free[0]) + seconds
        heapq.heapreplace(self._free, done)
        return done


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
        own: seconds of coding one's own message, once a round, before anything is said.
        hear: seconds that each byte heard takes to decode and add, as soon as it is heard.
        cores: of the machine on which all workers run; None where each has its own.
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
    own: float = 0.0
    hear: float = 0.0
    cores: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("step", "away_for"):
            in_range(self, name, getattr(self, name), 0.0, 1e6)
        for name in ("own", "hear"):
            in_range(self, name, getattr(self, name), 0.0, 1e9)
        in_range(self, "spread", self.spread, 0.0, 3.0)
        in_range(self, "straggle", self.straggle, 0.0, 1.0)
        in_range(self, "straggle_by", self.straggle_by, 1.0, 1e4)
        in_range(self, "away", self.away, 0.0, 1.0)
        if self.cores is not None:
            whole(self, "cores", self.cores, 1, 1 << 16)
            if self.away:
                raise ConfigError(
                    f"Compute: a worker that is away would keep one of {self.cores} cores; give "
                    "away or cores, not both"
                )

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
