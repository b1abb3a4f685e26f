"""Graph: any undirected graph, by its edges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from thinwire.errors import ConfigError
from thinwire.topology.base import Row, row_of
from thinwire.topology.checks import check_connected
from thinwire.topology.fastest import MOST_FASTEST, fastest
from thinwire.topology.static import Static, Weights

Edge = tuple[int, int]


class GraphLike(Protocol):
    """What `Graph.of` asks of a graph: networkx graphs have it."""

    nodes: Iterable[Any]

    def edges(self) -> Iterable[Any]:
        """Returns the pairs of nodes."""

    def is_directed(self) -> bool:
        """Returns whether an edge has a direction."""


@dataclass(frozen=True, repr=False)
class Graph(Static):
    """Any undirected graph of the ranks 0 to N - 1, by its edges.

    Edges are kept sorted, each once: graphs with the same edges are equal. A self-loop adds
    nothing, since every row has a weight for oneself. `spectral_gap` costs O(N^3). With weights
    "fastest" |lambda_2| is within 1e-4 of the optimum over all weights; N at most 64.

    Args:
        edges: pairs of ranks; N is the largest rank and one more.

    Raises:
        ConfigError: an edge is not a pair of ranks, or "fastest" is asked of too many workers.

    Example:
        >>> line = Graph(((0, 1), (1, 2)))
        >>> line.neighbours(1, N=3), line.row(0, N=3)
        ((0, 2), {0: 0.6666666666666667, 1: 0.3333333333333333})
        >>> line.check(3)
    """

    edges_: tuple[Edge, ...] = ()
