"""Graph: any undirected graph, by its edges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from thinwire.errors import ConfigError
from thinwire.topology.base import MOST_WORKERS, Row, gap_of, row_of
from thinwire.topology.checks import check_connected
from thinwire.topology.fastest import MOST_EDGES, MOST_FASTEST, fastest
from thinwire.topology.static import Static, Weights

Edge = tuple[int, int]


class GraphLike(Protocol):
    """What `Graph.of` asks of a graph; those of networkx have it."""

    @property
    def nodes(self) -> Iterable[Any]:
        """The nodes."""

    @property
    def edges(self) -> Iterable[Any]:
        """The edges: pairs of nodes, or triples with a key."""

    def is_directed(self) -> bool:
        """Returns whether an edge has a direction."""


@dataclass(frozen=True, repr=False)
class Graph(Static):
    """Any undirected graph of the ranks 0 to N - 1, by its edges.

    Edges are kept sorted, each once: graphs with the same edges are equal. A self-loop adds
    nothing, since every row has a weight of oneself. `spectral_gap` costs O(N^3). With weights
    "fastest" |lambda_2| is within 1e-4 of the optimum over all weights; at most 64 workers
    and 1024 edges.

    Args:
        edges: pairs of ranks; N is one more than the largest.

    Raises:
        ConfigError: an edge is not a pair of ranks, or "fastest" is asked of too many workers or
            of a graph that is not connected.

    Example:
        >>> line = Graph(((0, 1), (1, 2)))
        >>> line.neighbours(1, N=3), line.row(0, N=3)
        ((0, 2), {0: 0.6666666666666667, 1: 0.3333333333333333})
        >>> line.check(3)
    """

    edges: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        kept = tuple(sorted({self._edge(pair) for pair in self.edges}))
        object.__setattr__(self, "edges", kept)
        if self.weights == "fastest":
            if self.N > MOST_FASTEST or len(kept) > MOST_EDGES:
                raise ConfigError(
                    f"Graph: weights='fastest' are solved for up to {MOST_FASTEST} workers and "
                    f"{MOST_EDGES} edges, and this graph has {self.N} and {len(kept)}; choose "
                    "weights='metropolis'"
                )
            check_connected(self, [set(near) for near in self._near])

    @classmethod
    def of(cls, graph: GraphLike, weights: Weights = "metropolis") -> Graph:
        """Returns the topology of a networkx graph; edge weights are left out.

        Args:
            graph: undirected, its nodes the ranks 0 to N - 1.
            weights: as above.

        Raises:
            ConfigError: it is directed, or its nodes are not 0 to N - 1.

        Example:
            >>> import networkx
            >>> Graph.of(networkx.path_graph(3))
            Graph(edges=((0, 1), (1, 2)))
        """
        if graph.is_directed():
            raise ConfigError("Graph.of: this graph is directed; give graph.to_undirected()")
        nodes = list(graph.nodes)
        if set(nodes) != set(range(len(nodes))) or not nodes:
            raise ConfigError(
                f"Graph.of: the nodes must be the ranks 0 to N - 1; this graph's begin with "
                f"{nodes[:3]!r}; give networkx.convert_node_labels_to_integers(graph)"
            )
        made = cls(tuple((edge[0], edge[1]) for edge in graph.edges), weights=weights)
        if len(nodes) > made.N:
            raise ConfigError(f"Graph.of: not connected: node {len(nodes) - 1} has no edge")
        return made

    @property
    def N(self) -> int:
        """How many workers this graph has."""
        return 1 + max((j for _, j in self.edges), default=0)

    def check_workers(self, N: int) -> None:
        super().check_workers(N)
        if len(self._near) != N:
            raise ConfigError(
                f"Graph: its edges join ranks 0 to {self.N - 1}, {self.N} workers, but N is {N}"
            )

    def neighbours(self, rank: int, N: int, round: int = 0, seed: int = 0) -> tuple[int, ...]:
        self.check_rank(rank, N)
        return self._near[rank]

    def row(self, rank: int, N: int, round: int = 0, seed: int = 0) -> Row:
        near = self.neighbours(rank, N)
        if self.weights == "fastest":
            return row_of(rank, {j: self._fastest[min(rank, j), max(rank, j)] for j in near})
        half = 0.5 if self.weights == "lazy" else 1.0
        return row_of(rank, {j: half / (1 + max(len(near), len(self._near[j]))) for j in near})

    def degree(self, N: int) -> int:
        self.check_workers(N)
        return max(len(near) for near in self._near)

    def spectral_gap(self, N: int) -> float:
        values = np.linalg.eigvalsh(self.mixing(N))  # ascending; the last is the 1 of the mean
        return gap_of(max(abs(values[0]), abs(values[-2]))) if N > 1 else 1.0

    @cached_property
    def _near(self) -> list[tuple[int, ...]]:
        near: list[set[int]] = [set() for _ in range(self.N)]
        for i, j in self.edges:
            if i != j:
                near[i].add(j)
                near[j].add(i)
        return [tuple(sorted(ranks)) for ranks in near]

    @cached_property
    def _fastest(self) -> dict[Edge, float]:
        edges = [edge for edge in self.edges if edge[0] != edge[1]]
        return dict(zip(edges, fastest(self.N, edges), strict=True))

    @staticmethod
    def _edge(pair: Any) -> Edge:
        # JSON gives lists, and numpy its own integers.
        if isinstance(pair, (tuple, list)) and len(pair) == 2:
            ranks = [int(r) for r in pair if isinstance(r, (int, np.integer)) and r >= 0]
            if len(ranks) == 2 and max(ranks) < MOST_WORKERS and bool not in map(type, pair):
                return min(ranks), max(ranks)
        raise ConfigError(f"Graph: {pair!r} is no edge; an edge is a pair of ranks such as (0, 1)")
