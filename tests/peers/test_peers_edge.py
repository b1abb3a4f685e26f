"""EdgeGossip is CHOCO on each edge by itself: two replicas an edge, on any graph that changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peer_talks import Seen, heres, near, run, same_bits, total
from test_peers_gossip import CURVES, GOALS, START, D, N, alike, delta32, path

import thinwire as tw
from thinwire import QSGD, Identity, Sign, TopK
from thinwire.wire.body import Reader, unpack
from thinwire.wire.frame import HEADER, Kind

ROUNDS = 14
GRAPHS = (tw.RandomMatching(), tw.RingGraph(), tw.Hypercube(), tw.Star())
graphs = pytest.mark.parametrize("graph", GRAPHS, ids=repr)
operators = pytest.mark.parametrize(
    "C", [TopK(density=0.1), Sign(), QSGD(bits=8, norm="max", scale="none")], ids=repr
)


def library(graph: tw.Topology, C: tw.Compressor, gamma: float | None = 0.4) -> list[Seen]:
    start = torch.from_numpy(START).float()
    return run(tw.EdgeGossip(graph, gamma=gamma), C, start, N, ROUNDS, delta32)


def said(one: Seen, i: int, j: int) -> np.ndarray:
    """What rank i told rank j in that round, decoded from the bytes."""
    here = one.at[i]
    (frame,) = [f for to, f in one.ends[i].posted if to == j and f[3] == Kind.SAID]
    reader, C = Reader(frame[HEADER:], "here"), here.compressor
    decoded = C.decompress(unpack(reader, C, here.spans, here.key.of_part(j)))
    reader.end()
    return decoded.double().numpy()


def textbook(seen: list[Seen], graph: tw.Topology, gamma: float) -> list[np.ndarray]:
    """CHOCO with a replica hat[i, j] of i at j, in float64, fed with what the library said."""
    x, hat, found = np.tile(START, (N, 1)), np.tile(START, (N, N, 1)), []
    for t, one in enumerate(seen):
        W = graph.mixing(N, t, one.at[0].key.seed)
        x = x - np.array([d.double().numpy() for d in one.deltas])
        for i, j in zip(*np.nonzero(W), strict=True):
            if i != j:
                hat[i, j] -= said(one, i, j)
        pull = [sum(W[i, j] * (hat[j, i] - hat[i, j]) for j in range(N)) for i in range(N)]
        x = x + gamma * np.array(pull)
        found.append(x)
    return found


@graphs
@operators
def test_it_is_choco_on_each_edge_fed_with_its_own_messages(graph, C) -> None:
    seen = library(graph, C)
    alike(path(seen), textbook(seen, graph, 0.4), 1e-5)


def test_a_wrong_witness_is_noticed() -> None:
    seen = library(tw.RandomMatching(), Sign())
    with pytest.raises(AssertionError):
        alike(path(seen), textbook(seen, tw.RandomMatching(), 0.41), 1e-5)


@graphs
@operators
def test_both_ends_of_an_edge_hold_the_same_two_replicas_to_the_last_bit(graph, C) -> None:
    met = 0
    for one in library(graph, C):
        for i, mem in enumerate(one.after):
            for name, replica in mem.items():
                if name.startswith("mine/"):
                    j = int(name.removeprefix("mine/"))
                    same_bits(replica, one.after[j][f"theirs/{i}"], (i, j))
                    met += 1
    assert met >= N * (ROUNDS - 1)


@graphs
@operators
def test_the_mean_anchor_moves_by_exactly_the_mean_delta(graph, C) -> None:
    for one in library(graph, C):
        expected = (total(one.anchors) - total(one.deltas)) / N
        near(total(one.moved) / N, expected, 2e-6 * max(1.0, float(expected.abs().max())))


@graphs
def test_what_is_kept_is_two_vectors_for_each_worker_ever_met(graph) -> None:
    ever: list[set[int]] = [set() for _ in range(N)]
    for t, one in enumerate(library(graph, Sign())):
        for i, mem in enumerate(one.after):
            ever[i] |= set(graph.neighbours(i, N, t, one.at[i].key.seed))
            vectors = {name for name, v in mem.items() if v.numel() == D}
            pairs = {f"{side}/{j}" for j in ever[i] for side in ("mine", "theirs")}
            assert vectors == {"start", *pairs}


@graphs
def test_exact_messages_and_a_whole_step_make_it_d_psgd(graph) -> None:
    seen = library(graph, Identity(), gamma=1.0)
    start = torch.from_numpy(START).float()
    plain = run(tw.DPSGD(graph), Identity(), start, N, ROUNDS, delta32)
    alike(path(seen), path(plain), 1e-5)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("d", [0, 1, 7])
def test_any_number_of_workers_and_any_length(workers: int, d: int) -> None:
    for graph in (tw.RandomMatching(), tw.RingGraph(), tw.Complete()):
        for C in (Identity(), Sign(), QSGD(bits=4, norm="max", scale="none")):
            for one in run(tw.EdgeGossip(graph), C, torch.ones(d), workers, 4,
                           lambda r, t, x: 0.1 * x * (r + 1)):  # fmt: skip
                for direction in one.directions:
                    assert direction.shape == (d,)
                    assert bool(direction.isfinite().all())


def test_workers_with_different_data_draw_together_on_random_matchings() -> None:
    best = (CURVES * GOALS).sum(0) / CURVES.sum(0)
    start = torch.from_numpy(START).float()

    def learn(rank: int, round: int, x: torch.Tensor) -> torch.Tensor:
        return delta32(rank, round, x) * (0.5 if round < 60 else 0.1)

    seen = run(tw.EdgeGossip(), TopK(density=0.3), start, N, 160, learn)
    X = np.array([x.double().numpy() for x in seen[-1].moved])
    assert np.linalg.norm(X.mean(0) - best) < 0.2 * np.linalg.norm(best)
    assert np.linalg.norm(X - X.mean(0), axis=1).max() < 0.3 * np.linalg.norm(best)


def test_a_directed_graph_is_refused_and_the_choices_named() -> None:
    at = heres(Identity(), 4, N)[0]
    with pytest.raises(tw.ConfigError, match=r"directed. Use RandomMatching, or DPSGD"):
        tw.EdgeGossip(tw.OnePeerExponential()).init(at)
    with pytest.raises(tw.ConfigError, match="no contraction"):
        tw.EdgeGossip().check(QSGD(bits=2, scale="none"), at.spans.__class__.of(1000))
