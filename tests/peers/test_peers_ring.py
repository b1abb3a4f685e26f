"""Ring in all its forms: one result on all ranks, books that balance, exactly the stated bytes."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from peer_talks import (
    End,
    fine,
    generator,
    heres,
    near,
    normal,
    round_of,
    same_bits,
    total,
)

import thinwire as tw
from thinwire import QSGD, Identity, Levels, RandK, Sign, TopK
from thinwire.compress import Compressor
from thinwire.exchange import Here
from thinwire.flat import Spans
from thinwire.wire.frame import HEADER, Kind

WORKERS = (1, 2, 3, 4, 5, 8, 13)
SIZES = (0, 1, 7, 1000)
FORMS = ("ring", "two-phase", "gather")
OPERATORS = (
    Identity(),
    Sign(),
    Sign(bucket=16),
    TopK(density=0.2),
    TopK(density=0.2) >> Sign(),
    RandK(density=0.4),
    QSGD(bits=4, norm="max", bucket=64),
    Levels(levels=7),
)
UNBIASED = QSGD(bits=4, norm="max", bucket=64, scale="none", coding="fixed")

forms = pytest.mark.parametrize("form", FORMS)
operators = pytest.mark.parametrize("C", OPERATORS, ids=repr)


def fed_rounds(form: str, C: Compressor, N: int, d: int | Spans, rounds: int = 3, pipeline=1 << 20):
    """Yields (u of each rank, ends) of rounds in a row with feedback."""
    exchange = tw.Ring(form, tw.Feedback(), pipeline=pipeline)
    size = heres(C, d, 1)[0].spans.d
    mems = [exchange.init(here) for here in heres(C, d, N)]
    for round in range(rounds):
        deltas = normal(N, size, seed=round)
        u = [exchange.feedback.owed(v, m) for v, m in zip(deltas, mems, strict=True)]
        ends = fine(round_of(exchange, heres(C, d, N, round), deltas, mems))
        yield u, ends
        mems = [end.value[1] for end in ends]


@forms
@operators
@pytest.mark.parametrize(
    "N", [pytest.param(N, marks=[pytest.mark.slow] if N > 5 else []) for N in WORKERS]
)
def test_replicas_hold_the_same_bits_after_every_round(form: str, C: Compressor, N: int) -> None:
    for d in SIZES:
        for u, ends in fed_rounds(form, C, N, d):
            for end in ends:
                same_bits(end.value[0], ends[0].value[0], (N, d))
                assert bool(end.value[0].isfinite().all())
                assert end.value[0].shape == u[0].shape


@forms
@pytest.mark.parametrize("N", WORKERS)
def test_replicas_hold_the_same_bits_without_feedback_too(form: str, N: int) -> None:
    for d in SIZES:
        exchange, at = tw.Ring(form), heres(UNBIASED, d, N)
        ends = fine(round_of(exchange, at, normal(N, d)))
        for end in ends:
            same_bits(end.value[0], ends[0].value[0], (N, d))
            assert end.value[1] == {}


@pytest.mark.slow
@forms
@operators
def test_what_all_owe_and_what_was_agreed_are_what_all_had_to_say(form: str, C: Compressor) -> None:
    # sum_i e_i + N direction = sum_i u_i
    spans = Spans(("w", "none", "scalar", "b"), ((30, 30), (0,), (), (99,)))
    whole = [(N, d, 1 << 20) for N in (1, 2, 3, 8) for d in (7, spans)]
    for N, d, pipeline in (*whole, (3, spans, 120), (13, 1000, 1 << 20)):
        for u, ends in fed_rounds(form, C, N, d, 3, pipeline):
            owed = total([end.value[1]["residual"] for end in ends])
            left = owed + N * ends[0].value[0].double()
            near(left, total(u), 1e-5 * float(total([v.abs() for v in u]).max()), (N, d))


@forms
def test_the_exact_ring_is_the_dense_mean(form: str) -> None:
    for N in WORKERS:
        for d in SIZES:
            u = normal(N, d)
            exchange = tw.Ring(form)
            for end in fine(round_of(exchange, heres(Identity(), d, N), u)):
                near(end.value[0], total(u) / N, 2e-6, (N, d))


@operators
def test_whole_messages_that_go_round_give_the_bits_of_gather(C: Compressor) -> None:
    for N in WORKERS:
        at, u = heres(C, 100, N), normal(N, 100)
        mine = fine(round_of(tw.Ring("gather", tw.Feedback()), at, u))
        theirs = fine(round_of(tw.Gather(), at, u))
        for a, b in zip(mine, theirs, strict=True):
            same_bits(a.value[0], b.value[0], N)
            same_bits(a.value[1]["residual"], b.value[1]["residual"], N)


@forms
def test_a_round_leaves_its_input_as_it_was(form: str) -> None:
    N, d = 3, 50
    for feedback in (tw.Feedback(), tw.NoFeedback()):
        exchange, at, u = tw.Ring(form, feedback), heres(UNBIASED, d, N), normal(N, d)
        mems = [{"residual": v * 0.1} if feedback == tw.Feedback() else {} for v in u]
        kept = [v.clone() for v in u], [{k: t.clone() for k, t in m.items()} for m in mems]
        first = fine(round_of(exchange, at, u, mems))
        for rank in range(N):
            same_bits(u[rank], kept[0][rank])
            for name in mems[rank]:
                same_bits(mems[rank][name], kept[1][rank][name])
        again = fine(round_of(exchange, at, u, mems))
        assert [e.posted for e in first] == [e.posted for e in again]


def test_it_is_noticed_when_the_books_do_not_balance() -> None:
    u, ends = next(iter(fed_rounds("ring", Sign(), 3, 100)))
    owed = total([end.value[1]["residual"] for end in ends])
    with pytest.raises(AssertionError):
        near(owed + 3.001 * ends[0].value[0].double(), total(u), 1e-5 * float(u[0].abs().max()))


# The wire.


def pieces(d: int, N: int, segment: int, pipeline: int) -> list[int]:
    """Returns how many entries each piece of a segment has, written down once more."""
    low, high = segment * d // N, (segment + 1) * d // N
    most = max(1, math.ceil(math.ceil(d / N) / pipeline))
    cuts = [low + (high - low) * n // most for n in range(most + 1)]
    return [b - a for a, b in pairwise(cuts)]


def segment_bytes(C: Compressor, d: int, N: int, segment: int, pipeline: int = 1 << 20) -> int:
    """Returns |C_g|: the bytes of one segment's frames."""
    cuts = pieces(d, N, segment, pipeline)
    # An empty piece holds no tensor, so no scale either.
    return sum(HEADER + C.nbytes(Spans.of(n) if n else Spans((), ())) for n in cuts)


