"""What is particular to each graph: shapes, closed forms, fastest weights, draws."""

from __future__ import annotations

import math
from itertools import combinations

import networkx
import numpy as np
import pytest

from thinwire.topology import (
    Complete,
    Exponential,
    Graph,
    Hypercube,
    OnePeerExponential,
    RandomMatching,
    RingGraph,
    Star,
    Torus,
)

FROZEN = [(4,), (6,), (3,), (2,), (0,), (), (1,)]
SIZES = (1, 2, 3, 4, 5, 8, 13, 16)


def graph_of(topology, N):
    made = networkx.empty_graph(N)
    made.add_edges_from((i, j) for i in range(N) for j in topology.neighbours(i, N))
    return made


def same(a, b):
    return set(map(frozenset, a.edges)) == set(map(frozenset, b.edges))


@pytest.mark.parametrize("N", [3, 4, 5, 8, 13, 16])
def test_networkx_builds_the_same_graphs(N):
    assert same(graph_of(RingGraph(), N), networkx.cycle_graph(N))
    assert same(graph_of(Complete(), N), networkx.complete_graph(N))
    assert same(graph_of(Star(), N), networkx.star_graph(N - 1))
    jumps = [2**j for j in range(N) if 2**j < N]
    assert same(graph_of(Exponential(), N), networkx.circulant_graph(N, jumps))


@pytest.mark.parametrize(("rows", "cols"), [(2, 2), (2, 3), (2, 4), (3, 3), (3, 5), (4, 4), (1, 5)])
def test_networkx_builds_the_same_torus(rows, cols):
    grid = networkx.grid_2d_graph(rows, cols, periodic=True)
    grid = networkx.relabel_nodes(grid, {(i, j): i * cols + j for i, j in grid})
    grid.remove_edges_from(list(networkx.selfloop_edges(grid)))
    assert same(graph_of(Torus(rows, cols), rows * cols), grid)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_networkx_builds_the_same_hypercube(n):
    cube = networkx.hypercube_graph(n)
    bits = {bits: int("".join(map(str, bits)), 2) for bits in cube}
    assert same(graph_of(Hypercube(), 2**n), networkx.relabel_nodes(cube, bits))


def test_torus_sides_are_near_the_root_unless_given():
    sides = {N: Torus().sides(N) for N in (1, 2, 3, 5, 8, 12, 13, 16, 10_000)}
    assert sides == {
        1: (1, 1), 2: (1, 2), 3: (1, 3), 5: (1, 5), 8: (2, 4), 12: (3, 4), 13: (1, 13),
        16: (4, 4), 10_000: (100, 100),
    }  # fmt: skip
    assert Torus(rows=2).sides(12) == (2, 6)
    assert Torus(cols=2).sides(12) == (6, 2)


@pytest.mark.parametrize("weights", ["metropolis", "lazy", "fastest"])
def test_torus_with_a_side_of_two_counts_the_one_neighbour_once(weights):
    for topology, N in ((Torus(2, 5, weights=weights), 10), (Torus(5, 2, weights=weights), 10)):
        assert topology.degree(N) == 3
        W = topology.mixing(N)
        np.testing.assert_allclose(W.sum(1), 1, atol=1e-15)
        assert (W > 0).sum(1).max() <= 4
    assert Torus(2, 2, weights=weights).mixing(4) == pytest.approx(
        RingGraph(weights=weights).mixing(4)[np.ix_([0, 1, 3, 2], [0, 1, 3, 2])]
    )


@pytest.mark.parametrize("N", [3, 4, 5, 8, 13, 16, 100])
def test_ring_gap_is_its_closed_form(N):
    assert RingGraph().spectral_gap(N) == pytest.approx(1 - (1 + 2 * math.cos(2 * math.pi / N)) / 3)


@pytest.mark.parametrize("N", SIZES)
def test_complete_gap_is_one_whatever_the_weights(N):
    assert Complete().spectral_gap(N) == pytest.approx(1)
    assert Complete(weights="fastest").spectral_gap(N) == pytest.approx(1)
    np.testing.assert_allclose(Complete().mixing(N), np.full((N, N), 1 / N))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10])
