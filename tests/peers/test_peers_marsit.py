"""Marsit: one bit a hop, an unbiased sample of the mean sign, and a full round every K rounds."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from peer_talks import Seen, fine, heres, identical, near, normal, round_of, run, same_bits, total

import thinwire as tw
from thinwire import QSGD, Identity, Sign, TopK
from thinwire.flat import Spans
from thinwire.wire.frame import HEADER, Kind

WORKERS = (1, 2, 3, 4, 5, 8, 13)
CHANCE = 1e-6


def rounds(K: int, N: int, d: int, n: int) -> list[Seen]:
    zero = torch.zeros(d)
    return run(tw.Marsit(K=K), Sign(), zero, N, n, lambda r, t, x: normal(N, d, seed=t)[r])


@pytest.mark.parametrize("N", WORKERS)
def test_replicas_hold_the_same_bits_after_every_round(N: int) -> None:
    for d in (0, 1, 7, 1000):
        for seen in rounds(3, N, d, 5):
            for direction in seen.directions:
                same_bits(direction, seen.directions[0], (N, d))


@pytest.mark.parametrize("N", [2, 3, 5, 8])
def test_the_bit_is_an_unbiased_sample_of_the_mean_sign(N: int) -> None:
    # Each entry is one coin of its own: group entries by how many workers say plus.
    d = 60_000
    u = normal(N, d, seed=2)
    at = heres(Sign(), d, N, round=1)
    ends = fine(round_of(tw.Marsit(K=7), at, u))
    bits = (ends[0].value[0] > 0).double()
    plus = sum((v >= 0).double() for v in u)
    scale = sum(float(v.double().abs().mean()) for v in u) / N
    near(ends[0].value[0].abs(), torch.full((d,), scale), 1e-6)
    Z = NormalDist().inv_cdf(1 - CHANCE / 100)
    for segment in range(N):  # Whoever starts a segment weighs no more than who ends it.
        part = slice(segment * d // N, (segment + 1) * d // N)
        for count in range(N + 1):
            mine = bits[part][plus[part] == count]
            p, n = count / N, len(mine)
            if n:
                allowed = Z * math.sqrt(p * (1 - p) / n) + (1 / n if 0 < count < N else 0)
                assert abs(float(mine.mean()) - p) <= allowed, (segment, count)


@pytest.mark.parametrize("N", [2, 3, 5])
def test_every_worker_counts_alike_in_the_sample(N: int) -> None:
    # One worker says plus, the others minus: plus comes out once in N, whoever it is.
    d = 40_000
    Z = NormalDist().inv_cdf(1 - CHANCE / 100)
    for lone in range(N):
        u = [torch.full((d,), 1.0 if rank == lone else -1.0) for rank in range(N)]
        ends = fine(round_of(tw.Marsit(K=7), heres(Sign(), d, N, round=1), u))
        for segment in range(N):
            part = ends[0].value[0][segment * d // N : (segment + 1) * d // N]
            share, p = float((part > 0).double().mean()), 1 / N
            assert abs(share - p) <= Z * math.sqrt(p * (1 - p) / len(part)), (lone, segment)


def test_where_all_agree_the_sign_is_exact() -> None:
    for N in WORKERS:
        u = identical(N, 100, seed=4)
        ends = fine(round_of(tw.Marsit(K=7), heres(Sign(), 100, N, round=2), u))
        assert torch.equal(ends[0].value[0] >= 0, u[0] >= 0)


@pytest.mark.parametrize("N", WORKERS)
def test_every_kth_round_is_the_exact_mean_and_the_residual_starts_anew(N: int) -> None:
    K, d = 3, 50
    for t, seen in enumerate(rounds(K, N, d, 8)):
        u = [v + m["residual"] for v, m in zip(seen.deltas, seen.mems, strict=True)]
        if t % K == 0:
            near(seen.directions[0], total(u) / N, 1e-5 * float(total(u).abs().max() + 1), t)
            for mem in seen.after:
                same_bits(mem["residual"], torch.zeros(d))
        else:
            for v, mem in zip(u, seen.after, strict=True):
                same_bits(mem["residual"], v - seen.directions[0])


@pytest.mark.parametrize("N", WORKERS[1:])
def test_it_sends_one_bit_an_entry_a_hop_and_one_number(N: int) -> None:
    for d in (0, 7, 1000):
        full, bits = rounds(3, N, d, 2)
        sizes = [((g + 1) * d // N - g * d // N) for g in range(N)]
        coded = [HEADER + -(-n // 8) for n in sizes]
        dense = [HEADER + 4 * n for n in sizes]
        for rank in range(N):
            assert full.ends[rank].sent == sum(dense) - dense[rank] + (N - 1) * dense[rank]
            numbers = (N - 1 if rank == 0 else 1) * (HEADER + 8)
            laps = 2 * sum(coded) - coded[(rank + 1) % N] - coded[(rank + 2) % N]
            assert bits.ends[rank].sent == numbers + laps
            kinds = {f[3] for _, f in bits.ends[rank].posted}
            assert kinds == {Kind.NUMBER, Kind.SAID}


@pytest.mark.parametrize("N", [3, 8])
def test_finished_bits_travel_unchanged(N: int) -> None:
    seen = rounds(3, N, 1000, 2)[1]
    frames = [f for end in seen.ends for _, f in end.posted if f[3] == Kind.SAID]
    assert len(frames) == N * 2 * (N - 1)
    assert len(set(frames)) == N * N


@pytest.mark.parametrize("round", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named_on_all_ranks(round: int, bad: float) -> None:
    spans = Spans(("w", "b"), ((6, 5), (9,)))
    for N in WORKERS:
        u = normal(N, spans.d)
        u[N // 2][33] = bad
        ends = round_of(tw.Marsit(K=2), heres(Sign(), spans, N, round), u)
        for end in ends:
            assert isinstance(end.error, tw.NonFiniteError), (N, end.error)
            assert end.error.found == [(N // 2, "b")]
            assert end.error.round == round


@pytest.mark.parametrize(
    "C", [Identity(), TopK(k=3) >> Sign(), QSGD(bits=2), Sign(bucket=8), Sign(scope="global")],
    ids=repr,
)  # fmt: skip
def test_another_operator_is_refused_and_the_right_one_named(C) -> None:
    with pytest.raises(tw.ConfigError, match=r"Marsit sends signs: write compressor=Sign\(\)"):
        tw.Marsit().check(C, Spans.of(10))
    tw.Marsit().check(Sign(), Spans.of(10))


def test_k_is_a_whole_number_from_one() -> None:
    for K in (0, -1, 1.5):
        with pytest.raises(tw.ConfigError, match="K"):
            tw.Marsit(K=K)  # type: ignore[arg-type]
