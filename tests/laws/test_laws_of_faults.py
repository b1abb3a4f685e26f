"""A frame that is not the one expected is a FrameError; a NaN is named on every rank."""

from __future__ import annotations

import pytest
import torch
from laws.law_cases import EXCHANGES, generator, same_bits
from laws.talks import Outcome, heres, one_round

import thinwire as tw
from thinwire import QSGD, Identity, RandK, Rotated, Sign, TopK
from thinwire.exchange import Here
from thinwire.flat import Spans
from thinwire.wire.frame import HEADER, Address, Kind, seal, unseal

SPANS = Spans(("w", "none", "b"), ((5, 4), (0,), (7,)))
C = TopK(k=4) >> QSGD(bits=4)
N = 3
FRAMED = [E for E in EXCHANGES if not isinstance(E, tw.AllReduce)]
framed = pytest.mark.parametrize("exchange", FRAMED, ids=repr)


def start(exchange, operator=C, spans=SPANS, n=N, round=5):
    at = heres(operator, spans, n, round)
    deltas = [torch.randn(spans.d, generator=generator(r)) for r in range(n)]
    return deltas, [exchange.init(here) for here in at], at


def reseal(frame: bytes, kind: int | None = None, **fields: int) -> bytes:
    """Returns the same body under another header, its checksum right."""
    run, round = (int.from_bytes(frame[i : i + 4], "little") for i in (4, 8))
    rank, part = (int.from_bytes(frame[i : i + 2], "little") for i in (12, 14))
    address = {"run": run, "round": round, "rank": rank, "part": part} | fields
    return seal(kind or frame[3], Address(**address), frame[HEADER:])  # type: ignore[arg-type]


def flip(frame: bytes, bit: int) -> bytes:
    out = bytearray(frame)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def field(frame: bytes, name: str) -> int:
    lo, hi = {"round": (8, 12), "rank": (12, 14), "run": (4, 8), "part": (14, 16)}[name]
    return int.from_bytes(frame[lo:hi], "little")


FAULTS = {
    "empty": lambda f: b"",
    "one byte": lambda f: f[:1],
    "half a header": lambda f: f[:13],
    "a header alone": lambda f: f[:HEADER],
    "one byte short": lambda f: f[:-1],
    "one byte long": lambda f: f + b"\0",
    "twice": lambda f: f + f,
    "another magic": lambda f: b"TW" + f[2:],
    "another version": lambda f: f[:2] + b"\1" + f[3:],
    "the last round": lambda f: reseal(f, round=field(f, "round") - 1),
    "the next round": lambda f: reseal(f, round=field(f, "round") + 1),
    "another rank": lambda f: reseal(f, rank=field(f, "rank") + 1),
    "another run": lambda f: reseal(f, run=field(f, "run") ^ 1),
    "another part": lambda f: reseal(f, part=1),
    "kind HELLO": lambda f: reseal(f, kind=Kind.HELLO),
    "kind VECTOR": lambda f: reseal(f, kind=Kind.VECTOR),
    "kind SAID or REPLY": lambda f: reseal(f, kind=Kind.REPLY if f[3] == Kind.SAID else Kind.SAID),
    "kind ALARM": lambda f: reseal(f, kind=Kind.ALARM),
    "kind 99": lambda f: reseal(f, kind=99),
    "an empty body": lambda f: seal(f[3], _address(f), b""),
    "a body cut, resealed": lambda f: seal(f[3], _address(f), f[HEADER:-1]),
    "a body grown, resealed": lambda f: seal(f[3], _address(f), f[HEADER:] + b"\0"),
}


def _address(f: bytes) -> Address:
    return Address(*(field(f, name) for name in ("run", "round", "rank", "part")))


def places(exchange) -> list[tuple[int, int]]:
    """Returns (hearer, number) of every frame that is heard from another rank."""
    deltas, mems, at = start(exchange)
    outcomes = one_round(exchange, deltas, mems, at)
    return [
        (rank, number)
        for rank, outcome in enumerate(outcomes)
        for number, (source, _) in enumerate(outcome.heard)
        if source != rank
    ]


