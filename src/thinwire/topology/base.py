"""The contract of every topology: who hears whom in a round, and with what weight."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thinwire.errors import ConfigError
from thinwire.topology.checks import check_connected, check_rows, label
from thinwire.value import Value, whole

Row = dict[int, float]
"""One worker's row of W: rank -> weight, itself among them, in ascending order of rank."""

Matrix = NDArray[np.float64]

DRAWN_ROUNDS = 16
"""Rounds that `check` looks at where each is drawn and none repeats."""

MOST_WORKERS = 1 << 24


@dataclass(frozen=True, repr=False)
class Topology(Value, ABC):
    """Says who hears whom in a round, and how much each counts: x_i <- sum_j W_ij x_j.

    W is doubly stochastic: rows and columns sum to 1, no entry is negative, so the mean over
    workers stays what it is while they draw together. Where `directed` is False, W is symmetric.
    A row costs O(degree); nothing here builds an N x N matrix but `mixing`.

    The consensus error ||x - mean|| shrinks each round by the factor 1 - `spectral_gap`.
    """

    @property
    @abstractmethod
    def fixed(self) -> bool:
        """Whether W stays the same in all rounds."""

    @property
    @abstractmethod
    def directed(self) -> bool:
        """Whether a worker may hear one that does not hear it; then W is not symmetric."""

    @abstractmethod
    def neighbours(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        """Returns whom this worker hears in that round, ascending, without itself.

        Raises:
            ConfigError: there is no such rank, or this graph cannot have N workers.
        """

    def listeners(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        """Returns who hears this worker in that round: its neighbours, unless `directed`."""
        return self.neighbours(rank, N, round, seed)

    @abstractmethod
    def row(self, rank: int, N: int, round: int = 0, seed: int = 0) -> Row:
        """Returns this worker's row of W, itself and its neighbours, in ascending order of rank.

        Raises:
            ConfigError: there is no such rank, or this graph cannot have N workers.
        """

    @abstractmethod
    def degree(self, N: int) -> int:
        """Returns the most neighbours that one worker has in one round."""

    @abstractmethod
    def period(self, N: int) -> int | None:
        """Returns after how many rounds the matrices repeat; None where each round is drawn."""

    def links(self, N: int) -> int:
        """Returns how many links carry something in round 0: pairs, or arrows if `directed`."""
        self.check_workers(N)
        heard = sum(len(self.neighbours(rank, N)) for rank in range(N))
        return heard if self.directed else heard // 2

    def mixing(self, N: int, round: int = 0, seed: int = 0) -> Matrix:
        """Returns W of that round: (N, N) float64, W[i, j] what i gives to what it hears of j."""
        self.check_workers(N)
        W = np.zeros((N, N))
        for rank in range(N):
            for j, weight in self.row(rank, N, round, seed).items():
                W[rank, j] = weight
        return W

    def spectral_gap(self, N: int) -> float:
        """Returns 1 - rho, where rho is how much of the consensus error one round leaves.

        Fixed: rho = ||W - J||_2 with J = 11^T/N, which for a symmetric W is |lambda_2|, the
        second largest eigenvalue by size. Periodic: rho^p = ||W_p ... W_1 - J||_2 over a period
        of p. Drawn: rho^2 = lambda_2(E[W^T W]), the expected square. A lone worker has gap 1.

        This is the definition, O(N^3); the structured graphs override it by what it comes to.
        """
        p = self.period(N)
        assert p is not None, "a topology that draws its rounds states its gap"
        P = np.eye(N)
        for round in range(p):
            P = self.mixing(N, round) @ P
        return gap_of(float(np.linalg.norm(P - 1 / N, 2)) ** (1 / p))

    def rounds_to_halve(self, N: int) -> float:
        """Returns the fewest rounds that surely halve the consensus error: rho^r <= 1/2.

        0 for a lone worker, infinity where the gap is 0. In the mean square if drawn.
        """
        if N == 1:
            return 0
        rho = 1 - self.spectral_gap(N)
        if rho <= 0.5:
            return 1
        return math.inf if rho >= 1 else math.ceil(math.log(0.5) / math.log(rho) - 1e-9)

    def check(self, N: int, symmetric: bool = True) -> None:
        """Refuses a topology over which N workers would not agree on their mean; O(edges).

        Args:
            N: workers in all.
            symmetric: whether the algorithm needs W_ij = W_ji, as CHOCO and QPRSGD do.

        Raises:
            ConfigError: this graph cannot have N workers, some row or column does not sum to 1
                or holds a negative weight, a pair is not symmetric, or, over a period, some
                worker never learns of another.
        """
        self.check_workers(N)
        linked: list[set[int]] = [set() for _ in range(N)]
        for round in range(self.period(N) or DRAWN_ROUNDS):
            rows = [self.row(rank, N, round) for rank in range(N)]
            check_rows(self, rows, round, symmetric)
            for rank, row in enumerate(rows):
                for j, weight in row.items():
                    if weight and j != rank:
                        linked[rank].add(j)
                        linked[j].add(rank)
        check_connected(self, linked)

    def check_workers(self, N: int) -> None:
        """Raises a ConfigError unless this graph can have N workers."""
        whole(self, "N", N, 1, MOST_WORKERS)

    def check_rank(self, rank: int, N: int) -> None:
        """Raises a ConfigError unless N workers are possible and `rank` is one of them."""
        self.check_workers(N)
        if not 0 <= rank < N:
            raise ConfigError(
                f"{label(self)}: rank {rank} is none of the {N} workers, 0 to {N - 1}"
            )


def gap_of(rho: float) -> float:
    """Returns 1 - rho within [0, 1], where rounding may have left rho just outside."""
    return min(1.0, max(0.0, 1 - rho))


def row_of(rank: int, weights: Row) -> Row:
    """Returns a whole row from the weights of the neighbours: oneself takes what they leave.

    Args:
        rank: whose row it is.
        weights: of the neighbours, in ascending order of rank.

    Example:
        >>> row_of(1, {0: 0.25, 2: 0.25})
        {0: 0.25, 1: 0.5, 2: 0.25}
    """
    own = max(0.0, 1 - math.fsum(weights.values()))
    return dict(sorted([*weights.items(), (rank, own)]))
