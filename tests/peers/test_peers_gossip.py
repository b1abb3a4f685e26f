"""Gossip in one or two vectors is gossip with a replica of every neighbour, as the papers write it.

Each method stands here three times: the textbook, with all its replicas, in float64; the compact
form, in float64, equal to it to 1e-12; and the library, float32, against the textbook fed with
the library's own messages, to 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from peer_talks import Seen, heres, near, run, same_bits, total

import thinwire as tw
from thinwire import QSGD, Identity, Levels, Sign, TopK
from thinwire.compress import Compressor
from thinwire.flat import Spans
from thinwire.wire.frame import HEADER, Kind

N, D, ROUNDS, ETA = 8, 60, 12, 0.1
GRAPHS = (
    tw.RingGraph(),
    tw.RingGraph(weights="lazy"),
    tw.Torus(rows=2, cols=4),
    tw.Hypercube(),
    tw.Complete(),
    tw.Exponential(),
    tw.Star(),
    tw.Graph(tuple((i, i + 1) for i in range(N - 1))),
)
graphs = pytest.mark.parametrize("graph", GRAPHS, ids=repr)
UNBIASED = QSGD(bits=8, norm="max", bucket=32, scale="none", coding="fixed")

rng = np.random.default_rng(8)
CURVES = rng.uniform(0.2, 1.0, (N, D))
GOALS = rng.normal(0, 3, (N, D))
START = rng.normal(0, 1, D)
"""Worker i minimises sum_k CURVES[i, k] (x_k - GOALS[i, k])^2 / 2: very different data."""

Op = Callable[[int, int, np.ndarray], np.ndarray]
"""(rank, round, v) -> what is said of v."""


def delta64(i: int, x: np.ndarray) -> np.ndarray:
    return ETA * CURVES[i] * (x - GOALS[i])


def delta32(i: int, round: int, x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(delta64(i, x.double().numpy())).float()


def dithered(rank: int, round: int, v: np.ndarray) -> np.ndarray:
    """QSGD with 7 levels of the largest magnitude; odd, its draws its own."""
    u = np.random.default_rng((rank, round)).uniform(size=v.shape)
    top = np.abs(v).max()
    return np.sign(v) * np.floor(7 * np.abs(v) / top + u) * top / 7


def largest(rank: int, round: int, v: np.ndarray) -> np.ndarray:
    """The largest tenth."""
    return np.where(np.abs(v) >= np.sort(np.abs(v))[-D // 10], v, 0)


# The textbooks: x (N, D); hat the replicas, the same at all who hold them.


def dcd(W: np.ndarray, Q: Op, after: bool) -> list[np.ndarray]:
    x, hat, path = np.tile(START, (N, 1)), np.tile(START, (N, 1)), []
    for t in range(ROUNDS):
        half = np.array([x[i] - delta64(i, x[i]) for i in range(N)])
        goal = half if after else W @ hat + half - x
        hat = hat + np.array([-Q(i, t, -(goal[i] - hat[i])) for i in range(N)])
        x = W @ hat if after else hat.copy()
        path.append(x)
    return path


def choco(W: np.ndarray, Q: Op, gamma: float) -> list[np.ndarray]:
    x, hat, path = np.tile(START, (N, 1)), np.tile(START, (N, 1)), []
    for t in range(ROUNDS):
        x = np.array([x[i] - delta64(i, x[i]) for i in range(N)])
        hat = hat + np.array([-Q(i, t, -(x[i] - hat[i])) for i in range(N)])
        x = x + gamma * (W @ hat - hat)
        path.append(x)
    return path


def deep_squeeze(W: np.ndarray, Q: Op, gamma: float) -> list[np.ndarray]:
    x, m, path = np.tile(START, (N, 1)), np.zeros((N, D)), []
    for t in range(ROUNDS):
        x = np.array([x[i] - delta64(i, x[i]) for i in range(N)])
        v = x + m
        said = np.array([Q(i, t, v[i]) for i in range(N)])
        m, x = v - said, x + gamma * (W - np.eye(N)) @ said
        path.append(x)
    return path


# The compact forms, as the design writes them.


def compact_gossip(W: np.ndarray, Q: Op, after: bool) -> list[np.ndarray]:
    x, p, path = np.tile(START, (N, 1)), np.zeros((N, D)), []
    for t in range(ROUNDS):
        u = np.array([delta64(i, x[i]) for i in range(N)]) + p
        said = np.array([Q(i, t, u[i]) for i in range(N)])
        p, x = p - said + W @ said, x - (W @ said if after else said)
        path.append(x)
    return path


def compact_choco(W: np.ndarray, Q: Op, gamma: float) -> list[np.ndarray]:
    x, p, r, path = np.tile(START, (N, 1)), np.zeros((N, D)), np.zeros((N, D)), []
    for t in range(ROUNDS):
        delta = np.array([delta64(i, x[i]) for i in range(N)])
        u = delta + r
        said = np.array([Q(i, t, u[i]) for i in range(N)])
        p = p - said + W @ said
        r, x = u - said + gamma * p, x - (delta + gamma * p)
        path.append(x)
    return path


def alike(mine: list[np.ndarray], theirs: list[np.ndarray], scale: float) -> None:
    for t, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        worst = np.abs(a - b).max()
        assert worst <= scale * max(1, np.abs(b).max()), (t, worst)


@graphs
@pytest.mark.parametrize("after", [True, False])
def test_one_vector_is_dcd_with_all_its_replicas(graph: tw.Topology, after: bool) -> None:
    W = graph.mixing(N)
    alike(compact_gossip(W, dithered, after), dcd(W, dithered, after), 1e-12)


@graphs
@pytest.mark.parametrize("Q", [dithered, largest])
def test_two_vectors_are_choco_with_all_its_replicas(graph: tw.Topology, Q: Op) -> None:
    W = graph.mixing(N)
    alike(compact_choco(W, Q, 0.3), choco(W, Q, 0.3), 1e-12)


def test_a_wrong_witness_is_noticed() -> None:
    W = tw.RingGraph().mixing(N)
    with pytest.raises(AssertionError):
        alike(compact_gossip(W, dithered, True), dcd(W, dithered, False), 1e-5)
    with pytest.raises(AssertionError):
        alike(compact_choco(W, largest, 0.3), choco(W, largest, 0.3001), 1e-5)


# The library.


def library(exchange: tw.Exchange, C: Compressor) -> list[Seen]:
    return run(exchange, C, torch.from_numpy(START).float(), N, ROUNDS, delta32)


def fed(seen: list[Seen]) -> Op:
    """Returns the operator that says what the library said, if it fits what it is given."""
    C = seen[0].at[0].compressor

    def Q(rank: int, round: int, v: np.ndarray) -> np.ndarray:
        said = seen[round].said(rank).double().numpy()
        spoken = (said != 0) & (np.abs(v) > 1e-4)
        assert (np.sign(said) == np.sign(v))[spoken].all(), (rank, round)
        if isinstance(C, QSGD):  # Within a step, and a little more where the scale is fitted.
            assert np.abs(said - v).max() <= 1.5 * np.abs(v).max() / C.s + 1e-5, (rank, round)
        elif C in (TopK(density=0.1), TopK(density=0.3)):
            assert np.abs(said - v)[said != 0].max() <= 1e-4, (rank, round)
        return said

    return Q


def test_a_message_of_something_else_is_noticed() -> None:
    for exchange, C in ((tw.Gossip(), UNBIASED), (tw.Choco(gamma=0.3), TopK(density=0.1))):
        seen = library(exchange, C)
        owed = seen[3].mems[0]
        u = seen[3].deltas[0] + owed["r" if "r" in owed else "p"]
        fed(seen)(0, 3, u.double().numpy())
        for wrong in (seen[3].deltas[0], 1.05 * u, -u):
            with pytest.raises(AssertionError):
                fed(seen)(0, 3, wrong.double().numpy())


def path(seen: list[Seen]) -> list[np.ndarray]:
    return [np.array([x.double().numpy() for x in one.moved]) for one in seen]


@graphs
@pytest.mark.parametrize("mixing", ["after", "before"])
@pytest.mark.parametrize("C", [UNBIASED, QSGD(bits=5, norm="max", scale="none")], ids=repr)
def test_gossip_is_dcd_fed_with_its_own_messages(graph, mixing, C) -> None:
    seen = library(tw.Gossip(graph, mixing), C)
    alike(path(seen), dcd(graph.mixing(N), fed(seen), mixing == "after"), 1e-5)


@graphs
@pytest.mark.parametrize("C", [TopK(density=0.1), Sign(), TopK(k=9) >> Sign()], ids=repr)
def test_choco_is_the_textbooks_fed_with_its_own_messages(graph, C) -> None:
    seen = library(tw.Choco(graph, gamma=0.3), C)
    alike(path(seen), choco(graph.mixing(N), fed(seen), 0.3), 1e-5)


@graphs
@pytest.mark.parametrize("C", [QSGD(bits=8, norm="max"), TopK(density=0.3)], ids=repr)
def test_deep_squeeze_is_the_textbooks_fed_with_its_own_messages(graph, C) -> None:
    seen = library(tw.DeepSqueeze(graph, gamma=0.3), C)
    alike(path(seen), deep_squeeze(graph.mixing(N), fed(seen), 0.3), 1e-5)


@pytest.mark.parametrize("mixing", ["after", "before"])
@pytest.mark.parametrize("graph", [*GRAPHS, tw.RandomMatching(), tw.OnePeerExponential()], ids=repr)
def test_d_psgd_mixes_whole_models_by_w(graph: tw.Topology, mixing: str) -> None:
    for t, seen in enumerate(library(tw.DPSGD(graph, mixing), Identity())):
        W = graph.mixing(N, t, seed=seen.at[0].key.seed)
        X, G = (np.array([v.double().numpy() for v in vs]) for vs in (seen.anchors, seen.deltas))
        expected = W @ X - G if mixing == "before" else W @ (X - G)
        alike([np.array([x.double().numpy() for x in seen.moved])], [expected], 1e-6)


@pytest.mark.parametrize("mixing", ["after", "before"])
def test_d_psgd_with_a_quantizer_mixes_what_was_said(mixing: str) -> None:
    W = tw.Hypercube().mixing(N)
    for seen in library(tw.DPSGD(tw.Hypercube(), mixing), UNBIASED):
        G, said = (np.array([v.double().numpy() for v in vs])
                   for vs in (seen.deltas, [seen.said(r) for r in range(N)]))  # fmt: skip
        expected = W @ said - (G if mixing == "before" else 0)
        alike([np.array([x.double().numpy() for x in seen.moved])], [expected], 1e-6)


def test_on_a_complete_graph_gossip_after_the_steps_is_the_mean_of_the_messages() -> None:
    for seen in library(tw.Gossip(tw.Complete()), Levels(levels=255, scale="none")):
        mean = total([seen.said(r) for r in range(N)]) / N
        for direction in seen.directions:
            near(direction, mean, 1e-6 * float(mean.abs().max()))


# The laws.

DIFFERENCES = (
    (tw.Gossip(), UNBIASED),
    (tw.Gossip(tw.Torus(rows=2, cols=4), "before"), UNBIASED),
    (tw.Choco(), TopK(density=0.1)),
    (tw.Choco(tw.Star(), gamma=0.4), Sign()),
    (tw.Choco(tw.Hypercube(), trigger=5.0, gamma=0.3), TopK(k=9) >> Sign()),
)
differences = pytest.mark.parametrize(("exchange", "C"), DIFFERENCES, ids=repr)


@differences
def test_the_p_of_all_workers_sum_to_zero_after_every_round(exchange, C) -> None:
    apart = 0.0
    for t, seen in enumerate(library(exchange, C)):
        p = [mem["p"] for mem in seen.after]
        largest = max(float(v.abs().max()) for v in p)
        near(total(p), torch.zeros(D), 1e-5 * N * max(1.0, largest), t)
        apart = max(apart, largest)
    assert apart > 0.1


@differences
def test_p_is_ones_own_replica_less_the_mix_of_the_replicas(exchange, C) -> None:
    W, hat = exchange.topology.mixing(N), np.tile(START, (N, 1))
    for seen in library(exchange, C):
        hat = hat - np.array([seen.said(r).double().numpy() for r in range(N)])
        p = np.array([mem["p"].double().numpy() for mem in seen.after])
        alike([p], [hat - W @ hat], 1e-5)


@differences
@pytest.mark.parametrize("lost", [[(2, 5, 0)], [(2, 5, 0), (3, 5, 1), (3, 0, 0)]], ids=repr)
def test_p_is_right_again_after_messages_were_lost(exchange, C, lost) -> None:
    W, hat = exchange.topology.mixing(N), np.tile(START, (N, 1))
    off = []
    start = torch.from_numpy(START).float()
    for seen in run(exchange, C, start, N, ROUNDS, delta32, lost):
        hat = hat - np.array([seen.said(r).double().numpy() for r in range(N)])
        p = np.array([mem["p"].double().numpy() for mem in seen.after])
        off.append(float(np.abs(p - (hat - W @ hat)).max()))
    assert max(off[:2]) < 1e-4
    assert max(off[2:6]) > 1e-3, "nothing was lost"
    assert max(off[6:]) < 1e-4, off


@pytest.mark.parametrize(
    ("exchange", "C"),
    [
        (tw.Choco(), TopK(density=0.1)),
        (tw.Choco(tw.Complete(), gamma=1.0), Sign()),
        (tw.Choco(tw.Star(), gamma=0.4, trigger=20.0), Sign()),
        (tw.DeepSqueeze(), QSGD(bits=8, norm="max")),
        (tw.DeepSqueeze(tw.RandomMatching(), gamma=0.5), QSGD(bits=8, norm="max")),
        (tw.DPSGD(tw.RandomMatching()), Identity()),
        (tw.DPSGD(tw.OnePeerExponential(), "before"), Identity()),
    ],
    ids=repr,
)
def test_the_mean_anchor_moves_by_exactly_the_mean_delta(exchange, C) -> None:
    for t, seen in enumerate(library(exchange, C)):
        expected = (total(seen.anchors) - total(seen.deltas)) / N
        near(total(seen.moved) / N, expected, 2e-6 * max(1.0, float(expected.abs().max())), t)


def test_the_mean_anchor_of_gossip_moves_by_the_mean_of_what_was_said() -> None:
    for mixing in ("after", "before"):
        for seen in library(tw.Gossip(tw.Hypercube(), mixing), UNBIASED):
            said = total([seen.said(r) for r in range(N)])
            near(total(seen.moved) / N, (total(seen.anchors) - said) / N, 3e-6)


@pytest.mark.parametrize(
    ("exchange", "C"),
    [
        *DIFFERENCES,
        (tw.DPSGD(tw.RandomMatching()), Identity()),
        (tw.DeepSqueeze(tw.Exponential(), gamma=0.2), QSGD(bits=8)),
    ],
    ids=repr,
)
def test_each_neighbour_hears_the_same_frame_and_nobody_else(exchange, C) -> None:
    for t, seen in enumerate(library(exchange, C)[:4]):
        seed = seen.at[0].key.seed
        for rank, end in enumerate(seen.ends):
            said = [(to, f) for to, f in end.posted if f[3] != Kind.NUMBER]
            listeners = exchange.topology.listeners(rank, N, t, seed)
            assert [to for to, _ in said] == sorted(listeners, key=lambda j: (j - rank) % N)
            assert len({f for _, f in said}) <= 1
            degree = exchange.topology.degree(N)
            assert sum(len(f) for _, f in said) <= degree * (HEADER + C.nbytes(D))
            if C.exact:
                spoken = [f for _, f in said if f[3] == Kind.SAID]
                assert all(len(f) == HEADER + C.nbytes(D) for f in spoken)
            heard = [s for s, f in end.heard if f[3] != Kind.NUMBER]
            speakers = exchange.topology.neighbours(rank, N, t, seed)
            assert heard == sorted(speakers, key=lambda j: (rank - j) % N)


def test_the_memory_is_as_many_vectors_as_the_docstring_says() -> None:
    for graph in (tw.RingGraph(), tw.Complete()):
        for exchange, names in (
            (tw.Gossip(graph), {"p"}),
            (tw.Choco(graph, gamma=0.5), {"p", "r"}),
            (tw.DeepSqueeze(graph, gamma=0.5), {"residual"}),
            (tw.DPSGD(graph), set()),
        ):
            C = Identity() if isinstance(exchange, tw.DPSGD) else UNBIASED
            for mem in library(exchange, C)[-1].after:
                assert {name for name, v in mem.items() if v.numel() == D} == names


def test_a_round_leaves_its_input_as_it_was() -> None:
    for exchange, C in (*DIFFERENCES, (tw.DPSGD(), Identity()), (tw.DeepSqueeze(), UNBIASED)):
        seen = library(exchange, C)
        for now, then in pairwise(seen):
            for a, b in zip(now.after, then.mems, strict=True):
                for name in a:
                    same_bits(a[name], b[name], (exchange, name))
            for a, b in zip(now.moved, then.anchors, strict=True):
                same_bits(a, b)
        again = library(exchange, C)
        assert [e.posted for s in seen for e in s.ends] == [e.posted for s in again for e in s.ends]


def test_one_worker_alone_moves_by_what_it_says() -> None:
    d = torch.linspace(-1, 1, 9)
    for exchange in (tw.Gossip(), tw.Gossip(mixing="before"), tw.Choco(), tw.DeepSqueeze()):
        (seen,) = run(exchange, Identity(), torch.ones(9), 1, 1, lambda r, t, x: d)
        near(seen.directions[0], d, 1e-7)
        assert seen.ends[0].posted == []


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("d", [0, 1, 7])
def test_any_number_of_workers_and_any_length(workers: int, d: int) -> None:
    for exchange in (tw.Gossip(), tw.Choco(), tw.DeepSqueeze(), tw.DPSGD(tw.RandomMatching())):
        for seen in run(
            exchange, QSGD(bits=8, norm="max", scale="none"), torch.ones(d), workers, 3,
            lambda r, t, x: 0.1 * x * (r + 1),
        ):  # fmt: skip
            for direction in seen.directions:
                assert direction.shape == (d,)
                assert bool(direction.isfinite().all())


# The consensus step and the trigger.


@pytest.mark.parametrize(
    "C", [TopK(density=0.1), Sign(), TopK(k=9) >> Sign(), Identity()], ids=repr
)
@pytest.mark.parametrize("method", [tw.Choco, tw.DeepSqueeze])
def test_the_measured_step_is_seven_tenths_of_the_mean_contraction(method, C) -> None:
    seen = library(method(), C)
    contractions = []
    for rank in range(N):
        u = seen[0].deltas[rank].double()
        if method is tw.DeepSqueeze:
            u = seen[0].anchors[rank].double() - u
        left = u - seen[0].said(rank)
        contractions.append(1 - float((left @ left) / (u @ u)))
    gamma = min(1.0, 0.7 * sum(contractions) / N)
    for one in seen:
        for mem in one.after:
            assert float(mem["gamma"]) == pytest.approx(gamma, rel=1e-5)
            same_bits(mem["gamma"].view(1), seen[0].after[0]["gamma"].view(1))
    assert all(f[3] != Kind.NUMBER for one in seen[1:] for e in one.ends for _, f in e.posted)


def test_a_step_is_measured_once_there_is_something_to_say() -> None:
    def learn(rank: int, round: int, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(D) if round < 2 else torch.randn(D)

    seen = run(tw.Choco(), TopK(density=0.1), torch.zeros(D), 4, 4, learn)
    assert ["gamma" in one.after[0] for one in seen] == [False, False, True, True]
    assert 0.05 < float(seen[-1].after[0]["gamma"]) < 0.7


def test_a_step_that_is_given_is_taken() -> None:
    for method in (tw.Choco, tw.DeepSqueeze):
        for one in library(method(gamma=0.25), UNBIASED):
            assert all(float(mem["gamma"]) == 0.25 for mem in one.after)
            assert all(f[3] != Kind.NUMBER for e in one.ends for _, f in e.posted)
        for gamma in (0.0, -1.0, 1.5):
            with pytest.raises(tw.ConfigError, match="gamma"):
                method(gamma=gamma)


def test_a_silent_round_sends_a_header_and_counts_as_saying_zero() -> None:
    exchange = tw.Choco(tw.RingGraph(), gamma=0.5, trigger=1.0)

    def learn(rank: int, round: int, x: torch.Tensor) -> torch.Tensor:
        # Rank 0 has nothing worth saying for three rounds, then enough.
        return torch.full((D,), 0.06 if rank == 0 else 1.0)

    seen = run(exchange, TopK(density=0.5), torch.zeros(D), 4, 6, learn)
    silent = [[f for _, f in one.ends[0].posted if f[3] == Kind.SILENCE] for one in seen]
    assert [len(f) for f in silent[0]] == [HEADER] * 2
    assert seen[0].ends[0].sent == 2 * 26
    same_bits(seen[0].said(0), torch.zeros(D))
    for one in seen:
        for rank in range(4):
            u = one.deltas[rank] + one.mems[rank]["r"]
            quiet = float(u.double().square().sum()) <= 1.0
            assert all((f[3] == Kind.SILENCE) == quiet for _, f in one.ends[rank].posted)
            if quiet:
                p = one.after[rank]["p"]
                near(one.after[rank]["r"], u + 0.5 * p, 1e-6)
    assert any(not f for f in silent), "its say adds up"


def test_a_trigger_does_not_spoil_the_measured_step() -> None:
    # Nobody speaks in round 0: there is nothing to measure a contraction on yet.
    def learn(rank: int, round: int, x: torch.Tensor) -> torch.Tensor:
        return torch.full((D,), 0.05 if round == 0 else 1.0)

    exchange = tw.Choco(trigger=1.0)
    seen = run(exchange, TopK(density=0.5), torch.zeros(D), 4, 3, learn)
    assert {f[3] for e in seen[0].ends for _, f in e.posted} <= {Kind.SILENCE, Kind.NUMBER}
    assert float(seen[-1].after[0]["gamma"]) > 0.1


# Convergence.


def left(exchange: tw.Exchange, C: Compressor, rounds: int = 300) -> tuple[float, float]:
    """Returns the distance of the mean from the minimum, and of the workers from their mean."""
    best = (CURVES * GOALS).sum(0) / CURVES.sum(0)

    def learn(rank: int, round: int, x: torch.Tensor) -> torch.Tensor:
        return delta32(rank, round, x) * (0.5 if round < rounds // 2 else 0.05)

    seen = run(exchange, C, torch.from_numpy(START).float(), N, rounds, learn)
    X = np.array([x.double().numpy() for x in seen[-1].moved])
    mean = X.mean(0)
    return (float(np.linalg.norm(mean - best) / np.linalg.norm(best)),
            float(np.linalg.norm(X - mean, axis=1).mean() / np.linalg.norm(best)))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exchange", "C"),
    [
        (tw.Gossip(tw.Hypercube()), UNBIASED),
        (tw.Gossip(tw.Hypercube(), "before"), UNBIASED),
        (tw.Choco(tw.Hypercube()), TopK(density=0.1)),
        (tw.Choco(tw.Hypercube()), Sign()),
        (tw.DPSGD(tw.Hypercube()), Identity()),
        (tw.DPSGD(tw.RandomMatching(), "before"), Identity()),
        (tw.DeepSqueeze(tw.Hypercube()), QSGD(bits=8, norm="max")),
    ],
    ids=repr,
)
def test_workers_with_different_data_meet_near_the_common_minimum(exchange, C) -> None:
    mean, apart = left(exchange, C)
    assert mean < 0.08
    assert apart < 0.2


# What is refused.


@pytest.mark.parametrize("exchange", [tw.Gossip(), tw.DPSGD()], ids=repr)
@pytest.mark.parametrize("C", [TopK(density=0.1), Sign(), QSGD(bits=8)], ids=repr)
def test_a_biased_operator_is_refused_and_the_choices_named(exchange, C) -> None:
    with pytest.raises(tw.ConfigError, match=r"is biased.*unbiased operator.*QSGD.*Choco"):
        exchange.check(C, Spans.of(D))
    exchange.check(UNBIASED, Spans.of(D))


@pytest.mark.parametrize("exchange", [tw.Choco(), tw.DeepSqueeze()], ids=repr)
def test_no_contraction_is_refused_and_the_choices_named(exchange) -> None:
    with pytest.raises(tw.ConfigError, match=r"no contraction.*scale='fit'"):
        exchange.check(QSGD(bits=2, scale="none"), Spans.of(1000))


@pytest.mark.parametrize("graph", [tw.RandomMatching(), tw.OnePeerExponential()], ids=repr)
@pytest.mark.parametrize("method", [tw.Gossip, tw.Choco])
def test_differences_on_a_changing_graph_are_refused_and_the_choices_named(method, graph) -> None:
    with pytest.raises(tw.ConfigError, match=r"changes by round.*DPSGD.*RingGraph.*Torus"):
        method(graph).init(heres(UNBIASED, 4, N)[0])


METHODS = pytest.mark.parametrize("method", [tw.Gossip, tw.Choco, tw.DeepSqueeze, tw.DPSGD])


@METHODS
@pytest.mark.parametrize(
    ("graph", "says"),
    [
        (tw.Graph(((0, 1), (2, 3), (4, 5), (6, 7))), "not connected.*rank 2 is not; add an edge"),
        (tw.Torus(rows=3, cols=3), "N=8.*9 workers|9.*8"),
        (tw.Graph(((0, 1), (1, 9))), "join ranks 0 to 9, 10 workers, but N is 8"),
        (tw.Graph(tuple((i, i) for i in range(N))), "only self-loops: none hears another"),
    ],
    ids=repr,
)
def test_a_graph_over_which_they_would_not_agree_is_refused(method, graph, says) -> None:
    with pytest.raises(tw.ConfigError, match=says):
        method(graph).init(heres(UNBIASED, 4, N)[0])


def test_a_shell_refuses_them_when_it_is_made() -> None:
    net = torch.nn.Linear(2, 1)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    for exchange, C, says in (
        (tw.Gossip(), TopK(density=0.5), "biased"),
        (tw.Gossip(tw.RandomMatching()), UNBIASED, "changes by round"),
        (tw.Gossip(tw.Torus(rows=3, cols=3)), UNBIASED, "9"),
    ):
        with pytest.raises(tw.ConfigError, match=says):
            tw.LockStep(
                [
                    tw.LocalSGD(net, inner, compressor=C, exchange=exchange, group=tw.Seat(r, 2))
                    for r in range(2)
                ]
            )
