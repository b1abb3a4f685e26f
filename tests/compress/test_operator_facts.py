"""What is particular to each operator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import thinwire as tw
from thinwire import QSGD, Identity, Key, Levels, RandK, Rotated, Sign, Ternary, TopK
from thinwire.compress import Chain, Codes
from thinwire.flat import Spans
from thinwire.wire.body import pack

KEY = Key(3, 1, 0)


def drawn(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def stable_top(u: Tensor, k: int) -> list[int]:
    """The k largest magnitudes by NumPy's stable sort, ascending."""
    return sorted(np.argsort(-np.abs(u.numpy()), kind="stable")[:k].tolist())


@pytest.mark.parametrize("d", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("distinct", [1, 3, 0])
def test_topk_keeps_what_a_stable_sort_keeps(d: int, distinct: int) -> None:
    u = drawn(d, d)
    if distinct:
        u = (u * distinct).round() / 2
    for k in {1, max(1, d // 3), d}:
        payload = TopK(k=k).compress(u, KEY)
        assert payload.index.tolist() == stable_top(u, k)
        assert torch.equal(payload.values, u[payload.index])


def test_topk_breaks_ties_by_lower_index() -> None:
    u = torch.tensor([1.0, -2.0, 2.0, -2.0, 2.0, 0.0])
    for k, kept in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (5, [0, 1, 2, 3, 4])):
        assert TopK(k=k).compress(u, KEY).index.tolist() == kept


def test_topk_takes_its_scope_piece_by_piece() -> None:
    spans, u = Spans(("a", "b"), ((7,), (5,))), drawn(12, 4)
    by_tensor = TopK(k=2).compress(u, KEY, spans).index.tolist()
    assert by_tensor == stable_top(u[:7], 2) + [7 + i for i in stable_top(u[7:], 2)]
    whole = TopK(k=2, scope="global").compress(u, KEY, spans).index.tolist()
    assert whole == stable_top(u, 2)
    chunks = TopK(k=2, scope="chunk", chunk=4).compress(u, KEY, spans).index.tolist()
    expected = []
    for lo, hi in ((0, 4), (4, 7), (7, 11), (11, 12)):
        expected += [lo + i for i in stable_top(u[lo:hi], 2)]
    assert chunks == expected


def test_a_small_group_is_kept_whole() -> None:
    spans = Spans(("a", "b", "c"), ((7,), (5000,), (3,)))
    assert TopK(k=100).layout(spans).counts.tolist() == [7, 100, 3]
    assert TopK(density=0.001).layout(spans).counts.tolist() == [1, 5, 1]


@pytest.mark.parametrize("then", [None, Sign(), QSGD(bits=4)], ids=repr)
def test_small_dense_never_raises_the_bound_and_stays_sparse_where_that_pays(then) -> None:
    for d in (1, 2, 10, 64, 1000):
        for k in sorted({1, max(1, d // 20), max(1, d // 4), max(1, d // 2), d}):
            sparse, dense = TopK(k=k), TopK(k=k, small_dense=True)
            if then is not None:
                sparse, dense = sparse >> then, dense >> then
            assert dense.nbytes(d) <= sparse.nbytes(d), (d, k)
            assert dense.layout(Spans.of(d)).kept in (k, d)
    assert TopK(k=10, small_dense=True).layout(Spans.of(1000)).kept == 10


def test_randk_is_the_same_on_all_ranks_and_another_each_round() -> None:
    C = RandK(density=0.1)
    index = [C.compress(drawn(500, r), Key(9, 4, r)).index for r in range(5)]
    assert all(torch.equal(i, index[0]) for i in index)
    assert not torch.equal(C.compress(drawn(500), Key(9, 5, 0)).index, index[0])
    assert not torch.equal(C.compress(drawn(500), Key(8, 4, 0)).index, index[0])


def test_randk_sends_no_index() -> None:
    C = RandK(k=40)
    assert len(pack(C.compress(drawn(7850), KEY), C)) == 160 == C.nbytes(7850)
    assert len(pack((C >> Sign()).compress(drawn(7850), KEY), C >> Sign())) == 9


@pytest.mark.parametrize("scope", ["tensor", "global", "chunk"])
def test_randk_chooses_uniformly(scope: str) -> None:
    d, k, rounds = 40, 10, 4000
    C = RandK(k=k, scope=scope)
    hits = torch.zeros(d, dtype=torch.float64)
    for round in range(rounds):
        index = C.compress(torch.ones(d), Key(1, round, 0)).index
        assert len(set(index.tolist())) == k
        hits[index] += 1
    check_uniform(hits, k, rounds)


def check_uniform(hits: Tensor, k: int, rounds: int) -> None:
    """Asserts by a chi-square test at one in a million that all entries are as likely."""
    d = len(hits)
    share = k / d
    # Draws without replacement: the variance of a count is rounds share (1 - share), d - 1 free.
    chi2 = float(((hits - rounds * share) ** 2 / (rounds * share * (1 - share))).sum())
    chi2 *= (d - 1) / d
    # Wilson and Hilferty's approximation of the quantile at 1 - 1e-6 (z = 4.75).
    n = d - 1
    assert chi2 < n * (1 - 2 / (9 * n) + 4.75 * (2 / (9 * n)) ** 0.5) ** 3, chi2


def test_the_chi_square_test_notices_a_favourite() -> None:
    hits = torch.full((40,), 1000.0)
    check_uniform(hits, 10, 4000)
    hits[3] += 200
    hits[4] -= 200
    with pytest.raises(AssertionError):
        check_uniform(hits, 10, 4000)


def test_randk_rescale_multiplies_by_d_over_k() -> None:
    u = drawn(12)
    plain = RandK(k=4).compress(u, KEY)
    scaled = RandK(k=4, rescale=True).compress(u, KEY)
    assert torch.equal(plain.index, scaled.index)
    assert torch.equal(scaled.values, plain.values * 3)


@pytest.mark.parametrize("bucket", [None, 1, 3, 16])
@pytest.mark.parametrize("n", [1, 2, 5, 16, 33])
def test_rotating_there_and_back_is_the_identity(n: int, bucket: int | None) -> None:
    v = drawn(n, n)
    C = Rotated(levels=65535, scale="none", bucket=bucket)
    back = C.decompress(C.compress(v, KEY))
    assert float((back - v).abs().max()) <= 1e-4 * float(v.norm())


def test_a_rotation_spreads_one_entry_over_its_bucket() -> None:
    v = torch.zeros(64)
    v[7] = 8.0
    payload = Rotated(levels=1, scale="none", bucket=64).compress(v, KEY)
    assert payload.values.scales.tolist() == [[-1.0, 2.0]]
    assert 16 < int(payload.values.codes.sum()) < 48


def test_all_ranks_share_the_rotation_and_round_apart() -> None:
    v = drawn(64)
    C = Rotated(levels=65535, scale="none", bucket=64)
    one, two = (C.compress(v, Key(3, 1, r)).values for r in (0, 1))
    assert torch.equal(one.scales, two.scales)
    assert int((one.codes - two.codes).abs().max()) <= 1


@pytest.mark.parametrize("scale", ["fit", "beta", "none"])
@pytest.mark.parametrize("bucket", [None, 5])
def test_ternary_is_qsgd_of_one_level_and_the_max_norm(scale: str, bucket: int | None) -> None:
    one = Ternary(scale=scale, bucket=bucket)
    other = QSGD(levels=1, norm="max", scale=scale, bucket=bucket)
    spans = Spans(("a", "b"), ((7,), (20,)))
    a, b = (C.compress(drawn(27), KEY, spans) for C in (one, other))
    assert isinstance(a.values, Codes)
    assert torch.equal(a.values.codes, b.values.codes)
    assert torch.equal(a.values.scales, b.values.scales)
    assert torch.equal(one.decompress(a), other.decompress(b))
    assert pack(a, one) == pack(b, other)
    assert one.contraction(spans) == other.contraction(spans)


def test_sign_of_zero_is_plus_and_the_scale_is_the_mean_magnitude() -> None:
    u = torch.tensor([1.0, -3.0, 0.0, -0.0])
    assert Sign().decompress(Sign().compress(u, KEY)).tolist() == [1.0, -1.0, 1.0, 1.0]


def test_qsgd_codes_are_a_floor_or_one_more() -> None:
    v = drawn(500, 2)
    for norm in ("l2", "max"):
        payload = QSGD(levels=9, norm=norm, scale="none").compress(v, KEY)
        unit = float(v.double().norm() if norm == "l2" else v.abs().max())
        y = 9 * v.double().abs() / unit
        xi = (payload.values.codes - 9).abs()
        assert bool(((xi - y).abs() < 1 + 1e-5).all())
        signs = (payload.values.codes - 9).sign()
        assert bool(((signs == 0) | (signs == v.sign())).all())


def test_levels_codes_are_a_floor_or_one_more_and_ends_are_exact() -> None:
    v = drawn(500, 3)
    payload = Levels(levels=6, scale="none").compress(v, KEY)
    y = 6 * (v.double() - v.min()) / float(v.max() - v.min())
    assert bool(((payload.values.codes - y).abs() < 1 + 1e-5).all())
    assert int(payload.values.codes[v.argmin()]) == 0
    assert int(payload.values.codes[v.argmax()]) == 6


@pytest.mark.parametrize("C", [QSGD(levels=3), Levels(levels=3), Rotated(levels=3)], ids=repr)
def test_scale_beta_divides_by_one_plus_beta(C) -> None:
    v = drawn(64, 5)
    said = {s: replace(C, scale=s) for s in ("beta", "none")}
    a, b = (Q.decompress(Q.compress(v, KEY)) for Q in said.values())
    assert torch.allclose(a * (1 + C.beta(64)), b, rtol=1e-5, atol=1e-6)


def test_a_chain_scales_what_the_sparsifier_keeps_group_by_group() -> None:
    spans, u = Spans(("a", "b"), ((6,), (5,))), drawn(11, 6)
    payload = (TopK(k=3) >> Sign()).compress(u, KEY, spans)
    means = [float(u[lo + torch.tensor(i)].abs().mean()) for lo, i in (
        (0, stable_top(u[:6], 3)), (6, stable_top(u[6:], 3))
    )]  # fmt: skip
    assert payload.values.scales.flatten().tolist() == pytest.approx(means)
    one = (TopK(k=3, scope="global") >> Sign()).compress(u, KEY, spans)
    assert one.values.scales.shape == (1, 1)


WRONG_CHAINS = [
    (lambda: Sign() >> TopK(k=1), "one sparsifier, then one quantizer"),
    (lambda: Identity() >> Sign(), "TopK"),
    (lambda: TopK(k=1) >> TopK(k=1), "Sign, TwoLevel, QSGD, Levels, Rotated, Ternary"),
    (lambda: TopK(k=1) >> Identity(), "quantizer"),
    (lambda: TopK(k=1) >> Sign() >> QSGD(bits=4), "one sparsifier, then one quantizer"),
    (lambda: TopK(k=1) >> 3, "quantizer"),
    (lambda: TopK(k=1) >> Sign(scope="global"), "set it on the sparsifier"),
    (lambda: Chain(Sign(), Sign()), "sparsifier"),
    (lambda: Chain(TopK(k=1) >> Sign(), Sign()), "sparsifier"),
]


@pytest.mark.parametrize(("write", "says"), WRONG_CHAINS, ids=range(len(WRONG_CHAINS)))
def test_an_impossible_chain_fails_when_it_is_written(write, says: str) -> None:
    with pytest.raises(tw.ConfigError, match=says):
        write()


WRONG_SETTINGS = [
    (TopK, "give k"),
    (lambda: TopK(k=1, density=0.5), "give k"),
    (RandK, "give k"),
    (lambda: TopK(k=0), "k is 0"),
    (lambda: TopK(k=1.5), "k is 1.5"),
    (lambda: TopK(k=True), "k is True"),
    (lambda: TopK(density=0), "density is 0"),
    (lambda: TopK(density=1.01), "density is 1.01"),
    (lambda: TopK(density=float("nan")), "density is nan"),
    (lambda: TopK(k=1, scope="layer"), "'tensor', 'chunk', 'global'"),
    (lambda: TopK(k=1, scope="chunk", chunk=0), "chunk is 0"),
    (QSGD, "levels .* or bits"),
    (lambda: QSGD(levels=3, bits=4), "levels .* or bits"),
    (lambda: QSGD(bits=1), "bits is 1"),
    (lambda: QSGD(bits=17), "bits is 17"),
    (lambda: QSGD(levels=32768), "levels is 32768"),
    (lambda: QSGD(bits=4, norm="l1"), "'l2', 'max'"),
    (lambda: QSGD(bits=4, scale="best"), "'fit', 'beta', 'none'"),
    (lambda: QSGD(bits=4, bucket=0), "bucket is 0"),
    (lambda: Levels(levels=0), "levels is 0"),
    (lambda: Levels(levels=65536), "levels is 65536"),
    (lambda: Rotated(scale=None), "scale is None"),
    (lambda: Ternary(scale="x"), "scale is 'x'"),
    (lambda: Sign(scope="chunk"), "'tensor', 'global'"),
    (lambda: tw.Feedback(decay=1.1), "decay is 1.1"),
    (lambda: tw.Feedback(permit="all"), "'contraction', 'any'"),
    (lambda: tw.NoFeedback(permit="any"), "'unbiased', 'biased'"),
    (lambda: tw.Server(root=-1), "root is -1"),
]


@pytest.mark.parametrize(("write", "says"), WRONG_SETTINGS, ids=range(len(WRONG_SETTINGS)))
def test_a_setting_out_of_range_names_value_and_choices(write, says: str) -> None:
    with pytest.raises(tw.ConfigError, match=says):
        write()


SPANS = Spans(("w", "b"), ((30, 30), (30,)))


@pytest.mark.parametrize("exchange", [tw.Server, tw.Gather])
def test_feedback_needs_a_contraction_or_a_permit(exchange) -> None:
    for C in (
        QSGD(levels=2, scale="none"),
        TopK(density=0.5) >> QSGD(levels=2, scale="none"),
        RandK(density=0.1, rescale=True),
        RandK(density=0.1, rescale=True) >> QSGD(levels=1, scale="none"),
    ):
        with pytest.raises(tw.ConfigError, match=r"no contraction.*Feedback\(permit='any'\)"):
            exchange(tw.Feedback()).check(C, SPANS)
        exchange(tw.Feedback(permit="any")).check(C, SPANS)
    for C in (TopK(k=1), Sign(), QSGD(bits=2), Identity(), TopK(k=1) >> Rotated()):
        exchange(tw.Feedback()).check(C, SPANS)


@pytest.mark.parametrize("exchange", [tw.Server, tw.Gather])
def test_no_feedback_needs_an_unbiased_operator_or_a_permit(exchange) -> None:
    for C in (TopK(k=1), Sign(), QSGD(bits=2), RandK(k=3), TopK(k=2) >> QSGD(bits=4, scale="none")):
        with pytest.raises(tw.ConfigError, match=r"biased.*NoFeedback\(permit='biased'\)"):
            exchange(tw.NoFeedback()).check(C, SPANS)
        exchange(tw.NoFeedback(permit="biased")).check(C, SPANS)
    for C in (Identity(), QSGD(bits=2, scale="none"), RandK(k=3, rescale=True)):
        exchange(tw.NoFeedback()).check(C, SPANS)


def test_a_downlink_needs_a_contraction() -> None:
    with pytest.raises(tw.ConfigError, match="downlink"):
        tw.Server(downlink=QSGD(levels=1, scale="none")).check(TopK(k=1), SPANS)
    tw.Server(downlink=Sign()).check(TopK(k=1), SPANS)


def test_the_all_reduce_carries_nothing_but_identity() -> None:
    tw.AllReduce().check(Identity(), SPANS)
    with pytest.raises(tw.ConfigError, match="cannot carry"):
        tw.AllReduce().check(TopK(k=1), SPANS)