def test_hypercube_gap_is_two_over_one_plus_its_dimension(n):
    assert Hypercube().spectral_gap(2**n) == pytest.approx(2 / (1 + n))
    assert Hypercube(weights="fastest").spectral_gap(2**n) == pytest.approx(2 / (1 + n))


@pytest.mark.parametrize("N", [3, 4, 5, 8, 13, 16])
def test_star_gap_is_one_over_n(N):
    assert Star().spectral_gap(N) == pytest.approx(1 / N)
    assert Star(weights="fastest").spectral_gap(N) == pytest.approx(1 / (N - 1))


@pytest.mark.parametrize(("rows", "cols"), [(3, 3), (3, 5), (4, 4), (5, 8)])
def test_torus_gap_is_its_closed_form(rows, cols):
    closed = (2 - 2 * math.cos(2 * math.pi / max(rows, cols))) / 5
    assert Torus(rows, cols).spectral_gap(rows * cols) == pytest.approx(closed)


def test_exponential_gap_is_at_least_that_of_a_hypercube():
    for N in range(2, 300):
        bound = 2 / (1 + math.ceil(math.log2(N)))
        assert Exponential().spectral_gap(N) >= bound - 1e-12
    assert [Exponential().degree(N) for N in (1, 2, 3, 8, 16)] == [0, 1, 2, 5, 7]


@pytest.mark.parametrize("N", [2, 4, 8, 16, 64])
def test_one_peer_exponential_reaches_the_exact_mean_in_a_period(N):
    topology = OnePeerExponential()
    P = np.eye(N)
    for round in range(3, 3 + topology.period(N)):
        P = topology.mixing(N, round) @ P
    np.testing.assert_allclose(P, 1 / N, atol=1e-15)
    assert topology.spectral_gap(N) == 1
    assert topology.rounds_to_halve(N) == math.log2(N)


@pytest.mark.parametrize("N", [2, 3, 5, 8, 13, 16, 1000])
def test_a_matching_pairs_all_but_at_most_one(N):
    for round in range(20):
        near = [RandomMatching().neighbours(rank, N, round, seed=9) for rank in range(N)]
        assert sum(not one for one in near) == N % 2
        assert all(near[one[0]] == (rank,) for rank, one in enumerate(near) if one)


def test_matchings_depend_on_seed_and_round_alone():
    draw = RandomMatching().mixing
    assert np.array_equal(draw(8, 3, 1), draw(8, 3, 1))
    seen = {draw(16, round, seed).tobytes() for round in range(20) for seed in range(5)}
    assert len(seen) == 100


def test_matchings_are_frozen_so_that_ranks_of_two_versions_still_pair():
    near = [RandomMatching().neighbours(rank, 7, round=3, seed=42) for rank in range(7)]
    assert near == FROZEN


def matchings(ranks):
    if len(ranks) <= 1:
        yield ()
        return
    first, *others = ranks
    for j in others:
        rest = [k for k in others if k != j]
        for left in matchings(rest):
            yield ((first, j), *left)


@pytest.mark.parametrize("N", [2, 3, 4, 5, 6, 7, 8])
def test_matching_gap_is_that_of_the_mean_over_all_matchings(N):
    every = []
    for alone in range(N) if N % 2 else (N,):
        for pairs in matchings([rank for rank in range(N) if rank != alone]):
            W = np.eye(N)
            for i, j in pairs:
                W[np.ix_([i, j], [i, j])] = 0.5
            every.append(W.T @ W)
    rho2 = np.linalg.eigvalsh(np.mean(every, 0))[-2]
    assert RandomMatching().spectral_gap(N) == pytest.approx(1 - math.sqrt(max(rho2, 0)))


@pytest.mark.parametrize("N", [4, 5])
def test_all_pairs_are_equally_likely(N):
    rounds = 6000
    met = sum(RandomMatching().mixing(N, round) for round in range(rounds)) * 2 / rounds
    p = 1 / (N - 1 + N % 2)
    six_sigma = 6 * math.sqrt(p * (1 - p) / rounds)
    for i, j in combinations(range(N), 2):
        assert abs(met[i, j] - p) < six_sigma