def parts(frames: list[bytes]) -> Counter[tuple[int, int]]:
    """Counts frames by (rank that sealed it, part)."""
    return Counter((int.from_bytes(f[12:14], "little"), int.from_bytes(f[14:16], "little"))
                   for f in frames)  # fmt: skip


@pytest.mark.parametrize("pipeline", [1 << 20, 33])
def test_a_finished_segments_codes_travel_unchanged(pipeline: int) -> None:
    for N in WORKERS[1:]:
        exchange = tw.Ring("ring", pipeline=pipeline)
        d = 1000
        ends = fine(round_of(exchange, heres(UNBIASED, d, N), normal(N, d)))
        frames = [frame for end in ends for _, frame in end.posted]
        per = len(pieces(d, N, 0, pipeline))
        # Every rank codes every segment once; only its owner's coding is posted again.
        assert len(set(frames)) == N * N * per
        copies = Counter(frames)
        for frame, times in copies.items():
            (rank, part) = next(iter(parts([frame])))
            owner = (part // per - 1) % N
            assert times == (N - 1 if rank == owner else 1), (N, rank, part)
        assert len(parts(list(copies))) == len(copies)


@pytest.mark.parametrize("N", WORKERS)
@pytest.mark.parametrize("pipeline", [1 << 20, 33])
@pytest.mark.parametrize("C", [UNBIASED, Identity(), Levels(levels=255, scale="none")], ids=repr)
def test_a_ring_sends_what_its_formula_says_to_its_right_neighbour_alone(N, pipeline, C) -> None:
    for d in SIZES:
        exchange = tw.Ring("ring", pipeline=pipeline)
        ends = fine(round_of(exchange, heres(C, d, N), normal(N, d)))
        sizes = [segment_bytes(C, d, N, g, pipeline) for g in range(N)]
        for rank, end in enumerate(ends):
            # 2 (N - 1) |C_g|: in each lap all segments but one pass through a rank.
            scattered = sum(sizes) - sizes[(rank + 1) % N]
            gathered = sum(sizes) - sizes[(rank + 2) % N]
            assert end.sent == (scattered + gathered if N > 1 else 0), (N, d, rank)
            assert {to for to, _ in end.posted} <= {(rank + 1) % N}
            assert {source for source, _ in end.heard} <= {(rank - 1) % N}
            steps = sum(takes for _, takes in end.turns)
            assert steps == 2 * (N - 1) * len(pieces(d, N, 0, pipeline))


@pytest.mark.parametrize("N", WORKERS)
@pytest.mark.parametrize("pipeline", [1 << 20, 33])
def test_two_phase_sends_what_its_formula_says(N: int, pipeline: int) -> None:
    for d in SIZES:
        exchange = tw.Ring("two-phase", pipeline=pipeline)
        ends = fine(round_of(exchange, heres(UNBIASED, d, N), normal(N, d)))
        sizes = [segment_bytes(UNBIASED, d, N, g, pipeline) for g in range(N)]
        for rank, end in enumerate(ends):
            others = sum(sizes) - sizes[rank]
            assert end.sent == others + (N - 1) * sizes[rank]
            told = Counter(to for to, _ in end.posted)
            per = len(pieces(d, N, 0, pipeline))
            assert told == {to: 2 * per for to in range(N) if to != rank}
            assert len({frame for _, frame in end.posted}) == (N * per if N > 1 else 0)


@pytest.mark.parametrize("N", WORKERS)
@pytest.mark.parametrize("C", [UNBIASED, TopK(density=0.1) >> Sign()], ids=repr)
def test_the_gathering_form_sends_every_message_but_its_right_neighbours(N, C) -> None:
    for d in SIZES:
        exchange = tw.Ring("gather", tw.Feedback())
        ends = fine(round_of(exchange, heres(C, d, N), normal(N, d)))
        own = {r: len(ends[r].posted[0][1]) for r in range(N)} if N > 1 else {}
        for rank, end in enumerate(ends):
            expected = [own[(rank - hop) % N] for hop in range(N - 1)]
            assert [len(frame) for _, frame in end.posted] == expected
            assert {to for to, _ in end.posted} <= {(rank + 1) % N}
            assert [takes for _, takes in end.turns if takes] == [1] * (N - 1)
            if C.exact:
                assert end.sent == (N - 1) * (HEADER + C.nbytes(d))


@pytest.mark.parametrize("form", ["ring", "two-phase"])
@pytest.mark.parametrize("d", [100_000, 400_003])
def test_eight_bits_cost_within_a_hundredth_and_a_half_of_their_entries(form: str, d: int) -> None:
    C, N = QSGD(bits=8, norm="max", bucket=1024, scale="none", coding="fixed"), 4
    ideal = 2 * (N - 1) / N * d
    for end in fine(round_of(tw.Ring(form), heres(C, d, N), normal(N, d))):
        assert ideal <= end.sent <= 1.015 * ideal
        assert end.sent / ideal == pytest.approx(1.0, abs=0.015)


# The choice.


def test_auto_passes_sparse_messages_on_whole_and_says_why() -> None:
    C = TopK(density=0.1) >> Sign()
    for links in ("switched", "neighbours"):
        exchange = tw.Ring(links=links, feedback=tw.Feedback())
        (note,) = exchange.notes(C)
        assert "'gather'" in note
        assert "sparse messages do not add" in note
        posted = [e.posted for e in fine(round_of(exchange, heres(C, 60, 3), normal(3, 60)))]
        asked = tw.Ring("gather", tw.Feedback())
        assert posted == [e.posted for e in fine(round_of(asked, heres(C, 60, 3), normal(3, 60)))]


@pytest.mark.parametrize(
    ("links", "form", "why"),
    [("switched", "two-phase", "never less exact"), ("neighbours", "ring", "only neighbours")],
)
def test_auto_goes_by_the_links_and_says_why(links: str, form: str, why: str) -> None:
    (note,) = tw.Ring(links=links).notes(UNBIASED)
    assert f"{form!r}" in note
    assert why in note
    at, u = heres(UNBIASED, 60, 3), normal(3, 60)
    auto, asked = (
        [end.posted for end in fine(round_of(exchange, at, u))]
        for exchange in (tw.Ring(links=links), tw.Ring(form))
    )
    assert auto == asked


@forms
def test_a_form_that_was_asked_for_is_taken(form: str) -> None:
    for C in (UNBIASED, TopK(k=2) >> Sign()):
        assert tw.Ring(form).choose(C) == (form, "it was asked for")


def test_settings_out_of_range_name_the_choices() -> None:
    with pytest.raises(tw.ConfigError, match=r"form.*ring.*two-phase.*gather.*auto"):
        tw.Ring("tree")  # type: ignore[arg-type]
    with pytest.raises(tw.ConfigError, match=r"links.*switched.*neighbours"):
        tw.Ring(links="slow")  # type: ignore[arg-type]
    with pytest.raises(tw.ConfigError, match="pipeline"):
        tw.Ring(pipeline=0)


def test_a_biased_operator_without_feedback_is_refused_with_the_choices() -> None:
    with pytest.raises(tw.ConfigError, match=r"Ring.*biased.*Feedback\(\).*unbiased"):
        tw.Ring().check(Sign(), Spans.of(10))
    tw.Ring(feedback=tw.Feedback()).check(Sign(), Spans.of(10))


def test_no_contraction_with_feedback_is_refused_with_the_choices() -> None:
    C = QSGD(bits=2, scale="none")
    with pytest.raises(tw.ConfigError, match=r"Ring.*no contraction.*scale='fit'.*NoFeedback"):
        tw.Ring(feedback=tw.Feedback()).check(C, Spans.of(1000))
    tw.Ring().check(C, Spans.of(1000))


def test_one_bit_with_feedback_finds_the_minimum_that_one_bit_without_misses() -> None:
    # f_i(x) = |x - b_i|^2 / 2 with very different b_i; the minimum is mean b.
    N, d = 4, 40
    b = [3 * v for v in normal(N, d)]

    def left(feedback: tw.Feedback | tw.NoFeedback) -> float:
        exchange, x = tw.Ring("ring", feedback), torch.zeros(d)
        mems = [exchange.init(h) for h in heres(Sign(), d, N)]
        tail = torch.zeros(d)
        for round in range(400):
            deltas = [0.05 * (x - b_i) for b_i in b]
            ends = fine(round_of(exchange, heres(Sign(), d, N, round), deltas, mems))
            mems = [end.value[1] for end in ends]
            x = x - ends[0].value[0]
            tail += x / 200 if round >= 200 else 0
        return float((tail - total(b).float() / N).norm() / (total(b) / N).norm())

    assert left(tw.Feedback()) < 0.05
    assert left(tw.NoFeedback(permit="biased")) > 0.1


def _ends_are(ends: list[End], here: Here) -> None:
    assert all(f[3] == Kind.SAID for e in ends for _, f in e.posted), here


def test_every_frame_of_a_good_round_is_a_message() -> None:
    at = heres(UNBIASED, 30, 4)
    for form in FORMS:
        _ends_are(fine(round_of(tw.Ring(form), at, normal(4, 30))), at[0])


def test_other_seeds_draw_other_codes() -> None:
    u = [torch.randn(64, generator=generator(r)) for r in range(3)]
    for form in FORMS:
        one, same, other = (
            fine(round_of(tw.Ring(form), heres(UNBIASED, 64, 3, seed=seed), u))
            for seed in (1, 1, 2)
        )
        same_bits(one[0].value[0], same[0].value[0])
        assert not torch.equal(one[0].value[0], other[0].value[0])
