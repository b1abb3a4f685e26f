"""Every refusal says what is wrong, where, and what would work."""

from __future__ import annotations

from dataclasses import dataclass

import networkx
import pytest

from thinwire import ConfigError
from thinwire.topology import (
    Exponential,
    Graph,
    Hypercube,
    OnePeerExponential,
    RingGraph,
    Static,
    Torus,
)


@dataclass(frozen=True, repr=False)
class Given(Static):
    """Any W, to see what `check` says of it."""

    W: tuple[tuple[float, ...], ...] = ()

    def neighbours(self, rank, N, round=0, seed=0):
        return tuple(j for j in self.row(rank, N) if j != rank)

    def row(self, rank, N, round=0, seed=0):
        return {j: w for j, w in enumerate(self.W[rank]) if w}

    def degree(self, N):
        return N


def refused(topology, N, says, **how):
    with pytest.raises(ConfigError, match=says) as caught:
        topology.check(N, **how)
    return str(caught.value)


def test_a_row_that_does_not_sum_to_one_is_named():
    says = refused(Given(((0.5, 0.5), (0.5, 0.25))), 2, "row 1 sums to 0.75, not to 1")
    assert "N=2, round 0" in says
    refused(Given(((float("nan"), 1.0), (0.5, 0.5))), 2, "is nan")


def test_a_column_that_does_not_sum_to_one_is_named():
    W = ((0.5, 0.5), (0.25, 0.75))
    refused(Given(W), 2, "column 0 sums to 0.75.*drift from rank 0.*metropolis", symmetric=False)
    W = ((0.75, 0.25), (0.5, 0.5))
    refused(Given(W), 2, "column 0 sums to 1.25.*drift towards rank 0", symmetric=False)


def test_a_pair_that_is_not_symmetric_is_named():
    W = ((0.5, 0.25, 0.25), (0.5, 0.25, 0.25), (0.0, 0.5, 0.5))
    refused(Given(W), 3, r"not symmetric: W\[0, 1\] is 0.25 but W\[1, 0\] is 0.5")
    says = refused(OnePeerExponential(), 5, r"not symmetric: W\[0, 1\] is 0.5 but W\[1, 0\] is 0;")
    assert "choose an undirected topology, like RingGraph() or Exponential()" in says
    OnePeerExponential().check(5, symmetric=False)


def test_a_negative_weight_is_named():
    refused(Given(((1.5, -0.5), (-0.5, 1.5))), 2, r"W\[0, 1\] is -0.5; no weight is negative")


def test_a_rank_that_is_not_there_is_named():
    refused(Given(((0.5, 0.25, 0.25), (0.5, 0.5, 0))), 2, "rank 0 hears rank 2; there are 0 to 1")


def test_only_self_loops_are_refused():
    loops = Graph(((0, 0), (1, 1), (2, 2)))
    refused(loops, 3, "N=3 workers have only self-loops: none hears another; give edges")
    refused(Given(((1.0, 0.0), (0.0, 1.0))), 2, "only self-loops")
    Graph(((0, 0),)).check(1)


def test_two_parts_are_refused_and_a_lost_worker_named():
    parts = Graph(((0, 1), (1, 3), (2, 4)))
    says = refused(parts, 5, "not connected: 3 of 5 workers are within reach of rank 0")
    assert "rank 2 is not; add an edge between the two parts" in says
    with pytest.raises(ConfigError, match="not connected"):
        Graph(((0, 1), (1, 3), (2, 4)), weights="fastest")
    assert parts.spectral_gap(5) == pytest.approx(0)
    assert parts.rounds_to_halve(5) == float("inf")


def test_an_n_that_the_graph_cannot_have_is_refused_with_the_nearest():
    refused(Hypercube(), 12, "N is 12.*power of two of workers; nearest are 8 and 16")
    refused(Torus(rows=3), 8, "3 rows x 2 cols make 6 workers, not N=8; Torus.. takes 2 x 4")
    refused(Torus(3, 3), 8, "3 rows x 3 cols make 9 workers, not N=8")
    refused(Torus(rows=16), 8, "16 rows x 0 cols make 0 workers, not N=8")
    refused(Graph(((0, 1), (1, 2))), 4, "ranks 0 to 2, 3 workers, but N is 4")
    for N in (0, -1, 2.0, True, 1 << 25):
        refused(RingGraph(), N, "RingGraph: N is .*; it must be a whole number in")
    for ask in (
        Hypercube().degree,
        Hypercube().spectral_gap,
        Hypercube().mixing,
        Hypercube().links,
    ):
        with pytest.raises(ConfigError, match="nearest are 4 and 8"):
            ask(6)


def test_wrong_settings_are_refused_when_written():
    with pytest.raises(ConfigError, match="RingGraph: weights is 'best'; choose one of"):
        RingGraph(weights="best")
    with pytest.raises(ConfigError, match="Torus: rows is 0; it must be a whole number"):
        Torus(rows=0)
    with pytest.raises(ConfigError, match=r"Torus: cols is 2\.5; it must be a whole number"):
        Torus(cols=2.5)


@pytest.mark.parametrize(
    "pair", [(0,), (0, 1, 2), (0, -1), (0, "1"), 3, (0.0, 1), (True, 0), (0, 1 << 25)]
)
def test_what_is_no_edge_is_named(pair):
    with pytest.raises(ConfigError, match=r"is no edge; an edge is a pair of ranks such as \(0, 1"):
        Graph(((0, 1), pair))


def test_graphs_that_cannot_be_topologies_are_refused():
    with pytest.raises(ConfigError, match=r"directed; give graph\.to_undirected"):
        Graph.of(networkx.DiGraph([(0, 1)]))
    with pytest.raises(
        ConfigError, match=r"begin with .'a', 'b'.; give networkx\.convert_node_label"
    ):
        Graph.of(networkx.Graph([("a", "b")]))
    with pytest.raises(ConfigError, match="the nodes must be the ranks 0 to N - 1"):
        Graph.of(networkx.Graph())
    with pytest.raises(ConfigError, match="not connected: node 2 has no edge"):
        Graph.of(networkx.empty_graph(3))


def test_fastest_is_refused_where_it_would_take_too_long():
    with pytest.raises(ConfigError, match="up to 64 workers and 1024 edges, and this graph has 65"):
        Graph.of(networkx.cycle_graph(65), weights="fastest")
    with pytest.raises(ConfigError, match="has 64 and 2016; choose weights='metropolis'"):
        Graph.of(networkx.complete_graph(64), weights="fastest")
    assert Exponential(weights="fastest").spectral_gap(1000) > 0


def test_a_message_does_not_list_a_thousand_edges():
    line = Graph.of(networkx.path_graph(1000))
    with pytest.raises(ConfigError, match="rank 1000 is none of the 1000 workers") as caught:
        line.row(1000, 1000)
    assert len(str(caught.value)) < 200
