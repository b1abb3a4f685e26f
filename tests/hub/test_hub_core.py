"""The hub's state machine: exact replies, books that balance, nothing applied twice."""

from __future__ import annotations

import copy
import zlib
from dataclasses import replace

import pytest
import torch
from hub_cases import (
    PER_WORKER,
    RUN,
    SEED,
    SIGNTOPK,
    SPANS,
    STREAM,
    Worker,
    core,
    first_model,
    same_state,
    told,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_talks import same_bits

import thinwire as tw
from thinwire.errors import ConfigError
from thinwire.hub.core import Core
from thinwire.hub.refused import Refused, Why
from thinwire.hub.said import Said
from thinwire.hub.state import Ring, Stretch, first_state
from thinwire.wire.body import pack
from thinwire.wire.frame import Address, Kind, seal

HUBS = [
    tw.Hub(downlink=tw.Exact()),
    tw.Hub(downlink=tw.Exact(memory=400)),
    tw.Hub(downlink=tw.Exact(memory=0), counting=tw.FixedN(5)),
    tw.Hub(downlink=STREAM),
    tw.Hub(downlink=tw.Stream(tw.Sign(), memory=30)),
    tw.Hub(outer=tw.Nesterov(lr=0.3), downlink=tw.Exact(), counting=tw.FixedN(4)),
    tw.Hub(outer=tw.DelayedNesterov(lr=0.5, every=3), downlink=STREAM),
    tw.Hub(counting=tw.ByWeight(), staleness=tw.Staleness(2, "scale"), downlink=tw.Exact()),
    tw.Hub(staleness=tw.Staleness(1, "refuse"), downlink=STREAM),
    tw.Hub(downlink=PER_WORKER),
    tw.Hub(outer=tw.Nesterov(lr=0.3), staleness=tw.Staleness(1, "refuse"), downlink=PER_WORKER),
]
hubs = pytest.mark.parametrize("exchange", HUBS, ids=repr)


def replayed(exchange: tw.Hub, records: list[bytes], compressor=SIGNTOPK) -> Core:
    again = core(exchange, compressor)
    for record in records:
        again.replay(record)
    return again


def order(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@hubs
def test_a_worker_ends_with_the_bits_that_the_hub_tells_of(exchange: tw.Hub) -> None:
    hub = core(exchange)
    workers = [Worker(hub, f"w{n}", weight=n + 1.0) for n in range(3)]
    for who in order(120):
        workers[who].say()
        same_bits(workers[who].state.anchor, told(hub, workers[who]))
        assert int(workers[who].state.mem["version"]) == hub.state.version


@hubs
def test_the_same_records_end_in_the_same_bits(exchange: tw.Hub) -> None:
    hub = core(exchange, SIGNTOPK)
    workers = [Worker(hub, f"w{n}", weight=n + 1.0) for n in range(3)]
    records = [r for w in workers for r in w.records]
    for step, who in enumerate(order(60)):
        records += workers[who].say()
        if step == 30:
            records.append(hub.leave("w1").content)
            workers[1].join(1.0)
            records += workers[1].records
    again = core(exchange)
    for record in records:
        again.replay(record)
    same_state(again.state, hub.state)
    for record in records:
        if record[0] == 2:
            again.replay(record)  # An update twice is an update once.
    same_state(again.state, hub.state)


def test_a_record_that_is_missing_is_an_error() -> None:
    hub = core(HUBS[0])
    workers = [Worker(hub, f"w{n}") for n in range(3)]
    records = [r for w in workers for r in w.records]
    for w in (*workers, *workers):
        records += w.say()
    records.append(hub.leave("w1").content)
    for lost, word in (
        (0, "number 2 joins, number 1 did not"),
        (2, "number 3 speaks or leaves"),
        (4, "update 1 of worker 'w1' is there, update 0 is not"),
    ):
        with pytest.raises(ConfigError, match=f"gap.*{word}"):
            replayed(HUBS[0], [*records[:lost], *records[lost + 1 :]])


def test_what_was_said_is_applied_or_owed_by_the_hub_or_still_owed_by_its_worker() -> None:
    for exchange in HUBS[:5]:
        hub = core(exchange)
        workers = [Worker(hub, f"w{n}") for n in range(3)]
        learned = torch.zeros(SPANS.d, dtype=torch.float64)
        for who in order(90):
            params = workers[who].learn()
            learned += (workers[who].state.anchor - params).double()
            workers[who].say(params=params)
        owed = sum(w.state.mem["residual"].double() for w in workers)
        divisor = getattr(exchange.counting, "N", 3)
        moved = (first_model() - hub.state.model).double() * divisor
        assert float((learned - owed - moved).abs().max()) < 1e-4


def test_a_refused_update_stays_in_the_residual_whole() -> None:
    hub = core(tw.Hub(staleness=tw.Staleness(1, "refuse"), downlink=tw.Exact()))
    slow, fast = Worker(hub, "slow"), Worker(hub, "fast")
    for _ in range(3):
        fast.say()
    params = slow.learn()
    u = slow.state.anchor - params
    before = hub.state.anchor.clone()
    slow.say(params=params)
    same_bits(slow.state.mem["residual"], u)
    same_bits(hub.state.anchor, before)
    same_bits(slow.state.anchor, before)
    assert (hub.state.refused, hub.state.applied) == (1, 3)
    assert hub.state.members["slow"].sequence == 1
    slow.say()
    assert hub.state.applied == 4


@pytest.mark.parametrize(("most", "n"), [(0, 3), (4, 8)])
def test_a_hub_that_refuses_late_updates_goes_on_for_every_worker(most: int, n: int) -> None:
    # With a frame after every n updates more than may be missed would be unsaid, for good.
    exchange = tw.Hub(
        staleness=tw.Staleness(most, "refuse"), downlink=tw.Stream(tw.TopK(k=3) >> tw.Sign())
    )
    hub = core(exchange)
    workers = [Worker(hub, f"w{k}") for k in range(n)]
    records = [r for w in workers for r in w.records]
    draws = torch.randint(n, (2, 40 * n), generator=torch.Generator().manual_seed(0))
    for half in draws.tolist():
        before = {name: m.applied for name, m in hub.state.members.items()}
        for who in half:
            records += workers[who].say()
            assert hub.state.unsaid <= most
            same_bits(workers[who].state.anchor, hub.state.anchor)
        assert all(m.applied > before[name] for name, m in hub.state.members.items())
    assert hub.state.refused
    same_state(replayed(exchange, records).state, hub.state)
    # What a worker at the newest version says is always taken.
    workers[0].say()
    applied = hub.state.applied
    workers[0].say()
    assert hub.state.applied == applied + 1


def test_a_late_update_counts_less_where_the_policy_says_so() -> None:
    assert tw.Staleness(3, "scale").factor(3) == 1.0
    assert tw.Staleness(3, "scale").factor(7) == 0.5
    assert tw.Staleness().factor(10**6) == 1.0
    with pytest.raises(tw.ConfigError, match="a bound needs a policy"):
        tw.Staleness(3)


def test_the_staleness_of_an_update_is_what_was_applied_since_its_model() -> None:
    for downlink in (tw.Exact(), tw.Stream(tw.Sign(), every=1)):
        hub = core(tw.Hub(downlink=downlink))
        a, b = Worker(hub, "a"), Worker(hub, "b")
        for _ in range(5):
            a.say()
        b.say()
        assert hub.state.histogram[:4] == [5, 0, 0, 1]


def test_one_worker_in_turn_is_lock_step_algorithm_2_to_the_last_bit() -> None:
    # Where one speaks per tick, the sum of what was said is what it said.
    for outer in (tw.Average(), tw.Nesterov(lr=0.3)):
        hub = core(tw.Hub(outer=outer, counting=tw.FixedN(3), downlink=tw.Exact()))
        workers = [Worker(hub, f"w{n}") for n in range(3)]
        x, state = first_model(), outer.init(first_model())
        residuals = [torch.zeros(SPANS.d) for _ in range(3)]
        for who in order(50):
            w = workers[who]
            params = w.learn()
            u = (w.state.anchor - params) + residuals[who]
            said = SIGNTOPK.decompress(SIGNTOPK.compress(u, w.here(w.state.round).key, SPANS))
            residuals[who] = u - said
            x, state = outer.step(x, said / 3 + 0.0, state)
            w.say(params=params)
            same_bits(hub.state.anchor, x)
            same_bits(w.state.mem["residual"], residuals[who])


def test_the_streams_downlink_does_not_grow_with_the_workers() -> None:
    def down(N: int, downlink: tw.Exact | tw.Stream) -> float:
        hub = core(tw.Hub(downlink=downlink))
        workers = [Worker(hub, f"w{n}") for n in range(N)]
        for _ in range(10):
            for w in workers:
                w.say()
        return sum(w.stats.received["ANCHOR"] for w in workers) / (10 * N)

    stream = tw.Stream(tw.TopK(k=2, scope="global") >> tw.Sign())
    assert down(24, stream) <= 1.1 * down(4, stream)
    assert down(24, tw.Exact()) > 1.5 * down(4, tw.Exact())


def test_an_update_sent_again_is_answered_and_not_applied_again() -> None:
    # Which `PerWorker` answers with the whole model.
    for exchange in (hub for hub in HUBS if hub.downlink != PER_WORKER):
        hub = core(exchange)
        w = Worker(hub, "w")
        w.say()
        base, frame, reply = w.last
        before = copy.deepcopy(hub.state)
        again = hub.update("w", base, frame, 1.0)
        assert again.record is None
        assert b"".join(again.reply) == reply
        same_state(hub.state, before)


def refusals(hub: Core, w: Worker):
    """(why, a word of the sentence, name, base, frame) of each thing a hub must not take."""
    talk = w.talk()
    good = next(talk).posts[0].frame
    body, n, number = good[26:], w.state.round, w.number
    at = lambda run=RUN, round=n, rank=number: Address(run, round, rank)
    old = seal(Kind.SAID, at(round=n - 1), body)
    broken = bytearray(good)
    broken[-1] ^= 1
    yield Why.RUN, "is of run", "w", 0, seal(Kind.SAID, at(run=1), body)
    yield Why.ORDER, "signed by", "w", 0, seal(Kind.SAID, at(rank=number + 1), body)
    yield Why.REPLAY, "applied before", "w", 0, old
    yield Why.ORDER, "too early", "w", 0, seal(Kind.SAID, at(round=n + 1), body)
    yield Why.ORDER, "has not joined", "nobody", 0, good
    yield Why.ORDER, "begins from version", "w", 10**9, good
    yield Why.FRAME, "checksum", "w", 0, bytes(broken)
    yield Why.FRAME, "no frame", "w", 0, b"hello"
    yield Why.FRAME, "left over", "w", 0, seal(Kind.SAID, at(), body + b"x")
    yield Why.FRAME, "expected SAID", "w", 0, seal(Kind.HELLO, at(), body)
    yield Why.FRAME, "needs", "w", 0, seal(Kind.SAID, at(), body[:-1])


def test_each_wrong_update_is_refused_for_its_own_reason_and_changes_nothing() -> None:
    for exchange in HUBS:
        hub = core(exchange)
        w = Worker(hub, "w")
        w.say()
        before = copy.deepcopy(hub.state)
        for why, word, name, base, frame in refusals(hub, w):
            with pytest.raises(Refused, match=word) as caught:
                hub.update(name, base, frame, 0.0)
            assert caught.value.why is why, caught.value
            same_state(hub.state, before)


def test_a_nan_and_a_model_that_would_overflow_are_refused() -> None:
    for outer in (tw.Average(), tw.Nesterov(lr=1.0)):
        check_overflow(core(tw.Hub(outer=outer, downlink=tw.Exact()), tw.Identity()))


def check_overflow(hub: Core) -> None:
    w = Worker(hub, "w")
    for value, word in ((float("nan"), "NaN"), (3e38, "infinite")):
        hub.state.anchor[3] = -3e38
        v = torch.zeros(SPANS.d)
        v[3] = value
        frame = seal(Kind.SAID, Address(RUN, 0, w.number), v.numpy().tobytes())
        before = copy.deepcopy(hub.state)
        with pytest.raises(Refused, match=word) as caught:
            hub.update("w", 0, frame, 0.0)
        assert caught.value.why is Why.NONFINITE
        same_state(hub.state, before)


@pytest.mark.parametrize("outer", [tw.Average(), tw.Nesterov(lr=1.0)], ids=repr)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("compressor", [tw.Identity(), tw.TopK(k=1) >> tw.Sign()], ids=repr)
def test_a_stream_tells_of_no_infinite_model(
    outer: tw.Outer, every: int, compressor: tw.Compressor
) -> None:
    stream = tw.Stream(tw.TopK(k=1) >> tw.Sign(), every=every)
    exchange = tw.Hub(outer=outer, counting=tw.FixedN(1), downlink=stream)
    hub = core(exchange, compressor)
    w = Worker(hub, "w")
    records, refused = list(w.records), 0
    v = torch.zeros(SPANS.d)
    v[3] = -3e37
    body = pack(compressor.compress(v, tw.Key(SEED, 0, w.number), SPANS), compressor)
    for _ in range(12):
        sequence = hub.state.members["w"].sequence
        frame = seal(Kind.SAID, Address(RUN, sequence, w.number), body)
        before = copy.deepcopy(hub.state)
        (answer,) = hub.updates([Said("w", hub.state.version, frame, 0.0)])
        if isinstance(answer, Refused):
            assert answer.why is Why.NONFINITE
            same_state(hub.state, before)
            refused += 1
        else:
            records.append(answer.record.content)
        for x in (hub.state.anchor, hub.state.owed, hub.state.model):
            assert float(x.abs().max()) <= 1.1e38
    assert 1 <= hub.state.applied <= 3
    assert refused == 12 - hub.state.applied
    same_state(replayed(exchange, records, compressor).state, hub.state)


def test_a_frame_that_would_tell_of_infinity_is_held_back() -> None:
    hub = core(tw.Hub(downlink=tw.Stream(tw.TopK(k=1) >> tw.Sign(), every=1)))
    hub.state.anchor[3] = 1.9e38
    hub.state.owed[3] = 9e37
    before = copy.deepcopy(hub.state)
    assert hub._speaker is not None
    hub._speaker.say(hub.state)
    same_state(hub.state, before)
    assert hub.state.version == 0


def test_silent_workers_are_lost_and_the_hub_is_full_when_it_is() -> None:
    hub = core(tw.Hub(), timeout=10.0, most_live=2)
    a, _ = Worker(hub, "a"), Worker(hub, "b")
    with pytest.raises(Refused, match="full") as caught:
        hub.join("c", 1.0, 0.0)
    assert caught.value.why is Why.LIMIT
    a.say(now=8.0)
    assert hub.tick(11.0) == ["b"]
    assert hub.leave("b") is not None
    assert hub.leave("b") is None
    assert hub.live == 1
    hub.join("c", 1.0, 12.0)
    assert hub.state.members["c"].number == 3


def test_live_count_and_weights_divide_as_they_say() -> None:
    assert tw.FixedN(7).divisor(1.0, 3, 3.0) == 7.0
    assert tw.LiveCount().divisor(1.0, 3, 3.0) == 3.0
    assert tw.ByWeight().divisor(2.0, 3, 8.0) == 4.0


def test_a_ring_keeps_its_bound_and_says_what_it_lost() -> None:
    ring = Ring(10)
    for n in range(6):
        ring.push(n, bytes(3))
    assert (ring.first, ring.last, ring.size) == (3, 6, 9)
    assert ring.since(2, 100) is None
    there = ring.since(4, 100)
    assert (there.entries, there.size, there.check) == ([bytes(3)] * 2, 6, zlib.crc32(bytes(6)))
    assert ring.since(4, 5) is None
    assert ring.since(6, 0) == Stretch([], 0, 0)
    assert ring.stamp(4) == 3
    assert ring.stamp(3) is None


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_life_of_a_hub_is_its_records(data) -> None:
    exchange = data.draw(st.sampled_from(HUBS))
    hub, workers, records = core(exchange), {}, []
    for now in range(data.draw(st.integers(1, 25))):
        name = data.draw(st.sampled_from("abcd"))
        act = data.draw(st.sampled_from(["say", "say", "say", "again", "leave", "join"]))
        worker = workers.get(name)
        live = name in hub.state.members and hub.state.members[name].live
        if worker is None or (act == "join" and not live):
            workers[name] = Worker(hub, name)
            records += workers[name].records
        elif act == "leave" and live:
            records.append(hub.leave(name).content)
        elif act == "again" and live and worker.last is not None:
            base, frame, _ = worker.last
            if hub.state.members[name].sequence == worker.state.round:
                again = hub.update(name, base, frame, now)
                assert again.record is None
                if exchange.downlink == PER_WORKER:
                    whole = b"".join(again.reply)
                    worker.adopt(whole, worker.state.mem, worker.state.round)
        elif live:
            records += worker.say(now)
            same_bits(worker.state.anchor, told(hub, worker))
    replay = Core(exchange, SIGNTOPK, SPANS, SEED, RUN, first_state(exchange, first_model()))
    for record in records:
        replay.replay(record)
    same_state(replay.state, hub.state)
    assert hub.state.applied == sum(m.applied for m in hub.state.members.values())


def test_delayed_nesterov_moves_its_momentum_once_in_n_updates() -> None:
    outer, g = tw.DelayedNesterov(lr=0.5, momentum=0.8, every=3), torch.Generator().manual_seed(0)
    x = torch.randn(6, generator=g)
    mine, state, b = x.double(), outer.init(x), torch.zeros(6, dtype=torch.float64)
    gathered = torch.zeros(6, dtype=torch.float64)
    for t in range(1, 13):
        direction = torch.randn(6, generator=g)
        x, state = outer.step(x, direction, state)
        gathered += direction
        mine = mine - 0.5 * direction.double()
        if t % 3 == 0:
            b, gathered = 0.8 * b + gathered, torch.zeros_like(gathered)
            mine = mine - 0.5 * 0.8 * b
        assert float((x - mine).abs().max()) < 1e-5


@pytest.mark.parametrize("downlink", [tw.Exact(), tw.PerWorker(SIGNTOPK)], ids=repr)
def test_a_replay_accepts_what_was_accepted_though_it_knows_the_entries_better(downlink) -> None:
    # An entry that float32 rounded up is above the sum of what moved it.
    C = tw.TopK(k=1, scope="global") >> tw.Sign()
    exchange = tw.Hub(downlink=downlink, counting=tw.FixedN(1))

    def fresh(state=None) -> Core:
        state = state or first_state(exchange, torch.zeros(SPANS.d))
        return Core(exchange, C, SPANS, SEED, RUN, state)

    hub = fresh()
    worker = Worker(hub, "w")

    def say(amount: float) -> list[bytes]:
        residual = torch.zeros(SPANS.d)
        residual[0] = -amount
        worker.state = replace(worker.state, mem={**worker.state.mem, "residual": residual})
        return worker.say(params=worker.state.anchor.clone())

    start = float(torch.tensor(0.9e38))
    unit = start * 2.0**-23
    say(start)
    say(0.75 * unit)
    before, room = copy.deepcopy(hub.state), hub._reach.room(1)
    assert float(before.anchor[0]) <= hub._reach._moved
    (record,) = say(room * (1 - 2.0**-24))
    again = fresh(before)
    again.replay(record)
    same_state(again.state, hub.state)


def test_a_turn_is_brief_where_nobody_needs_a_pass_over_the_model() -> None:
    assert core(tw.Hub(downlink=STREAM)).is_brief
    assert core(tw.Hub(downlink=tw.Exact())).is_brief
    assert not core(tw.Hub(downlink=STREAM), tw.Sign()).is_brief
    assert not core(tw.Hub(downlink=tw.Exact(), outer=tw.Nesterov(lr=0.3))).is_brief
    assert not core(tw.Hub(downlink=PER_WORKER)).is_brief