def run_with(exchange, place, change) -> list[Outcome]:
    deltas, mems, at = start(exchange)
    before = [{n: t.clone() for n, t in m.items()} for m in mems]

    def tamper(hearer: int, number: int, frame: bytes) -> bytes:
        return change(frame) if (hearer, number) == place else frame

    outcomes = one_round(exchange, deltas, mems, at, tamper)
    for mem, kept in zip(mems, before, strict=True):
        assert mem.keys() == kept.keys()
        for name in kept:
            same_bits(mem[name], kept[name], name)
    return outcomes


def check_refused(exchange, place: tuple[int, int], outcomes: list[Outcome], what: str) -> None:
    """Asserts a FrameError where the frame was heard, and on all where the master heard it."""
    deltas, mems, at = start(exchange)
    whole = one_round(exchange, deltas, mems, at)
    hearer = place[0]
    struck = range(N) if getattr(exchange, "root", None) == hearer else [hearer]
    for rank, outcome in enumerate(outcomes):
        if rank in struck:
            assert type(outcome.error) is tw.FrameError, (what, rank, outcome.error)
        else:
            assert outcome.error is None, (what, rank, outcome.error)
            same_bits(outcome.direction, whole[rank].direction, what)


@framed
def test_a_wrong_frame_at_any_yield_is_a_frame_error(exchange: tw.Exchange) -> None:
    for place in places(exchange):
        for what, change in FAULTS.items():
            check_refused(exchange, place, run_with(exchange, place, change), what)


@pytest.mark.parametrize(
    "exchange", [tw.Gather(), tw.Server(root=1), tw.Server(downlink=Sign())], ids=repr
)
def test_any_flipped_bit_is_a_frame_error(exchange: tw.Exchange) -> None:
    heard = places(exchange)
    for place in heard:
        deltas, mems, at = start(exchange)
        frame = one_round(exchange, deltas, mems, at)[place[0]].heard[place[1]][1]
        for bit in [*range(8 * HEADER), *range(8 * HEADER, 8 * len(frame), 11)]:
            if bit % 5 and place != heard[0]:
                continue
            outcomes = run_with(exchange, place, lambda f, bit=bit: flip(f, bit))
            assert type(outcomes[place[0]].error) is tw.FrameError, bit
            assert outcomes[place[0]].direction is None


def test_a_fault_that_goes_unnoticed_would_be_noticed_here() -> None:
    exchange = tw.Gather()
    place = places(exchange)[0]
    outcomes = run_with(exchange, place, lambda f: f)
    with pytest.raises(AssertionError):
        check_refused(exchange, place, outcomes, "no fault at all")


@framed
def test_a_frame_longer_than_its_bound_is_never_posted(exchange: tw.Exchange) -> None:
    deltas, mems, at = start(exchange)
    for outcome in one_round(exchange, deltas, mems, at):
        for (_, frame), (_, bound) in zip(outcome.heard, outcome.bounds, strict=True):
            assert len(frame) <= bound


BAD = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


def check_named(outcomes: list[Outcome], found: list[tuple[int, str]], round: int) -> None:
    for rank, outcome in enumerate(outcomes):
        error = outcome.error
        assert type(error) is tw.NonFiniteError, (rank, error)
        assert (error.found, error.round) == (found, round), (rank, error.found)
        for broken, tensor in found:
            assert f"rank {broken}" in str(error)
            assert tensor in str(error)
        assert f"round {round}" in str(error)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=repr)
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_nan_on_any_rank_is_named_on_every_rank(exchange: tw.Exchange, bad: float) -> None:
    operator = Identity() if isinstance(exchange, tw.AllReduce) else C
    for broken in range(N):
        for where, tensor in ((3, "w"), (SPANS.d - 1, "b")):
            deltas, mems, at = start(exchange, operator)
            deltas[broken][where] = bad
            before = [{n: t.clone() for n, t in m.items()} for m in mems]
            check_named(one_round(exchange, deltas, mems, at), [(broken, tensor)], 5)
            for mem, kept in zip(mems, before, strict=True):
                for name in kept:
                    same_bits(mem[name], kept[name])


