"""What every topology must be, over all of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from topology_cases import CASES, ROUNDS, identify

from thinwire import ConfigError
from thinwire.topology import Static, Topology
from thinwire.value import Value

over_cases = pytest.mark.parametrize(("topology", "N"), CASES, ids=identify)


def test_the_cases_reach_every_size_and_every_topology():
    assert {N for _, N in CASES} >= {1, 2, 3, 5, 8, 13, 16}
    assert len({type(t).__name__ for t, _ in CASES}) == 9


@over_cases
def test_mixing_is_doubly_stochastic_and_nonnegative(topology, N):
    for round in ROUNDS:
        W = topology.mixing(N, round, seed=5)
        assert W.shape == (N, N)
        assert W.dtype == np.float64
        assert (W >= 0).all()
        np.testing.assert_allclose(W.sum(0), 1, atol=1e-14)
        np.testing.assert_allclose(W.sum(1), 1, atol=1e-14)


@over_cases
def test_an_undirected_mixing_is_symmetric_to_the_bit(topology, N):
    if not topology.directed:
        for round in ROUNDS:
            W = topology.mixing(N, round, seed=5)
            assert np.array_equal(W, W.T)


@over_cases
def test_a_row_is_the_row_of_the_mixing_matrix_and_names_the_neighbours(topology, N):
    for round in ROUNDS:
        W = topology.mixing(N, round, seed=5)
        for rank in range(N):
            row, near = (f(rank, N, round, 5) for f in (topology.row, topology.neighbours))
            dense = np.zeros(N)
            dense[list(row)] = list(row.values())
            assert np.array_equal(dense, W[rank])
            assert list(row) == sorted((rank, *near))
            assert list(near) == sorted(set(near) - {rank})
            assert all(type(j) is int for j in near)
            assert all(type(w) is float for w in row.values())


@over_cases
def test_listeners_are_those_whose_neighbour_one_is(topology, N):
    for round in ROUNDS:
        near = [topology.neighbours(rank, N, round, 5) for rank in range(N)]
        for rank in range(N):
            hear = tuple(j for j in range(N) if rank in near[j])
            assert topology.listeners(rank, N, round, 5) == hear
            if not topology.directed:
                assert near[rank] == hear


@over_cases
def test_degree_and_links_are_counted(topology, N):
    degrees = [len(topology.neighbours(rank, N)) for rank in range(N)]
    assert topology.degree(N) == max(degrees)
    assert topology.links(N) == (sum(degrees) if topology.directed else sum(degrees) // 2)
    assert Topology.links(topology, N) == topology.links(N)


@over_cases
def test_check_passes_where_the_topology_fits(topology, N):
    topology.check(N, symmetric=not topology.directed)


@over_cases
def test_fixed_says_whether_the_rounds_differ(topology, N):
    differ = any(
        not np.array_equal(topology.mixing(N, r), topology.mixing(N, 0)) for r in range(16)
    )
    assert not (topology.fixed and differ)
    if N > 2:
        assert topology.fixed != differ
    if topology.fixed:
        assert topology.period(N) == 1


@over_cases
def test_the_mixing_repeats_after_a_period(topology, N):
    p = topology.period(N)
    if p is not None:
        for round in ROUNDS:
            assert np.array_equal(topology.mixing(N, round), topology.mixing(N, round + p))


@over_cases
def test_the_gap_is_what_its_definition_says(topology, N):
    p, gap = topology.period(N), topology.spectral_gap(N)
    assert 0 < gap <= 1
    if p is not None:
        # What is left over a period: the p-th root of a rounding error is no small number.
        left = np.array([1 - Topology.spectral_gap(topology, N), 1 - gap])
        np.testing.assert_allclose(*(left**p), atol=1e-12)


@over_cases
def test_a_symmetric_gap_is_one_less_the_second_eigenvalue_by_size(topology, N):
    if topology.fixed and N > 1:
        sizes = np.sort(np.abs(np.linalg.eigvalsh(topology.mixing(N))))
        assert topology.spectral_gap(N) == pytest.approx(1 - sizes[-2], abs=1e-12)


@over_cases
def test_rounds_to_halve_do_halve_and_no_fewer_would(topology, N):
    rounds = topology.rounds_to_halve(N)
    if topology.period(N) is None or N == 1:
        return
    J, P, left = 1 / N, np.eye(N), [1.0]
    for round in range(int(rounds)):
        P = topology.mixing(N, round) @ P
        left.append(np.linalg.norm(P - J, 2))
    assert left[-1] <= 0.5 + 1e-12
    assert min(left[:-1]) > 0.5 + 1e-12


@over_cases
def test_the_mean_stays_and_the_error_shrinks_by_the_gap(topology, N):
    x = np.random.default_rng(0).standard_normal(N)
    mean, rho, p = x.mean(), 1 - topology.spectral_gap(N), topology.period(N)
    error = np.linalg.norm(x - mean)
    for round in range(4 * (p or 1)):
        x = topology.mixing(N, round) @ x
    assert x.mean() == pytest.approx(mean, abs=1e-12)
    if p is not None:
        assert np.linalg.norm(x - mean) <= rho ** (4 * p) * error + 1e-12


@over_cases
def test_it_is_a_value(topology, N):
    import thinwire.topology

    scope = {name: getattr(thinwire.topology, name) for name in thinwire.topology.__all__}
    assert eval(repr(topology), scope) == topology
    back = Value.from_json(json.loads(json.dumps(topology.to_json())))
    assert back == topology
    assert hash(back) == hash(topology)
    assert repr(back) == repr(topology)


def test_all_settings_differ_from_one_another():
    settings = {t for t, _ in CASES}
    assert len({repr(t) for t in settings}) == len(settings)


@over_cases
def test_a_rank_out_of_range_is_named(topology, N):
    for rank in (-1, N):
        for ask in (topology.neighbours, topology.row, topology.listeners):
            with pytest.raises(ConfigError, match=rf"rank {rank} is none of the {N} workers"):
                ask(rank, N)


@over_cases
def test_no_workers_are_refused(topology, N):
    for ask in (topology.check, topology.degree, topology.spectral_gap, topology.links):
        with pytest.raises(ConfigError, match="N is 0; it must be a whole number"):
            ask(0)


@over_cases
def test_lazy_mixing_is_half_of_metropolis(topology, N):
    if isinstance(topology, Static) and topology.weights == "lazy":
        from dataclasses import replace

        W = replace(topology, weights="metropolis").mixing(N)
        np.testing.assert_allclose(topology.mixing(N), (np.eye(N) + W) / 2, atol=1e-15)
        assert np.linalg.eigvalsh(topology.mixing(N)).min() > -1e-12


@over_cases
def test_metropolis_follows_its_equation(topology, N):
    if isinstance(topology, Static) and topology.weights == "metropolis":
        near = [topology.neighbours(i, N) for i in range(N)]
        for i in range(N):
            row = topology.row(i, N)
            for j in near[i]:
                assert row[j] == 1 / (1 + max(len(near[i]), len(near[j])))


@over_cases
def test_fastest_is_no_slower_than_metropolis(topology, N):
    if isinstance(topology, Static) and topology.weights == "fastest":
        from dataclasses import replace

        slow = replace(topology, weights="metropolis").spectral_gap(N)
        assert topology.spectral_gap(N) >= slow - 1e-4
