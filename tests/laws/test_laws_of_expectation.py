"""What an operator says on average: unbiased where it claims so, a contraction as it claims.

Every statistical test states its confidence: a fair operator fails one run of the whole module
with a probability below one in a million, and the keys are fixed, so it fails never or always.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from laws.law_cases import COMPRESSORS, generator, keys
from torch import Tensor

import thinwire as tw
from thinwire import QSGD, Levels, RandK, Rotated, Ternary, TopK
from thinwire.compress import Compressor
from thinwire.flat import Spans

compressors = pytest.mark.parametrize("C", COMPRESSORS, ids=repr)
unbiased = [C for C in COMPRESSORS if not C.biased]
N_ENTRIES = 12
REPEATS = 40
"""One key says this many copies of the vector, each a tensor with draws of its own."""

CHANCE = 1e-6
TESTS = len(COMPRESSORS) * 8 * N_ENTRIES
"""Bonferroni: operators, inputs and entries."""
Z = NormalDist().inv_cdf(1 - CHANCE / TESTS)


def samples(C: Compressor, u: Tensor, n: int) -> Tensor:
    """Returns at least n independent draws of C(u), (n, d) float64."""
    d = len(u)
    times = 1 if C.sparsifier.scope == "global" or C.quantizer.scope == "global" else REPEATS
    spans = Spans(tuple(f"copy {i}" for i in range(times)), ((d,),) * times)
    tiled = u.repeat(times)
    said = [C.decompress(C.compress(tiled, key, spans)) for key in keys(-(-n // times))]
    return torch.cat(said).view(-1, d).double()


INPUTS = {
    "normal": torch.randn(N_ENTRIES, generator=generator(3)),
    "heavy_tailed": torch.empty(N_ENTRIES).cauchy_(generator=generator(4)),
    "one_hot": torch.eye(N_ENTRIES)[5],
    "all_equal": torch.full((N_ENTRIES,), 0.7),
    "geometric": 0.5 ** torch.arange(N_ENTRIES, dtype=torch.float32),
    "two_scale": torch.tensor([100.0, -100.0] + [0.3, -0.2] * 5),
    "one_sided": torch.rand(N_ENTRIES, generator=generator(5)) + 1.0,
}


def check_unbiased(drawn: Tensor, u: Tensor) -> None:
    """Asserts entry by entry that the draws have mean u, by the empirical Bernstein bound.

    With probability 1 - CHANCE every mean of n draws of range R and spread S lies within
    S sqrt(2 t / n) + 7 R t / 3 (n - 1), t = ln(tests / CHANCE) (Maurer and Pontil, 2009): it
    needs no normal distribution, so a level that is drawn once in a thousand does no harm.
    """
    n, mean, t = len(drawn), drawn.mean(0), math.log(2 * TESTS / CHANCE)
    allowed = drawn.std(0) * math.sqrt(2 * t / n)
    allowed += 7 * 2 * float(drawn.abs().max()) * t / (3 * (n - 1))
    # 24-bit uniforms and float32 decoding leave a bias of their own below this.
    slack = 1e-6 * float(u.abs().max())
    assert bool(((mean - u.double()).abs() <= allowed + slack).all()), (mean, u, allowed)


def check_contraction(drawn: Tensor, u: Tensor, gamma: float) -> None:
    """Asserts that E||u - C(u)||^2 <= (1 - gamma) ||u||^2, with a margin of Z errors."""
    if gamma == 0:
        return  # It claims none.
    lost = ((u.double() - drawn) ** 2).sum(1)
    bound = (1 - gamma) * float((u.double() ** 2).sum())
    margin = Z * float(lost.std()) / math.sqrt(len(lost)) + 1e-5 * float((u.double() ** 2).sum())
    assert float(lost.mean()) <= bound + margin, (float(lost.mean()), bound, margin)


@pytest.mark.parametrize("C", unbiased, ids=repr)
def test_unbiased_operators_are_right_on_average(C: Compressor) -> None:
    for name in ("normal", "one_hot", "one_sided", "two_scale"):
        check_unbiased(samples(C, INPUTS[name], 1000), INPUTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("C", unbiased, ids=repr)
def test_unbiased_operators_are_right_on_average_over_many_keys(C: Compressor) -> None:
    for u in INPUTS.values():
        check_unbiased(samples(C, u, 6000), u)


@pytest.mark.parametrize(
    "C",
    [
        TopK(k=3),
        RandK(k=3),
        tw.Sign(),
        TopK(k=3) >> tw.Sign(),
        TopK(k=3) >> QSGD(levels=4, scale="none"),
        RandK(k=3) >> QSGD(levels=4, scale="none"),
        QSGD(levels=2, scale="beta"),
        Levels(levels=2, scale="beta"),
        Ternary(scale="beta"),
        Rotated(levels=2, scale="beta"),
    ],
    ids=repr,
)
def test_biased_operators_are_called_biased_and_are(C: Compressor) -> None:
    assert C.biased
    with pytest.raises(AssertionError):
        check_unbiased(samples(C, INPUTS["normal"], 1600), INPUTS["normal"])


@compressors
def test_the_contraction_holds(C: Compressor) -> None:
    gamma = C.contraction(N_ENTRIES)
    for u in INPUTS.values():
        check_contraction(samples(C, u, 240), u, gamma)


@pytest.mark.slow
@compressors
def test_the_contraction_holds_over_many_keys(C: Compressor) -> None:
    gamma = C.contraction(N_ENTRIES)
    for u in INPUTS.values():
        check_contraction(samples(C, u, 2000), u, gamma)


@compressors
def test_the_contraction_holds_over_tensors_of_many_sizes(C: Compressor) -> None:
    spans = Spans(("a", "b", "none", "c", "d"), ((3, 4), (1,), (0,), (9,), (2, 7)))
    gamma = C.contraction(spans)
    for seed in range(3):
        u = torch.randn(spans.d, generator=generator(seed)) ** 3
        drawn = torch.stack([C.decompress(C.compress(u, k, spans)) for k in keys(80)])
        check_contraction(drawn.double(), u, gamma)


RESCALED = [
    # (operator, d, contraction by hand or an upper bound on it)
    (RandK(k=5, rescale=True) >> QSGD(levels=3, scale="none"), 9, 0.0),
    (RandK(k=4, rescale=True) >> QSGD(levels=1, scale="none"), 100, 0.0),
    (RandK(k=3, rescale=True) >> Levels(levels=1, scale="none"), 30, 0.0),
    (RandK(k=3, rescale=True) >> Rotated(levels=1, scale="none"), 30, 0.0),
    (RandK(k=2, rescale=True) >> Ternary(scale="none"), 9, 0.0),
    (RandK(k=2, rescale=True), 9, 0.0),
    (RandK(k=8, rescale=True), 10, 0.75),
    (RandK(k=5, rescale=True) >> QSGD(levels=10, scale="none"), 9, 0.2 - 1.8 * 0.2492 * 0.05),
]


@pytest.mark.parametrize(("C", "d", "most"), RESCALED, ids=repr)
def test_rescaling_never_claims_more_contraction_than_it_has(
    C: Compressor, d: int, most: float
) -> None:
    # With r = d/k and E||Q(v) - v||^2 <= beta ||v||^2 of an unbiased Q, what is left is
    # ((r - 1) + r beta) ||u||^2: contraction 2 - r - r beta, not (2 - r)(1 - beta).
    gamma = C.contraction(d)
    assert gamma <= most + 1e-6
    check_contraction(samples(C, torch.ones(d), 4000), torch.ones(d), gamma)


@pytest.mark.parametrize("s", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [1, 2, 4, 9, 50, 400])
@pytest.mark.parametrize("norm", ["l2", "max"])
def test_unscaled_qsgd_contracts_only_below_beta_one(s: int, n: int, norm: str) -> None:
    if norm == "l2":
        beta = min(n / s**2, math.sqrt(n) / s)
    else:
        beta = min(n / (4 * s**2), math.sqrt(n) / (2 * s))
    C = QSGD(levels=s, norm=norm, scale="none")
    assert C.beta(n) == pytest.approx(beta)
    assert C.contraction(n) == pytest.approx(max(0.0, 1 - beta))
    for scale in ("fit", "beta"):
        assert replace(C, scale=scale).contraction(n) == pytest.approx(1 / (1 + beta))
    assert (TopK(k=n) >> C).contraction(10 * n) == pytest.approx(max(0.0, (1 - beta) / 10))


QUANTIZERS = [
    QSGD(levels=2),
    QSGD(levels=1, norm="max"),
    QSGD(bits=4, bucket=5),
    Levels(levels=3),
    Levels(levels=1, bucket=4),
    Rotated(levels=3),
    Rotated(levels=2, bucket=4),
    Ternary(),
]


@pytest.mark.parametrize("C", QUANTIZERS, ids=repr)
def test_the_fitted_scale_is_never_worse_on_the_same_codes(C) -> None:
    for name, u in INPUTS.items():
        power = float((u.double() ** 2).sum())
        for key in keys(50):
            lost, codes = {}, {}
            for scale in ("fit", "beta", "none"):
                Q = replace(C, scale=scale)
                payload = Q.compress(u, key)
                codes[scale] = payload.values.codes
                lost[scale] = float(((u - Q.decompress(payload)).double() ** 2).sum())
            assert torch.equal(codes["fit"], codes["none"])
            assert torch.equal(codes["fit"], codes["beta"])
            worst = min(lost["none"], lost["beta"])
            # The padding of a rotation is cut after the fit, so only its whole frame is fitted.
            if isinstance(C, Rotated) and C.padded(len(u)) != len(u) and C.bucket != 4:
                continue
            assert lost["fit"] <= worst + 1e-6 * power, (name, key, lost)


def test_the_fit_is_closer_than_the_papers_scale_on_gaussians() -> None:
    u = torch.randn(256, generator=generator(8))
    left = {}
    for scale in ("none", "beta", "fit"):
        C = QSGD(levels=4, scale=scale)
        drawn = torch.stack([C.decompress(C.compress(u, key)) for key in keys(200)])
        left[scale] = float(((u - drawn) ** 2).sum(1).mean() / (u**2).sum())
    assert left["fit"] < left["beta"] < left["none"]


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_sign_contracts_by_the_square_of_the_one_norm(n: int) -> None:
    for seed in range(10):
        u = torch.randn(n, generator=generator(seed)) ** 3
        left = float(((u - tw.Sign().decompress(tw.Sign().compress(u, tw.Key(0)))) ** 2).sum())
        power, one = float((u**2).sum()), float(u.abs().sum())
        assert left == pytest.approx(power * (1 - one**2 / (n * power)), rel=1e-4, abs=1e-5 * power)


def test_the_mean_test_notices_a_bias_of_five_percent() -> None:
    u = INPUTS["normal"]
    drawn = samples(QSGD(levels=4, scale="none"), u, 40_000)
    check_unbiased(drawn, u)
    with pytest.raises(AssertionError):
        check_unbiased(drawn * 1.05, u)


def test_the_contraction_test_notices_a_gamma_too_large() -> None:
    u = INPUTS["normal"]
    drawn = samples(QSGD(levels=4), u, 4000)
    left = float(((u - drawn) ** 2).sum(1).mean() / (u**2).sum())
    check_contraction(drawn, u, 1 - left)
    with pytest.raises(AssertionError):
        check_contraction(drawn, u, 1 - 0.9 * left)