@pytest.mark.parametrize("exchange", EXCHANGES, ids=repr)
def test_all_broken_ranks_are_named(exchange: tw.Exchange) -> None:
    operator = Identity() if isinstance(exchange, tw.AllReduce) else C
    deltas, mems, at = start(exchange, operator)
    deltas[0][0] = torch.nan
    deltas[2][SPANS.d - 1] = torch.inf
    check_named(one_round(exchange, deltas, mems, at), [(0, "w"), (2, "b")], 5)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=repr)
@pytest.mark.parametrize(
    "name", ["layer." * 1000 + "weight", "ünïcödé" * 200, "\U0001f600" * 400], ids=len
)
def test_a_long_tensor_name_hides_no_nan(exchange: tw.Exchange, name: str) -> None:
    operator, spans = Identity(), Spans((name,), ((6,),))
    deltas, mems, at = start(exchange, operator, spans)
    deltas[1][2] = torch.nan
    for outcome in one_round(exchange, deltas, mems, at):
        assert type(outcome.error) is tw.NonFiniteError, type(outcome.error)
        assert [rank for rank, _ in outcome.error.found] == [1]


def test_many_ranks_diverging_at_once_are_a_non_finite_error_on_all() -> None:
    n, exchange = 160, tw.Server()
    spans = Spans(("transformer.h.0.attn.c_attn.weight",), ((3,),))
    deltas, mems, at = start(exchange, Identity(), spans, n)
    deltas = [torch.full((3,), torch.nan) for _ in deltas]
    for outcome in one_round(exchange, deltas, mems, at):
        assert type(outcome.error) is tw.NonFiniteError, type(outcome.error)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=repr)
def test_a_sum_that_overflows_is_refused_on_every_rank(exchange: tw.Exchange) -> None:
    deltas, mems, at = start(exchange, Identity())
    for delta in deltas:
        delta[1] = 3e38
    for outcome in one_round(exchange, deltas, mems, at):
        assert type(outcome.error) is tw.NonFiniteError, outcome.error
        assert outcome.error.found == [(-1, "w")]


LOUD = [
    Identity(),
    TopK(k=4),
    RandK(density=0.5, rescale=True),
    Sign(),
    QSGD(bits=4),
    QSGD(bits=16, scale="none"),
    tw.Levels(),
    tw.Levels(levels=1, scale="none"),
    Rotated(),
    TopK(k=4) >> Rotated(),
]


@pytest.mark.parametrize("operator", LOUD, ids=repr)
@pytest.mark.parametrize(
    "exchange",
    [
        tw.Gather(tw.NoFeedback(permit="biased")),
        tw.Gather(tw.Feedback(permit="any")),
        tw.Server(tw.Feedback(permit="any")),
        *(
            tw.Server(tw.Feedback(permit="any"), downlink=down)
            for down in (QSGD(bits=4), tw.Levels(), Rotated(), Sign())
        ),
    ],
    ids=repr,
)
def test_huge_values_are_applied_alike_or_refused_alike(exchange, operator) -> None:
    # Near the end of float32 an operator may say what does not fit: then no rank may go on.
    for size in (3e38, 3.4e38):
        for seed in range(3):
            deltas, mems, at = start(exchange, operator)
            for rank, delta in enumerate(deltas):
                shade = torch.rand(SPANS.d, generator=generator(10 * seed + rank))
                loud = size * (1 - 0.5 * shade) * (0.3 * (shade > 0.7) if rank else 1.0)
                delta.copy_(loud * delta.sign())
            check_alike(one_round(exchange, deltas, mems, at), (size, seed))


