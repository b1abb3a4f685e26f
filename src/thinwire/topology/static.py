"""Graphs that stay: undirected, the same W in all rounds, and a choice of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np

from thinwire.topology.base import Matrix, Row, Topology, gap_of, row_of
from thinwire.value import one_of

Weights = Literal["metropolis", "lazy", "fastest"]
WEIGHTS: tuple[Weights, ...] = ("metropolis", "lazy", "fastest")


@dataclass(frozen=True, repr=False)
class Static(Topology, ABC):
    """An undirected graph that stays the same; W is symmetric and no entry is negative.

    Args:
        weights: "metropolis": W_ij = 1/(1 + max(d_i, d_j)), known from the neighbours alone;
            "lazy": (I + W)/2 of that, no eigenvalue below 0; "fastest": the smallest |lambda_2|
            among nonnegative weights, within what the graph's page says.
    """

    weights: Weights = field(default="metropolis", kw_only=True)

    def __post_init__(self) -> None:
        one_of(self, "weights", self.weights, WEIGHTS)

    @property
    def fixed(self) -> bool:
        return True

    @property
    def directed(self) -> bool:
        return False

    def period(self, N: int) -> int:
        return 1


@dataclass(frozen=True, repr=False)
class Uniform(Static, ABC):
    """A graph so regular that all its edges weigh the same: W = I - a L, L the Laplacian.

    Each edge touches a worker of the largest degree D, so metropolis is a = 1/(1 + D) and lazy
    half of it. Fastest is a = min(2/(L_2 + L_N), 1/D), L_2 and L_N the smallest and the largest
    eigenvalue of L but the first: the best constant; 1/D keeps W nonnegative.

    Source: Xiao, Boyd, "Fast linear iterations for distributed averaging" (2004), section 4.1.
    Differs: their constant may leave a negative weight of oneself; ours stops at 0.
    """

    @abstractmethod
    def laplacian(self, N: int) -> Matrix:
        """Returns the N eigenvalues of L, with their multiplicity, the 0 of the mean first."""

    def row(self, rank: int, N: int, round: int = 0, seed: int = 0) -> Row:
        near = self.neighbours(rank, N)
        return row_of(rank, dict.fromkeys(near, edge_weight(self, N) if near else 0.0))

    def links(self, N: int) -> int:
        self.check_workers(N)
        return int(np.rint(self.laplacian(N).sum() / 2))  # the trace of L counts each edge twice

    def spectral_gap(self, N: int) -> float:
        self.check_workers(N)
        if N == 1:
            return 1.0
        others = self.laplacian(N)[1:]
        return gap_of(float(np.abs(1 - edge_weight(self, N) * others).max()))


@lru_cache(maxsize=256)
def edge_weight(graph: Uniform, N: int) -> float:
    """Returns a, the weight of every edge."""
    D = graph.degree(N)
    if graph.weights == "fastest":
        others = graph.laplacian(N)[1:]
        return min(2 / float(others.min() + others.max()), 1 / D)
    return 1 / (1 + D) if graph.weights == "metropolis" else 0.5 / (1 + D)


def cycle(length: int) -> Matrix:
    """Returns the Laplacian's eigenvalues of a closed line; two workers share one edge.

    Example:
        >>> cycle(1).tolist(), cycle(2).tolist(), cycle(4).round(12).tolist()
        ([0.0], [0.0, 2.0], [0.0, 2.0, 4.0, 2.0])
    """
    if length <= 2:
        return 2 * np.arange(length, dtype=np.float64)
    return 2 - 2 * np.cos(2 * np.pi * np.arange(length, dtype=np.float64) / length)