def test_fastest_finds_the_known_optima():
    shapes = {"petersen": networkx.petersen_graph(), "line": networkx.path_graph(7)}
    # Petersen: L_2 = 2, L_N = 5, all edges alike: 1 - 3/7. A line: 1/2 each is optimal.
    optimum = {"petersen": 4 / 7, "line": 1 - math.cos(math.pi / 7)}
    for name, shape in shapes.items():
        gap = Graph.of(shape, weights="fastest").spectral_gap(len(shape))
        assert optimum[name] - 1e-4 <= gap <= optimum[name] + 1e-9, name


@pytest.mark.parametrize("kind", [RingGraph, Hypercube, Complete, Star])
@pytest.mark.parametrize("N", [4, 8, 16])
def test_the_constant_weight_is_the_optimum_where_edges_are_alike(kind, N):
    solved = Graph.of(graph_of(kind(), N), weights="fastest").spectral_gap(N)
    assert kind(weights="fastest").spectral_gap(N) == pytest.approx(solved, abs=1e-4)


def test_no_nudge_of_the_fastest_weights_beats_them_by_more_than_promised():
    from thinwire.topology.fastest import DISTANCE

    shape = networkx.barbell_graph(4, 2)
    N, rng = len(shape), np.random.default_rng(0)
    W = Graph.of(shape, weights="fastest").mixing(N)
    best = 1 - np.sort(np.abs(np.linalg.eigvalsh(W)))[-2]
    for _ in range(2000):
        V = W.copy()
        for i, j in shape.edges:
            V[i, j] = V[j, i] = max(0, W[i, j] + 10 ** rng.uniform(-5, -1) * rng.standard_normal())
        np.fill_diagonal(V, 0)
        np.fill_diagonal(V, 1 - V.sum(1))
        if V.min() >= 0:
            assert 1 - np.sort(np.abs(np.linalg.eigvalsh(V)))[-2] <= best + DISTANCE


def test_fastest_weights_do_not_depend_on_how_ranks_are_named():
    shape = networkx.gnp_random_graph(16, 0.4, seed=3)
    W = Graph.of(shape, weights="fastest").mixing(16)
    order = np.random.default_rng(1).permutation(16)
    renamed = networkx.relabel_nodes(shape, {i: int(order[i]) for i in range(16)})
    V = Graph.of(renamed, weights="fastest").mixing(16)
    np.testing.assert_allclose(V[np.ix_(order, order)], W, atol=1e-5)


def test_graphs_with_the_same_edges_are_equal():
    assert Graph(((1, 0), (2, 1), (0, 1))) == Graph(((0, 1), (1, 2)))
    assert Graph([[1, 0]]) == Graph(((0, 1),)) == Graph((np.array([0, 1]).tolist(),))
    assert Graph(((0, 0), (0, 1))).mixing(2).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    multi = networkx.MultiGraph([(0, 1), (0, 1), (1, 2)])
    assert Graph.of(multi) == Graph(((0, 1), (1, 2)))


def test_a_row_of_ten_thousand_workers_needs_no_matrix():
    import tracemalloc

    N = 10_000
    some = networkx.random_regular_graph(4, N, seed=1)
    topologies = [RingGraph(), Torus(), Exponential(), OnePeerExponential(), RandomMatching()]
    tracemalloc.start()
    for topology in [*topologies, Graph.of(some)]:
        for rank in range(0, N, 100):
            assert sum(topology.row(rank, N).values()) == pytest.approx(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # a matrix would be 800 MB


def test_fastest_rows_sum_to_one_exactly_since_weights_lie_on_a_grid():
    from thinwire.topology.fastest import GRID

    for shape in (networkx.path_graph(64), networkx.barbell_graph(4, 2)):
        N = len(shape)
        W = Graph.of(shape, weights="fastest").mixing(N)
        assert ((W * GRID) % 1 == 0).all()
        assert (W.sum(0) == 1).all()
        assert (W.sum(1) == 1).all()