def check_alike(outcomes: list[Outcome], what: object) -> None:
    """Asserts one finite direction and finite memory on all ranks, or one NonFiniteError."""
    if outcomes[0].error is None:
        for rank, outcome in enumerate(outcomes):
            assert outcome.error is None, (what, rank, outcome.error)
            same_bits(outcome.direction, outcomes[0].direction, (what, rank))
            assert bool(outcome.direction.isfinite().all()), (what, rank, outcome.direction)
            for name, tensor in outcome.mem.items():
                assert bool(tensor.isfinite().all()), (what, rank, name)
    else:
        kinds = {type(o.error) for o in outcomes}
        assert kinds == {tw.NonFiniteError}, (what, [o.error for o in outcomes])


def test_ranks_that_part_would_be_noticed() -> None:
    fine, other = Outcome(torch.zeros(2), {}), Outcome(torch.ones(2), {})
    check_alike([fine, fine], "")
    for bad in (other, Outcome(error=tw.FrameError("x")), Outcome(torch.tensor([0, torch.inf]))):
        with pytest.raises(AssertionError):
            check_alike([fine, bad], "")
    with pytest.raises(AssertionError):
        check_alike([Outcome(error=tw.FrameError("x"))] * 2, "")


def test_a_downlink_whose_own_residual_overflows_is_refused_on_every_rank() -> None:
    exchange = tw.Server(tw.NoFeedback(), downlink=QSGD(bits=4))
    deltas, mems, at = start(exchange, Identity())
    deltas = [torch.full((SPANS.d,), 1e38) for _ in range(N)]
    mems[0]["down"] = torch.full((SPANS.d,), 3e38)
    check_alike(one_round(exchange, deltas, mems, at), "down")
    outcomes = one_round(exchange, deltas, mems, at)
    assert {type(o.error) for o in outcomes} == {tw.NonFiniteError}


def test_an_alarm_has_four_bytes_and_no_more() -> None:
    exchange = tw.Gather()
    place = places(exchange)[0]
    for body in (b"", b"\0" * 3, b"\0" * 5):
        outcomes = run_with(
            exchange, place, lambda f, body=body: seal(Kind.ALARM, _address(f), body)
        )
        assert type(outcomes[place[0]].error) is tw.FrameError, body


def test_an_alarm_of_the_all_reduce_has_four_bytes_and_no_more() -> None:
    exchange = tw.AllReduce()
    for body in (b"", b"\0" * 3, b"\0" * 5):
        deltas, mems, at = start(exchange, Identity())
        deltas[0][0] = torch.nan

        def tamper(hearer, number, frame, body=body):
            return seal(Kind.ALARM, _address(frame), body) if (hearer, number) == (1, 2) else frame

        outcomes = one_round(exchange, deltas, mems, at, tamper)
        assert type(outcomes[1].error) is tw.FrameError, (body, outcomes[1].error)
        assert type(outcomes[0].error) is tw.NonFiniteError


@framed
def test_a_group_goes_on_after_a_refused_round(exchange: tw.Exchange) -> None:
    deltas, mems, at = start(exchange)
    whole = one_round(exchange, deltas, mems, at)
    place = places(exchange)[0]
    run_with(exchange, place, lambda f: f[:-1])
    for outcome, again in zip(whole, one_round(exchange, deltas, mems, at), strict=True):
        same_bits(outcome.direction, again.direction)


def test_resealing_changes_what_it_says_and_nothing_else() -> None:
    frame = seal(Kind.SAID, Address(1, 2, 3), b"body")
    assert reseal(frame) == frame
    assert unseal(reseal(frame, rank=4), Address(1, 2, 4), Kind.SAID)[1] == b"body"


def test_a_here_knows_every_address() -> None:
    here: Here = heres(C, SPANS, 2)[1]
    assert here.address(0).rank == 0
    assert here.key_of(0).rank == 0
