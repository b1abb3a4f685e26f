"""Randomness as a value: a key names a stream of random words, and nothing else does.

The same key gives the same words on every rank, in every engine and on every machine, so a
random choice that all ranks share (the indices of `RandK`) is never sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

SHARED = -1
"""The rank of a key that all ranks hold in common."""

_M64 = (1 << 64) - 1


def _mix64(x: int) -> int:
    # splitmix64's finalizer: every input bit reaches every output bit.
    x = (x + 0x9E3779B97F4A7C15) & _M64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _M64
    return x ^ (x >> 31)


@lru_cache(maxsize=4096)
def _words(seed: int, round: int, rank: int, part: int) -> tuple[int, int]:
    x = 0
    for field in (seed, round, rank + 1, part):
        x = _mix64(x ^ (field & _M64))
    return x & 0xFFFFFFFF, x >> 32


@dataclass(frozen=True)
class Key:
    """A key names one stream of random words.

    Args:
        seed: the run's seed.
        round: the round number.
        rank: the worker whose draw this is, or `SHARED` for a draw that all ranks make alike.
        part: which draw of that worker in that round: each consumer takes its own.

    Example:
        >>> a = Key(seed=7, round=3, rank=1)
        >>> a.words == Key(7, 3, 1).words, a.words == a.shared().words
        (True, False)
    """

    seed: int
    round: int = 0
    rank: int = SHARED
    part: int = 0

    @property
    def words(self) -> tuple[int, int]:
        """Two 32-bit words that seed the counter-based generator of the kernels."""
        return _words(self.seed, self.round, self.rank, self.part)

    def shared(self) -> Key:
        """Returns the key of the same draw that all ranks hold in common."""
        return replace(self, rank=SHARED)

    def draw(self, which: int) -> Key:
        """Returns the key of one of the (at most eight) draws that a part makes."""
        return replace(self, part=8 * self.part + which)

    def of_part(self, part: int) -> Key:
        """Returns the key of another draw of the same worker in the same round."""
        return replace(self, part=part)
