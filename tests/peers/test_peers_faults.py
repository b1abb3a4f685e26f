"""A frame that is not the expected one ends the round on all ranks; a NaN is named, never used."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from peer_talks import End, Waits, fine, heres, normal, round_of, to_their_ends
from torch import Tensor

import thinwire as tw
from thinwire import QSGD, Identity, Rotated, Sign, TopK
from thinwire.compress import Compressor
from thinwire.flat import Spans
from thinwire.wire.frame import HEADER, Address, Kind, seal

SPANS = Spans(("w", "none", "b"), ((6, 5), (0,), (9,)))
UNBIASED = QSGD(bits=8, norm="max", bucket=8, scale="none")
FORMS = ("ring", "two-phase", "gather")
forms = pytest.mark.parametrize("form", FORMS)


def address(f: bytes, **changes: int) -> Address:
    whole = {
        name: int.from_bytes(f[low:high], "little")
        for name, low, high in (("run", 4, 8), ("round", 8, 12), ("rank", 12, 14), ("part", 14, 16))
    }
    return Address(**whole | changes)


FAULTS = {
    "empty": lambda f: b"",
    "half a header": lambda f: f[:13],
    "a header alone": lambda f: f[:HEADER],
    "one byte short": lambda f: f[:-1],
    "one byte long": lambda f: f + b"\0",
    "a bit flipped": lambda f: f[:-1] + bytes([f[-1] ^ 16]),
    "another version": lambda f: f[:2] + b"\1" + f[3:],
    "another run": lambda f: seal(f[3], address(f, run=7), f[HEADER:]),
    "the last round": lambda f: seal(f[3], address(f, round=4), f[HEADER:]),
    "another part": lambda f: seal(f[3], address(f, part=99), f[HEADER:]),
    "another rank": lambda f: seal(f[3], address(f, rank=12), f[HEADER:]),
    "another kind": lambda f: seal(Kind.VECTOR, address(f), f[HEADER:]),
    "a body cut, resealed": lambda f: seal(f[3], address(f), f[HEADER:-1]),
    "a body grown, resealed": lambda f: seal(f[3], address(f), f[HEADER:] + b"\0"),
    "an unreadable refusal": lambda f: seal(Kind.REFUSAL, address(f), b"\xff"),
}


def with_one_fault(exchange, C: Compressor, N: int, rank: int, number: int, fault) -> list[End]:
    at, u = heres(C, SPANS, N, round=5), normal(N, SPANS.d)
    touched = []

    def tamper(hearer: int, n: int, frame: bytes) -> bytes:
        if (hearer, n) == (rank, number):
            touched.append(frame)
            return fault(frame)
        return frame

    ends = round_of(exchange, at, u, tamper=tamper)
    assert len(touched) == 1
    return ends


@forms
@pytest.mark.parametrize("fault", FAULTS)
def test_a_ring_that_hears_a_broken_frame_ends_on_all_ranks(form: str, fault: str) -> None:
    N, exchange = 4, tw.Ring(form)
    heard = len(fine(round_of(exchange, heres(UNBIASED, SPANS, N, 5), normal(N, SPANS.d)))[0].heard)
    for number in range(heard):
        ends = with_one_fault(exchange, UNBIASED, N, 2, number, FAULTS[fault])
        assert isinstance(ends[2].error, tw.FrameError), (number, ends[2].error)
        if "at most" in str(ends[2].error):
            continue  # Longer than its bound: the transport ends this rank, and so its links.
        for rank, end in enumerate(ends):
            assert end.error is None or isinstance(end.error, tw.FrameError), (rank, end.error)
        if form != "gather" and number < N - 1:
            # Before a segment is finished there is time to tell everybody.
            assert all(isinstance(end.error, tw.FrameError) for end in ends), number


@pytest.mark.parametrize("fault", FAULTS)
def test_a_marsit_ring_that_hears_a_broken_frame_ends_on_all_ranks(fault: str) -> None:
    N = 4
    # The first frame that rank 2 hears is the agreed scale; then come its segments.
    for number in range(1, 2 * (N - 1) + 1):
        ends = with_one_fault(tw.Marsit(K=4), Sign(), N, 2, number, FAULTS[fault])
        assert isinstance(ends[2].error, tw.FrameError), (number, ends[2].error)
        for end in ends:
            assert end.error is None or isinstance(end.error, tw.FrameError), end.error
        if number < N:
            assert all(isinstance(end.error, tw.FrameError) for end in ends), number


@pytest.mark.parametrize("exchange", [tw.Marsit(K=4), tw.Choco()], ids=repr)
def test_a_broken_number_ends_the_round_on_all_ranks(exchange: tw.Exchange) -> None:
    number = 0 if isinstance(exchange, tw.Marsit) else 2
    ends = with_one_fault(exchange, Sign(), 4, 0, number, FAULTS["a bit flipped"])
    assert isinstance(ends[0].error, tw.FrameError)
    assert not any(isinstance(end.error, Waits) for end in ends)


# What is not finite, in a ring.


def hurt(N: int, where: Sequence[tuple[int, int]], bad: float) -> list[Tensor]:
    u = normal(N, SPANS.d)
    for rank, entry in where:
        u[rank][entry] = bad
    return u


def same_refusal(ends: Sequence[End], found: list[tuple[int, str]], round: int) -> None:
    for rank, end in enumerate(ends):
        assert isinstance(end.error, tw.NonFiniteError), (rank, end.error, end.value)
        assert end.error.found == found, rank
        assert end.error.round == round
        assert str(end.error) == str(ends[0].error)


@forms
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("C", [UNBIASED, Identity()], ids=repr)
def test_all_ranks_name_a_value_that_is_not_finite(form: str, bad: float, C: Compressor) -> None:
    for pipeline in (1 << 20, 4):
        exchange = tw.Ring(form, pipeline=pipeline)
        for N in (1, 2, 3, 5, 8):
            for rank in range(N):
                ends = round_of(exchange, heres(C, SPANS, N, 3), hurt(N, [(rank, 33)], bad))
                same_refusal(ends, [(rank, "b")], 3)


@forms
def test_all_ranks_name_every_rank_whose_values_are_not_finite(form: str) -> None:
    for N in (3, 8):
        where = [(0, 4), (1, 38), (N - 1, 0)]
        ends = round_of(tw.Ring(form), heres(UNBIASED, SPANS, N, 3), hurt(N, where, float("nan")))
        same_refusal(ends, [(0, "w"), (1, "b"), (N - 1, "w")], 3)


@pytest.mark.parametrize("form", ["ring", "two-phase"])
@pytest.mark.parametrize("held_back", [False, True])
def test_each_rank_is_named_with_its_first_tensor_however_late_a_piece_shows_it(
    monkeypatch: pytest.MonkeyPatch, form: str, held_back: bool
) -> None:
    if held_back:
        # As of long segments: a piece is said when one has been heard, and means go round.
        monkeypatch.setattr("thinwire.exchange.ring.goes_round", lambda bound: True)
        monkeypatch.setattr("thinwire.exchange.ring.UNHEARD", 1)
    spans = Spans(tuple(f"t{n:02}" for n in range(15)), ((4,),) * 15)
    draw = random.Random(0)
    for N in (1, 2, 3, 5) * 12:
        u, first = normal(N, spans.d), {}
        for _ in range(draw.randint(1, 5)):
            rank, entry = draw.randrange(N), draw.randrange(spans.d)
            u[rank][entry] = draw.choice([float("nan"), float("inf"), -float("inf")])
            first[rank] = min(first.get(rank, "t99"), f"t{entry // 4:02}")
        ends = round_of(tw.Ring(form, pipeline=3), heres(UNBIASED, spans, N, 3), u)
        same_refusal(ends, sorted(first.items()), 3)


@forms
def test_all_ranks_name_the_sum_where_only_the_sum_overflows(form: str) -> None:
    for N in (2, 4):
        ends = round_of(
            tw.Ring(form),
            heres(Identity(), SPANS, N, 3),
            hurt(N, [(r, 33) for r in range(N)], 3e38),
        )
        same_refusal(ends, [(-1, "b")], 3)


@pytest.mark.parametrize("form", ["ring", "two-phase", "gather"])
@pytest.mark.parametrize("C", [Rotated(levels=255, scale="none")], ids=repr)
def test_a_message_that_overflows_is_refused_on_all_ranks(form: str, C: Compressor) -> None:
    # Finite values, but a rotation of them is not.
    for N in (1, 3):
        u = [torch.full((SPANS.d,), 3e38) for _ in range(N)]
        for end in round_of(tw.Ring(form), heres(C, SPANS, N), u):
            assert isinstance(end.error, tw.NonFiniteError), (N, end.error, end.value)


@forms
def test_a_residual_that_is_not_finite_is_named_too(form: str) -> None:
    at, u = heres(Sign(), SPANS, 3), normal(3, SPANS.d)
    mems = [{"residual": torch.zeros(SPANS.d)} for _ in range(3)]
    mems[1]["residual"][2] = float("nan")
    same_refusal(round_of(tw.Ring(form, tw.Feedback()), at, u, mems), [(1, "w")], 0)


# In gossip.


def rounds_until_all_end(
    exchange: tw.Exchange, C: Compressor, N: int, bad_rank: int, bad_round: int, rounds: int
) -> tuple[list[End], list[list[Tensor]]]:
    """Lets every rank go on alone, round after round, and returns ends and anchors by rank."""
    anchors = [[torch.zeros(SPANS.d)] for _ in range(N)]

    def goes_on(rank: int):
        mem = None
        for round in range(rounds):
            here = heres(C, SPANS, N, round)[rank]
            mem = exchange.init(here) if mem is None else mem
            delta = torch.full((SPANS.d,), 0.1 * (rank + 1))
            if (rank, round) == (bad_rank, bad_round):
                delta[33] = float("nan")
            anchor = anchors[rank][-1]
            direction, mem = yield from exchange.round(anchor, delta, mem, here)
            anchors[rank].append(anchor - direction)

    return to_their_ends([goes_on(rank) for rank in range(N)]), anchors


def distances(graph: tw.Topology, N: int, start: int) -> list[int]:
    found, ahead = {start: 0}, [start]
    for rank in ahead:
        for j in graph.neighbours(rank, N):
            if j not in found:
                found[j] = found[rank] + 1
                ahead.append(j)
    return [found[rank] for rank in range(N)]


GOSSIPS = (
    (tw.Gossip(), UNBIASED),
    (tw.Gossip(mixing="before"), UNBIASED),
    (tw.Choco(gamma=0.5), TopK(density=0.3)),
    (tw.DeepSqueeze(gamma=0.5), QSGD(bits=8, norm="max")),
    (tw.DPSGD(), Identity()),
)
GRAPHS = (tw.RingGraph(), tw.Hypercube(), tw.Complete(), tw.Star(),
          tw.Graph(tuple((i, i + 1) for i in range(7))))  # fmt: skip


@pytest.mark.parametrize(("exchange", "C"), GOSSIPS, ids=repr)
@pytest.mark.parametrize("graph", GRAPHS, ids=repr)
def test_a_nan_is_known_to_all_within_the_graphs_diameter(exchange, C, graph) -> None:
    N, bad_rank, bad_round = 8, 3, 2
    settings = {"topology": graph}
    settings |= {"mixing": exchange.mixing} if hasattr(exchange, "mixing") else {}
    settings |= {"gamma": exchange.gamma} if hasattr(exchange, "gamma") else {}
    exchange = type(exchange)(**settings)
    ends, anchors = rounds_until_all_end(exchange, C, N, bad_rank, bad_round, 12)
    for rank, far in enumerate(distances(graph, N, bad_rank)):
        error = ends[rank].error
        assert isinstance(error, tw.NonFiniteError), (rank, error)
        assert error.found == [(bad_rank, "b")], rank
        # Whoever hears of it in a round applies nothing of that round, or of any later one.
        done = bad_round + max(0, far - 1)
        assert len(anchors[rank]) - 1 == done, (rank, far)
        assert all(bool(x.isfinite().all()) for x in anchors[rank])


def test_a_far_rank_names_the_round_in_which_the_nan_was() -> None:
    ends, _ = rounds_until_all_end(tw.Gossip(), UNBIASED, 8, 3, 2, 12)
    assert {end.error.round for end in ends} == {2}


@pytest.mark.parametrize("exchange", [tw.Choco(), tw.DeepSqueeze()], ids=repr)
def test_a_nan_in_the_round_that_measures_the_step_leaves_nobody_waiting(exchange) -> None:
    ends, _ = rounds_until_all_end(exchange, QSGD(bits=8, norm="max"), 8, 3, 0, 12)
    for rank, end in enumerate(ends):
        assert isinstance(end.error, tw.NonFiniteError), (rank, end.error)


def test_a_nan_on_a_changing_graph_leaves_nobody_waiting() -> None:
    ends, _ = rounds_until_all_end(tw.DPSGD(tw.RandomMatching()), Identity(), 8, 3, 2, 12)
    for rank, end in enumerate(ends):
        assert isinstance(end.error, tw.NonFiniteError), (rank, end.error)


def test_a_neighbour_of_two_bad_workers_names_one_of_them_at_least() -> None:
    N = 4
    ends = round_of(
        tw.Gossip(), heres(UNBIASED, SPANS, N, 3), hurt(N, [(0, 3), (2, 33)], float("nan"))
    )
    for rank in (0, 2):
        assert ends[rank].error.found == [(rank, "w" if rank == 0 else "b")]
    for rank in (1, 3):
        assert isinstance(ends[rank].error, tw.NonFiniteError)
        assert ends[rank].error.found[0] in [(0, "w"), (2, "b")]


@pytest.mark.parametrize(("exchange", "C"), GOSSIPS, ids=repr)
@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f not in ("empty", "an unreadable refusal")]
)
def test_gossip_refuses_a_broken_frame(exchange, C: Compressor, fault: str) -> None:
    for number in (0, 1):
        ends = with_one_fault(exchange, C, 5, 2, number, FAULTS[fault])
        for rank, end in enumerate(ends):
            assert (rank == 2) == isinstance(end.error, tw.FrameError), (rank, end.error)


def test_after_a_broken_frame_in_gossip_nobody_waits_for_who_heard_it() -> None:
    exchange, N = tw.Gossip(), 5

    def goes_on(rank: int):
        mem = exchange.init(heres(UNBIASED, SPANS, N)[rank])
        for round in range(8):
            here = heres(UNBIASED, SPANS, N, round)[rank]
            zero = torch.zeros(SPANS.d)
            _, mem = yield from exchange.round(zero, zero + 0.1, mem, here)

    def tamper(hearer: int, number: int, frame: bytes) -> bytes:
        return frame[:-1] if (hearer, number) == (2, 5) else frame

    for rank, end in enumerate(to_their_ends([goes_on(rank) for rank in range(N)], tamper)):
        assert isinstance(end.error, tw.FrameError), (rank, end.error)
