"""OnePeerExponential and RandomMatching: one neighbour a round, another the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from thinwire.keys import Key
from thinwire.topology.base import Matrix, Row, Topology, gap_of

MATCHING = 1 << 40
"""The part of the key that draws matchings, far from those of the conversations of a round."""

_M64 = (1 << 64) - 1


@dataclass(frozen=True, repr=False)
class OnePeerExponential(Topology):
    """Each worker hears one other a round, at distance 1, 2, 4, ... in turn: directed, degree 1.

    W_ij = 1/2 for j = i and for j = i + 2^(round mod ceil(log2 N)) mod N. If N is a power of two,
    a period of log2 N rounds gives the exact mean: gap 1 over it. W is not symmetric, and the
    edges change, so that CHOCO and QPRSGD, whose memory counts on both, refuse it.

    Example:
        >>> [OnePeerExponential().neighbours(6, N=8, round=t) for t in range(4)]
        [(7,), (0,), (2,), (7,)]
        >>> OnePeerExponential().listeners(6, N=8, round=1)
        (4,)

    Source: Ying et al. (arXiv 2110.13363), the one-peer exponential graph.
    """

    @property
    def fixed(self) -> bool:
        return False

    @property
    def directed(self) -> bool:
        return True

    def period(self, N: int) -> int:
        return max(1, (N - 1).bit_length())

    def step(self, N: int, round: int) -> int:
        """Returns the distance at which all hear in that round."""
        return int(1 << (round % self.period(N)))

    def neighbours(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        self.check_rank(rank, N)
        return ((rank + self.step(N, round)) % N,) if N > 1 else ()

    def listeners(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        self.check_rank(rank, N)
        return ((rank - self.step(N, round)) % N,) if N > 1 else ()

    def row(self, rank: int, N: int, round: int = 0, seed: int = 0) -> Row:
        return _halves(rank, self.neighbours(rank, N, round))

    def degree(self, N: int) -> int:
        self.check_workers(N)
        return min(1, N - 1)

    def links(self, N: int) -> int:
        self.check_workers(N)
        return N if N > 1 else 0

    def spectral_gap(self, N: int) -> float:
        self.check_workers(N)
        p = self.period(N)
        return gap_of(float(self._left(N, p).max(initial=0.0)) ** (1 / p))

    def rounds_to_halve(self, N: int) -> float:
        self.check_workers(N)
        # One period leaves a factor below 1; a few of them are sure to halve.
        rounds, half = range(64 * self.period(N)), 0.5 + 1e-12
        return next((r for r in rounds if self._left(N, r).max(initial=0.0) <= half), math.inf)

    def _left(self, N: int, rounds: int) -> Matrix:
        # Circulants share their eigenvectors: |lambda_k| of the product is the product of
        # |1 + w^(k step)|/2 = |cos(pi k step/N)|, an exact 0 at half a turn.
        left, k = np.ones(N - 1), np.arange(1, N)
        for round in range(rounds):
            turns = k * self.step(N, round) % N
            left *= np.where(2 * turns == N, 0.0, np.abs(np.cos(np.pi * turns / N)))
        return left


@dataclass(frozen=True, repr=False)
class RandomMatching(Topology):
    """Each round pairs the workers anew at random, and each pair takes its mean: degree 1.

    All matchings are equally likely; if N is odd, one worker stays alone. W is symmetric and a
    projection, so E[W^T W] = E[W] and rho^2 = (N-2)/(2(N-1)), 1/2 if N is odd: each round leaves
    0.71 of the error at most, at any N. The matching comes from (seed, round) alone: every
    rank draws the same. The edges change: CHOCO and QPRSGD need a replica an edge here.

    Example:
        >>> [RandomMatching().neighbours(0, N=8, round=t, seed=1) for t in range(3)]
        [(1,), (1,), (4,)]

    Source: Boyd, Ghosh, Prabhakar, Shah, "Randomized gossip algorithms" (2006).
    Differs: theirs wakes one pair at a time, ours a whole matching a round.
    """

    @property
    def fixed(self) -> bool:
        return False

    @property
    def directed(self) -> bool:
        return False

    def period(self, N: int) -> None:
        return None

    def neighbours(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        self.check_rank(rank, N)
        partner = int(matching(N, round, seed)[rank])
        return () if partner == rank else (partner,)

    def row(self, rank: int, N: int, round: int = 0, seed: int = 0) -> Row:
        return _halves(rank, self.neighbours(rank, N, round, seed))

    def degree(self, N: int) -> int:
        self.check_workers(N)
        return min(1, N - 1)

    def links(self, N: int) -> int:
        self.check_workers(N)
        return N // 2

    def spectral_gap(self, N: int) -> float:
        self.check_workers(N)
        if N == 1:
            return 1.0
        return 1 - math.sqrt(0.5 if N % 2 else (N - 2) / (2 * (N - 1)))


@lru_cache(maxsize=64)
def matching(N: int, round: int, seed: int) -> NDArray[np.int64]:
    """Returns each worker's partner: (N,) int64, itself where it stays alone.

    Integers only, so that all machines draw alike.

    Example:
        >>> sorted(matching(5, 0, 0)[matching(5, 0, 0)].tolist())
        [0, 1, 2, 3, 4]
    """
    low, high = Key(seed, round, part=MATCHING).words
    # splitmix64 seeded by the key: worker i's word is that of counter i + 1.
    x = np.uint64(low | high << 32) + np.arange(1, N + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    order = np.argsort(x ^ (x >> np.uint64(31)), kind="stable")
    partner = np.arange(N)
    left, right = order[: N - N % 2 : 2], order[1::2]
    partner[left], partner[right] = right, left
    partner.flags.writeable = False
    return partner


_GOLDEN = 0x9E3779B97F4A7C15


def _halves(rank: int, near: tuple[int, ...]) -> Row:
    return {j: 1 / (1 + len(near)) for j in sorted((rank, *near))}
