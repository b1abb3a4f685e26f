"""Every exchange: books that balance, one direction on all ranks, the price it wears."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws.law_cases import EXCHANGES, generator, same_bits, same_values
from laws.talks import Outcome, body_of, heres, one_round, said_frames

import thinwire as tw
from thinwire import QSGD, Identity, Levels, RandK, Rotated, Sign, Ternary, TopK
from thinwire.compress import Compressor
from thinwire.exchange import Here
from thinwire.exchange.driver import lockstep
from thinwire.flat import Spans
from thinwire.stats import Stats
from thinwire.wire.body import Reader, pack_sparse, unpack
from thinwire.wire.frame import HEADER, Kind

SPANS = Spans(("w", "none", "scalar", "b"), ((6, 8), (0,), (), (9,)))
OPERATORS: tuple[Compressor, ...] = (
    Identity(),
    TopK(density=0.2),
    TopK(k=4) >> Sign(),
    RandK(density=0.4),
    Sign(),
    TopK(k=9, scope="global") >> QSGD(bits=4),
    Ternary(bucket=16),
    Levels(levels=7, scope="global"),
    RandK(density=0.5) >> Rotated(bucket=8),
    RandK(density=0.6, rescale=True) >> QSGD(bits=6, scale="none"),
)
SIZES = (1, 2, 3, 5)
ROUNDS = 3


def sits(exchange: tw.Exchange, N: int) -> bool:
    return getattr(exchange, "root", 0) < N


def carries(exchange: tw.Exchange, C: Compressor) -> bool:
    return not isinstance(exchange, tw.AllReduce) or Identity() == C


TABLES = [
    pytest.param(E, C, id=f"{E!r}-{C!r}") for E in EXCHANGES for C in OPERATORS if carries(E, C)
]
tables = pytest.mark.parametrize(("exchange", "C"), TABLES)


def deltas_of(N: int, round: int, d: int = SPANS.d) -> list[torch.Tensor]:
    return [torch.randn(d, generator=generator(1000 * round + r)) ** 3 for r in range(N)]


def rounds(exchange: tw.Exchange, C: Compressor, N: int, n: int = ROUNDS):
    """Yields (heres, deltas, memory before, outcomes) of n rounds in a row."""
    mems = [exchange.init(here) for here in heres(C, SPANS, N)]
    for round in range(n):
        at, deltas = heres(C, SPANS, N, round), deltas_of(N, round)
        outcomes = one_round(exchange, deltas, mems, at)
        for outcome in outcomes:
            assert outcome.error is None, outcome.error
        yield at, deltas, mems, outcomes
        mems = [o.mem for o in outcomes]


def said_by(outcomes: list[Outcome], at: list[Here]) -> list[torch.Tensor]:
    """Returns what each rank said, decoded from the bytes that it posted."""
    said = []
    for rank, frame in enumerate(said_frames(outcomes)):
        reader = Reader(body_of(frame), "here")
        payload = unpack(reader, at[rank].compressor, SPANS, at[rank].key)
        reader.end()
        said.append(at[rank].compressor.decompress(payload))
    return said


def total(vectors) -> torch.Tensor:
    return torch.stack([v.double() for v in vectors]).sum(0)


@tables
def test_all_ranks_return_the_same_bits(exchange: tw.Exchange, C: Compressor) -> None:
    for N in SIZES:
        if sits(exchange, N):
            for _, _, _, outcomes in rounds(exchange, C, N):
                for outcome in outcomes:
                    same_bits(outcome.direction, outcomes[0].direction, N)
                    assert bool(outcome.direction.isfinite().all())


@tables
def test_each_worker_says_what_it_learned_or_still_owes_it_or_has_forgotten_it(
    exchange: tw.Exchange, C: Compressor
) -> None:
    if isinstance(exchange, tw.AllReduce):
        return
    for N in SIZES:
        if not sits(exchange, N):
            continue
        learned, spoken, forgotten = [torch.zeros(N, SPANS.d, dtype=torch.float64) for _ in "123"]
        for at, deltas, mems, outcomes in rounds(exchange, C, N):
            for rank, said in enumerate(said_by(outcomes, at)):
                learned[rank] += deltas[rank]
                spoken[rank] += said
                if isinstance(exchange.feedback, tw.NoFeedback):
                    forgotten[rank] += deltas[rank].double() - said
                else:
                    lost = 1 - exchange.feedback.decay
                    forgotten[rank] += lost * mems[rank]["residual"].double()
        for rank, outcome in enumerate(outcomes):
            residual = outcome.mem.get("residual", torch.zeros(SPANS.d)).double()
            books = spoken[rank] + residual + forgotten[rank]
            scale = float(learned[rank].abs().max() + spoken[rank].abs().max())
            same_values(books, learned[rank], scale, (N, rank))


@tables
def test_what_is_owed_and_what_is_agreed_are_what_was_to_be_said(
    exchange: tw.Exchange, C: Compressor
) -> None:
    # sum_i residual_i + N direction + N down' = sum_i u_i + N down: the exact mean has no down.
    if isinstance(exchange, tw.AllReduce):
        return
    for N in SIZES:
        if not sits(exchange, N):
            continue
        for at, deltas, mems, outcomes in rounds(exchange, C, N):
            zero = torch.zeros(SPANS.d)
            if isinstance(exchange.feedback, tw.NoFeedback):
                u = said_by(outcomes, at)  # The rest is forgotten, so it is not in the books.
                owed = zero
            else:
                u = [exchange.feedback.owed(d, m) for d, m in zip(deltas, mems, strict=True)]
                owed = total(o.mem["residual"] for o in outcomes)
            root = getattr(exchange, "root", 0)
            down, after = (m.get("down", zero).double() for m in (mems[root], outcomes[root].mem))
            left = owed + N * outcomes[0].direction.double() + N * after
            same_values(left, total(u) + N * down, float(total(v.abs() for v in u).max() + 1), N)


@tables
def test_the_direction_is_the_mean_of_what_was_said(exchange: tw.Exchange, C: Compressor) -> None:
    for N in SIZES:
        if not sits(exchange, N) or getattr(exchange, "downlink", None) is not None:
            continue
        for at, deltas, _, outcomes in rounds(exchange, C, N, 2):
            said = deltas if isinstance(exchange, tw.AllReduce) else said_by(outcomes, at)
            folded = torch.zeros(SPANS.d)
            for one in said:
                folded += one
            same_bits(outcomes[0].direction, folded / N + 0.0, N)


@pytest.mark.parametrize("C", OPERATORS, ids=repr)
@pytest.mark.parametrize(
    "feedback", [tw.Feedback(), tw.Feedback(decay=0.9), tw.NoFeedback(permit="biased")], ids=repr
)
def test_gather_and_an_exact_server_on_any_rank_end_in_the_same_bits(feedback, C) -> None:
    for N in SIZES:
        runs = [list(rounds(tw.Gather(feedback), C, N))]
        runs += [list(rounds(tw.Server(feedback, root=root), C, N)) for root in range(N)]
        for round in range(ROUNDS):
            for run in runs[1:]:
                for mine, theirs in zip(run[round][3], runs[0][round][3], strict=True):
                    same_bits(mine.direction, theirs.direction, (N, round))
                    assert mine.mem.keys() == theirs.mem.keys()
                    for name in mine.mem:
                        same_bits(mine.mem[name], theirs.mem[name], (N, round, name))


@tables
def test_the_library_driver_ends_in_the_same_bits(exchange: tw.Exchange, C: Compressor) -> None:
    N = 3
    for round, (at, deltas, mems, outcomes) in enumerate(rounds(exchange, C, N)):
        stats = [Stats() for _ in range(N)]
        zero = torch.zeros(SPANS.d)
        talks = [exchange.round(zero, deltas[r], mems[r], at[r]) for r in range(N)]
        results = lockstep(talks, stats)
        for rank, (outcome, counted) in enumerate(zip(outcomes, stats, strict=True)):
            same_bits(results[rank][0], outcome.direction, round)
            for name, tensor in outcome.mem.items():
                same_bits(results[rank][1][name], tensor, (round, name))
            away = sum(len(f) for to, f in outcome.posted if to != rank)
            came = sum(len(f) for source, f in outcome.heard if source != rank)
            assert sum(counted.sent.values()) == away
            assert sum(counted.received.values()) == came
            assert counted.reduced == outcome.reduced


def away(outcome: Outcome, rank: int) -> list[int]:
    return [len(frame) for to, frame in outcome.posted if to != rank]


def came(outcome: Outcome, rank: int) -> list[int]:
    return [len(frame) for source, frame in outcome.heard if source != rank]


@tables
def test_the_price_is_what_the_docstring_says(exchange: tw.Exchange, C: Compressor) -> None:
    for N in SIZES:
        if not sits(exchange, N):
            continue
        for at, _, _, outcomes in rounds(exchange, C, N, 2):
            if isinstance(exchange, tw.AllReduce):
                for outcome in outcomes:
                    assert (outcome.posted, outcome.heard) == ([], [])
                    assert outcome.reduced == 4 * SPANS.d
                continue
            sizes = [len(frame) for frame in said_frames(outcomes)]
            for here, size in zip(at, sizes, strict=True):
                assert size <= HEADER + here.compressor.nbytes(SPANS)
                if here.compressor.exact:
                    assert size == HEADER + here.compressor.nbytes(SPANS)
            for rank, outcome in enumerate(outcomes):
                others = [size for r, size in enumerate(sizes) if r != rank]
                if isinstance(exchange, tw.Gather):
                    assert outcome.turns == [(N, 0), (0, N)]
                    assert away(outcome, rank) == [sizes[rank]] * (N - 1)
                    # The nearest on the left comes first.
                    assert came(outcome, rank) == [sizes[rank - hop] for hop in range(1, N)]
                    continue
                root = exchange.root
                replies = {f for _, f in outcomes[root].posted if f[3] == Kind.REPLY}
                assert len(replies) == min(1, N - 1)
                reply = len(next(iter(replies), b""))
                if rank == root:
                    assert outcome.turns == [(1, N), (N - 1, 0)]
                    assert away(outcome, rank) == [reply] * (N - 1)
                    assert came(outcome, rank) == others
                else:
                    assert outcome.turns == [(1, 0), (0, 1)]
                    assert away(outcome, rank) == [sizes[rank]]
                    assert came(outcome, rank) == [reply]
                if exchange.downlink is not None and N > 1:
                    assert reply <= HEADER + 1 + exchange.downlink.nbytes(SPANS)


@pytest.mark.parametrize("C", OPERATORS, ids=repr)
def test_an_exact_reply_is_the_smallest_of_dense_union_and_bundle(C: Compressor) -> None:
    for N in (2, 3, 5):
        for _, _, _, outcomes in rounds(tw.Server(tw.NoFeedback(permit="biased")), C, N):
            (reply,) = {f for _, f in outcomes[0].posted if f[3] == Kind.REPLY}
            mean = outcomes[0].direction
            index = mean.nonzero().squeeze(1)
            choices = {
                0: 4 * SPANS.d,
                1: len(pack_sparse(index, mean[index], SPANS.d)),
                2: sum(len(body_of(f)) for f in said_frames(outcomes)),
            }
            assert len(reply) == HEADER + 1 + min(choices.values())
            assert choices[body_of(reply)[0]] == min(choices.values())


@tables
def test_a_round_leaves_its_input_as_it_was(exchange: tw.Exchange, C: Compressor) -> None:
    N = 3
    for at, deltas, mems, _ in rounds(exchange, C, N, 2):
        kept = [d.clone() for d in deltas], [{n: t.clone() for n, t in m.items()} for m in mems]
        first = one_round(exchange, deltas, mems, at)
        for rank in range(N):
            same_bits(deltas[rank], kept[0][rank])
            assert mems[rank].keys() == kept[1][rank].keys()
            for name, tensor in mems[rank].items():
                same_bits(tensor, kept[1][rank][name], name)
        second = one_round(exchange, deltas, mems, at)
        for a, b in zip(first, second, strict=True):
            same_bits(a.direction, b.direction)
            assert a.posted == b.posted


@pytest.mark.parametrize("exchange", EXCHANGES, ids=repr)
def test_nothing_learned_is_nothing_moved(exchange: tw.Exchange) -> None:
    for N in SIZES:
        if sits(exchange, N):
            at, deltas = heres(Identity(), SPANS, N), [torch.zeros(SPANS.d) for _ in range(N)]
            for outcome in one_round(exchange, deltas, [exchange.init(h) for h in at], at):
                same_bits(outcome.direction, torch.zeros(SPANS.d))


@pytest.mark.parametrize("exchange", EXCHANGES, ids=repr)
@pytest.mark.parametrize("spans", [Spans.of(0), Spans(("a", "b"), ((0,), (2, 0)))], ids=repr)
def test_an_empty_model_makes_its_rounds_too(exchange: tw.Exchange, spans: Spans) -> None:
    for C in (C for C in OPERATORS if carries(exchange, C)):
        at = heres(C, spans, 3)
        mems = [exchange.init(h) for h in at]
        for outcome in one_round(exchange, [torch.zeros(0) for _ in at], mems, at):
            assert outcome.error is None
            assert outcome.direction.shape == (0,)


@pytest.mark.parametrize("root", [1, 2, 7])
def test_a_root_outside_the_group_is_refused(root: int) -> None:
    with pytest.raises(tw.ConfigError, match="ranks 0 to 0"):
        tw.Server(root=root).init(heres(Identity(), SPANS, 1)[0])


def test_workers_round_by_draws_of_their_own_and_agree_on_shared_ones() -> None:
    C = RandK(density=0.4) >> QSGD(bits=3)
    delta = deltas_of(1, 0)[0]
    payloads = [C.compress(delta, h.key, SPANS) for h in heres(C, SPANS, 3)]
    for other in payloads[1:]:
        same_bits(other.index, payloads[0].index)
        assert not torch.equal(other.values.codes, payloads[0].values.codes)


def test_a_wrong_fold_would_be_noticed() -> None:
    at, deltas, _, outcomes = next(iter(rounds(tw.Gather(), Identity(), 3)))
    backwards = (deltas[2] + deltas[1] + deltas[0]) / 3
    with pytest.raises(AssertionError):
        same_bits(outcomes[0].direction, backwards)
    with pytest.raises(AssertionError):
        same_values(outcomes[0].direction, backwards * 1.001, float(backwards.abs().max()))
    with pytest.raises(AssertionError):
        same_bits(outcomes[0].direction, replace(at[0], N=2).N * backwards)
