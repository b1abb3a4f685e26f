"""RingGraph, Torus, Hypercube, Complete, Star, Exponential: graphs known by a rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from thinwire.errors import ConfigError
from thinwire.topology.base import MOST_WORKERS, Matrix
from thinwire.topology.static import Uniform, cycle
from thinwire.value import whole


@dataclass(frozen=True, repr=False)
class RingGraph(Uniform):
    """Each worker hears the one before and the one after it: degree 2.

    Gap, metropolis, N > 2: 1 - (1 + 2 cos(2 pi/N))/3, about 13/N^2: the fewest bytes a round and
    the most rounds. Fastest is the optimum over all weights, about 3/2 of that gap if N is large.

    Example:
        >>> RingGraph().neighbours(0, N=8), RingGraph().neighbours(0, N=2)
        ((1, 7), (1,))
        >>> RingGraph().row(1, N=4)
        {0: 0.3333333333333333, 1: 0.33333333333333337, 2: 0.3333333333333333}
    """

    def neighbours(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        self.check_rank(rank, N)
        return _others(rank, ((rank - 1) % N, (rank + 1) % N))

    def degree(self, N: int) -> int:
        self.check_workers(N)
        return min(2, N - 1)

    def laplacian(self, N: int) -> Matrix:
        return cycle(N)


@dataclass(frozen=True, repr=False)
class Torus(Uniform):
    """Rows and columns that close upon themselves: each worker hears four, rank = row cols + col.

    On a side of 2 both ways lead to the same worker, which is heard once and counted once; on a
    side of 1 they lead back, and a 1 x N torus is the ring. Gap, metropolis, sides > 2:
    (2 - 2 cos(2 pi/longest side))/5. Fastest is the best constant, optimal if square.

    Args:
        rows: workers in a column; None for the divisor of N nearest below its root.
        cols: workers in a row; None for N / rows.

    Raises:
        ConfigError: a side is below 1, or rows x cols is not N.

    Example:
        >>> Torus().sides(12), Torus().neighbours(0, N=12), Torus().neighbours(0, N=4)
        ((3, 4), (1, 3, 4, 8), (1, 2))
    """

    rows: int | None = None
    cols: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, side in (("rows", self.rows), ("cols", self.cols)):
            if side is not None:
                whole(self, name, side, 1, MOST_WORKERS)

    def sides(self, N: int) -> tuple[int, int]:
        """Returns (rows, cols) of N workers."""
        rows, cols = self.rows, self.cols
        if rows is None:
            rows = _near_root(N) if cols is None else N // cols
        return rows, N // rows if cols is None else cols

    def check_workers(self, N: int) -> None:
        super().check_workers(N)
        rows, cols = self.sides(N)
        if rows * cols != N:
            raise ConfigError(
                f"{self!r}: {rows} rows x {cols} cols make {rows * cols} workers, not N={N}; "
                f"Torus() takes {_near_root(N)} x {N // _near_root(N)}"
            )

    def neighbours(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        self.check_rank(rank, N)
        rows, cols = self.sides(N)
        i, j = divmod(rank, cols)
        up, down = (i - 1) % rows * cols + j, (i + 1) % rows * cols + j
        left, right = i * cols + (j - 1) % cols, i * cols + (j + 1) % cols
        return _others(rank, (up, down, left, right))

    def degree(self, N: int) -> int:
        self.check_workers(N)
        return sum(min(2, side - 1) for side in self.sides(N))

    def laplacian(self, N: int) -> Matrix:
        rows, cols = self.sides(N)
        return np.add.outer(cycle(rows), cycle(cols)).ravel()


@dataclass(frozen=True, repr=False)
class Hypercube(Uniform):
    """Each worker hears those whose rank differs from its own in one bit: degree log2 N.

    Gap, metropolis: 2/(1 + log2 N); fastest the same, and the optimum over all weights.

    Raises:
        ConfigError: N is not a power of two.

    Example:
        >>> Hypercube().neighbours(5, N=8)
        (1, 4, 7)
    """

    def check_workers(self, N: int) -> None:
        super().check_workers(N)
        if N & (N - 1):
            below = 1 << (N.bit_length() - 1)
            raise ConfigError(
                f"{self!r}: N is {N}, and a hypercube has a power of two of workers; nearest are "
                f"{below} and {2 * below}, or Exponential() takes any N"
            )

    def neighbours(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        self.check_rank(rank, N)
        return _others(rank, tuple(rank ^ (1 << bit) for bit in range(N.bit_length() - 1)))

    def degree(self, N: int) -> int:
        self.check_workers(N)
        return N.bit_length() - 1

    def laplacian(self, N: int) -> Matrix:
        n = N.bit_length() - 1
        counts = [math.comb(n, k) for k in range(n + 1)]
        return np.repeat(2.0 * np.arange(n + 1), counts)


@dataclass(frozen=True, repr=False)
class Complete(Uniform):
    """Everyone hears everyone: degree N - 1, W = 11^T/N, gap 1: the mean in one round.

    Example:
        >>> Complete().row(0, N=4)
        {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25}
    """

    def neighbours(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        self.check_rank(rank, N)
        return (*range(rank), *range(rank + 1, N))

    def degree(self, N: int) -> int:
        self.check_workers(N)
        return N - 1

    def laplacian(self, N: int) -> Matrix:
        return np.where(np.arange(N) == 0, 0.0, float(N))


@dataclass(frozen=True, repr=False)
class Star(Uniform):
    """Everyone hears rank 0, which hears everyone: degree N - 1 in the middle, 1 elsewhere.

    Gap: 1/N, with fastest 1/(N - 1): a star of gossip is no server, since symmetric weights let
    the middle tell each worker only a little. For a server, use the exchange `Server`.

    Example:
        >>> Star().neighbours(0, N=4), Star().neighbours(3, N=4)
        ((1, 2, 3), (0,))
    """

    def neighbours(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        self.check_rank(rank, N)
        return tuple(range(1, N)) if rank == 0 else (0,)

    def degree(self, N: int) -> int:
        self.check_workers(N)
        return N - 1

    def laplacian(self, N: int) -> Matrix:
        L = np.ones(N)
        L[0] = 0
        if N > 1:
            L[-1] = N
        return L


@dataclass(frozen=True, repr=False)
class Exponential(Uniform):
    """Each worker hears those at distance 1, 2, 4, ... on both sides: degree below 2 log2 N.

    Neighbours at +-2^j mod N for all 2^j < N. Gap, metropolis: at least
    2/(1 + ceil(log2 N)), a hypercube's, at any N. Fastest is the best constant, not the optimum
    over all weights.

    Example:
        >>> Exponential().neighbours(0, N=8), Exponential().degree(16)
        ((1, 2, 4, 6, 7), 7)

    Source: Ying et al., "Exponential Graph is Provably Efficient for Decentralized Deep
        Training" (arXiv 2110.13363), the static exponential graph.
    Differs: theirs hears +2^j only, is directed and weighs 1/(1 + ceil(log2 N)); ours is made
        symmetric, as CHOCO and QPRSGD need it, for nearly twice the degree.
    """

    def neighbours(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        self.check_rank(rank, N)
        return _others(rank, tuple((rank + step) % N for step in _steps(N)))

    def degree(self, N: int) -> int:
        self.check_workers(N)
        return len(_steps(N))

    def laplacian(self, N: int) -> Matrix:
        L, k = np.zeros(N), np.arange(N)
        for step in _steps(N):
            L += 1 - np.cos(2 * np.pi * (k * step % N) / N)
        return L


def _others(rank: int, met: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(met) - {rank}))


@lru_cache(maxsize=64)
def _steps(N: int) -> tuple[int, ...]:
    powers = [1 << j for j in range((N - 1).bit_length())]
    return tuple(sorted({step for p in powers for step in (p, N - p)}))


@lru_cache(maxsize=64)
def _near_root(N: int) -> int:
    return next(rows for rows in range(math.isqrt(N), 0, -1) if N % rows == 0)
