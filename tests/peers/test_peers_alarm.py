"""After a NaN at one rank every rank of a gossip ends, naming rank and tensor; nobody waits."""

from __future__ import annotations

import pytest
from test_peers_faults import SPANS, UNBIASED, rounds_until_all_end

import thinwire as tw
from thinwire import QSGD, Identity, TopK
from thinwire.topology import Topology

EIGHT = QSGD(bits=8, norm="max")


def methods(graph: Topology) -> list[tuple[tw.Exchange, tw.Compressor]]:
    """Every exchange over that graph, with a given consensus step and with one to be measured."""
    return [
        (tw.Gossip(graph), UNBIASED),
        (tw.Gossip(graph, "before", 0.5), UNBIASED),
        (tw.Choco(graph), TopK(density=0.3)),
        (tw.Choco(graph, gamma=0.5, trigger=1e9), TopK(density=0.3)),
        (tw.DeepSqueeze(graph), EIGHT),
        (tw.DeepSqueeze(graph, gamma=0.5), EIGHT),
        (tw.DPSGD(graph), Identity()),
        (tw.DPSGD(graph, "before"), Identity()),
        (tw.EdgeGossip(graph), UNBIASED),
        (tw.EdgeGossip(graph, gamma=0.5), EIGHT),
    ]


@pytest.mark.parametrize(("exchange", "C"), methods(tw.RingGraph()), ids=repr)
@pytest.mark.parametrize("N", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("bad_round", [0, 1, 4])
def test_a_nan_ends_every_rank_of_a_ring_within_half_of_it(exchange, C, N, bad_round) -> None:
    bad = N // 2
    ends, anchors = rounds_until_all_end(exchange, C, N, bad, bad_round, bad_round + N)
    for rank, end in enumerate(ends):
        assert isinstance(end.error, tw.NonFiniteError), (rank, end.error)
        far = min((rank - bad) % N, (bad - rank) % N)
        done = len(anchors[rank]) - 1
        assert end.error.found == [(bad, "b")], (rank, end.error)
        assert end.error.round == bad_round
        assert done <= bad_round + max(0, far - 1), (rank, done)
        assert all(bool(x.isfinite().all()) for x in anchors[rank])


@pytest.mark.parametrize(
    ("exchange", "C"),
    [
        (tw.EdgeGossip(tw.RandomMatching()), UNBIASED),
        (tw.EdgeGossip(tw.RandomMatching(), gamma=0.5), UNBIASED),
        (tw.DeepSqueeze(tw.RandomMatching(), gamma=0.5), EIGHT),
        (tw.DPSGD(tw.RandomMatching()), Identity()),
        (tw.DPSGD(tw.OnePeerExponential()), Identity()),
    ],
    ids=repr,
)
@pytest.mark.parametrize("N", [2, 4, 8])
def test_a_nan_on_a_graph_that_changes_ends_every_rank(exchange, C, N) -> None:
    for bad_round in (0, 3):
        ends, anchors = rounds_until_all_end(exchange, C, N, N - 1, bad_round, bad_round + 3 * N)
        for rank, end in enumerate(ends):
            assert isinstance(end.error, tw.NonFiniteError), (rank, end.error)
            assert end.error.found == [(N - 1, "b")]
            assert all(bool(x.isfinite().all()) for x in anchors[rank])


def test_spans_have_the_tensor_that_is_named() -> None:
    assert SPANS.names[-1] == "b"
