"""Qsparse-local-SGD, Algorithm 1, once more in ten lines of NumPy: the library must follow it.

The witness is given the library's own float32 deltas and its random draws (the rounded codes,
RandK's indices, the signs of a rotation), and nothing else: it keeps its own residuals and its
own parameters, chooses its own top k, and finds every scale by the paper's formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from laws.talks import heres, said_frames
from laws.talks import one_round as talk

import thinwire as tw
from thinwire import QSGD, Key, Levels, RandK, Rotated, Sign, Ternary, TopK
from thinwire.compress import Codes, Compressor
from thinwire.compress.base import ROTATION
from thinwire.flat import Spans
from thinwire.kernels import reference
from thinwire.wire.body import Reader, unpack
from thinwire.wire.frame import HEADER

N, H, ROUNDS, ETA = 4, 3, 100, 0.1
SPANS = Spans(("w", "b"), ((3, 4), (8,)))
PIECES = (slice(0, 12), slice(12, 20))
Draws = list[tuple[np.ndarray, list[np.ndarray] | None, Key]]
QComp = Callable[[np.ndarray, slice, np.ndarray, np.ndarray | None, Key], np.ndarray]


def algorithm_1(
    x: np.ndarray, deltas: Iterator[np.ndarray], draws: Iterator[Draws], Q: QComp
) -> Iterator[np.ndarray]:
    m = np.zeros((N, len(x)), np.float32)
    for delta, drawn in zip(deltas, draws, strict=True):
        u = m + delta
        g = np.zeros_like(u)
        for r in range(N):
            index, codes, key = drawn[r]
            for t, piece in enumerate(PIECES):
                g[r] += Q(u[r], piece, index, None if codes is None else codes[t], key)
        m = u - g
        x = x - g.sum(0) / N
        yield x


# What is kept of a tensor: positions in the flat vector.


def everything(u: np.ndarray, piece: slice, index: np.ndarray) -> np.ndarray:
    return np.arange(piece.start, piece.stop)


def top(k: int) -> Callable[..., np.ndarray]:
    def keep(u: np.ndarray, piece: slice, index: np.ndarray) -> np.ndarray:
        order = np.argsort(-np.abs(u[piece]), kind="stable")[:k]
        return piece.start + np.sort(order)

    return keep


def drawn_at_random(u: np.ndarray, piece: slice, index: np.ndarray) -> np.ndarray:
    return index[(index >= piece.start) & (index < piece.stop)]


# How a kept value is said: a vector of a tensor's kept values, and the codes drawn for them.


def exactly(v: np.ndarray, codes: np.ndarray | None, key: Key, piece: slice) -> np.ndarray:
    return v


def sign(v: np.ndarray, codes: np.ndarray, key: Key, piece: slice) -> np.ndarray:
    return np.abs(v).sum() / len(v) * np.where(v >= 0, 1, -1)


def qsgd(s: int, norm: str = "l2", scale: str = "fit") -> Callable[..., np.ndarray]:
    def say(v: np.ndarray, codes: np.ndarray, key: Key, piece: slice) -> np.ndarray:
        n, q = len(v), (codes - s).astype(float)
        size = np.linalg.norm(v) if norm == "l2" else np.abs(v).max()
        beta = min(n / s**2, n**0.5 / s)
        if norm == "max":
            beta = min(n / (4 * s**2), n**0.5 / (2 * s))
        if scale == "fit":
            return q * (v @ q / (q @ q)) if q.any() else q
        return size * q / s / (1 + beta if scale == "beta" else 1)

    return say


def levels(s: int, scale: str = "fit", beta: Callable[[int], float] | None = None) -> Callable:
    def say(v: np.ndarray, codes: np.ndarray, key: Key, piece: slice) -> np.ndarray:
        Q = v.min() + (v.max() - v.min()) * codes / s
        if scale == "fit":
            return Q * (v @ Q / (Q @ Q)) if Q.any() else Q
        return Q / (1 + (beta(len(v)) if beta else len(v) / (2 * s**2)) * (scale == "beta"))

    return say


def hadamard(p: int) -> np.ndarray:
    return np.ones((1, 1)) if p == 1 else np.kron([[1, 1], [1, -1]], hadamard(p // 2))


def rotated(s: int, scale: str = "fit", first: int = 16) -> Callable[..., np.ndarray]:
    # A sign belongs to a padded position; the second tensor's follow the `first` of the first.
    def say(v: np.ndarray, codes: np.ndarray, key: Key, piece: slice) -> np.ndarray:
        P = 1 << (len(v) - 1).bit_length()
        start = 0 if piece.start == 0 else first
        words = reference.words(start + P, key.shared().draw(ROTATION).words)[start:]
        R = hadamard(P) / P**0.5 * np.where(words.numpy() & 1, -1, 1)
        z = R @ np.pad(v, (0, P - len(v)))
        said = levels(s, scale, lambda n: 2 * np.log2(2 * len(v)) / s**2)(z, codes, key, piece)
        return (R.T @ said)[: len(v)]

    return say


def witness(keep: Callable, say: Callable, weight: float = 1.0) -> QComp:
    def Q(u, piece, index, codes, key):
        g, support = np.zeros_like(u), keep(u, piece, index)
        v = np.float32(weight) * u[support]
        g[support] = say(v.astype(float), codes, key, piece)
        return g

    return Q


CASES: list[tuple[Compressor, QComp]] = [
    (tw.Identity(), witness(everything, exactly)),
    (TopK(k=3), witness(top(3), exactly)),
    (RandK(k=3), witness(drawn_at_random, exactly)),
    (RandK(density=0.75, rescale=True), witness(drawn_at_random, exactly, 12 / 9)),
    (Sign(), witness(everything, sign)),
    (TopK(k=3) >> Sign(), witness(top(3), sign)),
    (RandK(k=4) >> Sign(), witness(drawn_at_random, sign)),
    (QSGD(levels=5), witness(everything, qsgd(5))),
    (QSGD(levels=5, norm="max"), witness(everything, qsgd(5, "max"))),
    (QSGD(levels=5, scale="beta"), witness(everything, qsgd(5, "l2", "beta"))),
    (QSGD(bits=5, scale="none"), witness(everything, qsgd(15, "l2", "none"))),
    (TopK(k=5) >> QSGD(bits=3), witness(top(5), qsgd(3))),
    (
        RandK(k=5) >> QSGD(bits=3, norm="max", scale="beta"),
        witness(drawn_at_random, qsgd(3, "max", "beta")),
    ),
    (Levels(levels=6), witness(everything, levels(6))),
    (Levels(levels=6, scale="beta"), witness(everything, levels(6, "beta"))),
    (Levels(levels=9, scale="none"), witness(everything, levels(9, "none"))),
    (TopK(k=5) >> Levels(levels=3), witness(top(5), levels(3))),
    (Ternary(), witness(everything, qsgd(1, "max"))),
    (TopK(k=5) >> Ternary(scale="beta"), witness(top(5), qsgd(1, "max", "beta"))),
    (Rotated(levels=7), witness(everything, rotated(7))),
    (Rotated(levels=7, scale="beta"), witness(everything, rotated(7, "beta"))),
    (Rotated(levels=15, scale="none"), witness(everything, rotated(15, "none"))),
    (TopK(k=5) >> Rotated(levels=7), witness(top(5), rotated(7, first=8))),
]


def library(C: Compressor, exchange: tw.Exchange):
    """Trains N workers on a quadratic each by the library; yields anchors, deltas and draws."""
    g = torch.Generator().manual_seed(1)
    curvature = 0.5 + torch.rand(SPANS.d, generator=g)
    centers = torch.randn(N, SPANS.d, generator=g)
    anchor = torch.randn(SPANS.d, generator=g)
    mems = [exchange.init(here) for here in heres(C, SPANS, N)]
    run = [(anchor, None, None)]
    outer = tw.Average()
    for round in range(ROUNDS):
        deltas = []
        for r in range(N):
            params = anchor.clone()
            for _ in range(H):
                noise = torch.randn(SPANS.d, generator=g)
                params -= ETA * (curvature * (params - centers[r]) + 0.3 * noise)
            deltas.append(anchor - params)
        at = heres(C, SPANS, N, round)
        outcomes = talk(exchange, deltas, mems, at)
        drawn: Draws = []
        for here, frame in zip(at, said_frames(outcomes), strict=True):
            payload = unpack(Reader(frame[HEADER:], "here"), C, SPANS, here.key)
            index = np.zeros(0) if payload.index is None else payload.index.numpy()
            codes = None
            if isinstance(payload.values, Codes):
                starts = payload.layout.codes.tolist()
                flat = payload.values.codes.numpy()
                codes = [flat[a:b] for a, b in pairwise(starts)]
            drawn.append((index, codes, here.key))
        anchor, _ = outer.step(anchor, outcomes[0].direction, outer.init(anchor))
        mems = [outcome.mem for outcome in outcomes]
        run.append((anchor, torch.stack(deltas).numpy(), drawn))
    return run


@pytest.mark.parametrize(("C", "Q"), CASES, ids=[repr(C) for C, _ in CASES])
def test_a_hundred_rounds_follow_algorithm_1(C: Compressor, Q: QComp) -> None:
    run = library(C, tw.Server(tw.Feedback(permit="any")))
    check_follows(run, Q)


def check_follows(run, Q: QComp) -> None:
    """Asserts that the witness's anchor stays within 1e-6 of the library's in every round."""
    start, rounds = run[0][0].numpy(), run[1:]
    mine = algorithm_1(start, (d for _, d, _ in rounds), (w for _, _, w in rounds), Q)
    scale = max(float(anchor.abs().max()) for anchor, _, _ in run)
    for round, (x, (anchor, _, _)) in enumerate(zip(mine, rounds, strict=True)):
        worst = float(np.abs(x - anchor.numpy()).max())
        assert worst <= 1e-6 * scale, (round, worst, scale)


def test_another_algorithm_would_be_noticed() -> None:
    run = library(TopK(k=3) >> Sign(), tw.Server())
    check_follows(run, witness(top(3), sign))
    with pytest.raises(AssertionError):
        check_follows(run, witness(top(4), sign))
    forgetful = library(TopK(k=3) >> Sign(), tw.Server(tw.NoFeedback(permit="biased")))
    with pytest.raises(AssertionError):
        check_follows(forgetful, witness(top(3), sign))


def test_without_compression_it_is_plain_averaging() -> None:
    run = library(tw.Identity(), tw.Gather(tw.NoFeedback()))
    x = run[0][0].numpy()
    for anchor, deltas, _ in run[1:]:
        x = x - deltas.sum(0) / N
        assert np.abs(x - anchor.numpy()).max() <= 1e-6
