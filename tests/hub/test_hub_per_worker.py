"""A residual for each worker: one message makes up for all it missed, as far as memory reaches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hub_cases import PER_WORKER, SIGNTOPK, SPANS, Worker, core, first_model, told
from live_hub import join, live, train
from peer_talks import same_bits

import thinwire as tw
from thinwire.errors import ConfigError, FrameError
from thinwire.exchange.anchors import Form, Head
from thinwire.hub.core import Core
from thinwire.hub.settings import HubSettings
from thinwire.wire.body import Reader

EXCHANGE = tw.Hub(downlink=PER_WORKER)
BODY = 26 + 18
"""Where an answer's body begins, behind two heads."""


def form(worker: Worker) -> Form:
    assert worker.last is not None
    return Head.read(Reader(worker.last[2][26:], "answer")).form


def test_an_answer_says_the_largest_of_what_its_worker_is_owed() -> None:
    downlink = tw.PerWorker(tw.TopK(k=5, scope="global"))
    hub = core(tw.Hub(downlink=downlink))
    workers = [Worker(hub, f"w{n}") for n in range(3)]
    held = [first_model().numpy().copy() for _ in workers]
    draws = torch.randint(3, (60,), generator=torch.Generator().manual_seed(4))
    for who in draws.tolist():
        workers[who].say()
        owed = hub.state.anchor.numpy() - held[who]
        largest = (-abs(owed)).argsort(kind="stable")[:5]
        held[who][largest] += owed[largest]
        same_bits(workers[who].state.anchor, torch.from_numpy(held[who]))


def test_an_answer_is_as_long_after_a_hundred_updates_as_after_one() -> None:
    hub = core(tw.Hub(downlink=tw.PerWorker(SIGNTOPK)))
    slow, fast = Worker(hub, "slow"), Worker(hub, "fast")
    for _ in range(100):
        fast.say()
    slow.say()
    fast.say()
    lengths = [len(worker.last[2]) for worker in (slow, fast)]
    assert form(slow) is form(fast) is Form.RESIDUAL
    assert max(lengths) <= BODY + SIGNTOPK.nbytes(SPANS)
    # And it has brought the slow one nearer.
    assert not torch.equal(slow.state.anchor, first_model())


def test_what_is_owed_comes_in_the_end() -> None:
    hub = core(EXCHANGE)
    one, other = Worker(hub, "one"), Worker(hub, "other")
    for _ in range(20):
        other.say()
    owed = [float((hub.state.anchor - one.state.anchor).norm())]
    for _ in range(60):
        # It has learned nothing; what it still owes the hub goes meanwhile.
        one.say(params=one.state.anchor.clone())
        owed.append(float((hub.state.anchor - one.state.anchor).norm()))
    assert owed[-1] < 0.02 * max(owed)


def test_who_comes_when_memory_is_taken_hears_the_whole_model_until_another_leaves() -> None:
    hub = core(EXCHANGE)
    a, b, c = (Worker(hub, name) for name in "abc")
    for _ in range(3):
        for worker in (a, b, c):
            worker.say()
            assert form(worker) is (Form.WHOLE if worker is c else Form.RESIDUAL)
        same_bits(c.state.anchor, hub.state.anchor)
    hub.leave("a")
    c.say()
    assert form(c) is Form.WHOLE
    c.say()
    assert form(c) is Form.RESIDUAL
    same_bits(c.state.anchor, told(hub, c))
    assert len(hub._replies._replicas._held) == 2


@pytest.mark.parametrize("exchange", [EXCHANGE, tw.Hub(downlink=tw.Exact(memory=60))], ids=repr)
def test_staleness_is_known_after_a_restart_and_of_an_earlier_process(exchange: tw.Hub) -> None:
    exchange = replace(exchange, staleness=tw.Staleness(3, "refuse"))
    hub = core(exchange)
    a, m = Worker(hub, "a"), Worker(hub, "m")
    records = [*a.records, *m.records]
    for _ in range(10):
        records += a.say()
    m.join(1.0)  # It is told version 10, and no record says so.
    again = core(exchange)
    for record in records:
        again.replay(record)
    a.hub = m.hub = again
    a.say()
    m.say()
    assert again.state.refused == 0
    # Another process of its name is told the newest model; the first one's is as old as it says.
    for _ in range(4):
        a.say()
    again.join("m", 1.0, 2.0)
    again.whole(m.number)
    again.back(m.number)
    m.say()
    assert again.state.refused == 1


def test_an_answer_that_was_lost_is_told_whole() -> None:
    hub = core(EXCHANGE)
    worker = Worker(hub, "w")
    for _ in range(3):
        worker.say()
    worker.say()
    base, frame, _ = worker.last
    again = hub.update("w", base, frame, 0.0)
    assert again.record is None
    reply = b"".join(again.reply)
    assert Head.read(Reader(reply[26:], "answer")).form is Form.WHOLE
    assert reply[BODY:] == bytes(hub.state.anchor.numpy())
    worker.adopt(reply, worker.state.mem, worker.state.round)
    worker.say()
    assert form(worker) is Form.RESIDUAL
    same_bits(worker.state.anchor, told(hub, worker))


def test_a_hub_that_comes_back_tells_the_whole_model_once() -> None:
    hub = core(EXCHANGE)
    worker = Worker(hub, "w")
    records = list(worker.records)
    for _ in range(4):
        records += worker.say()
    worker.hub = again = core(EXCHANGE)
    for record in records:
        again.replay(record)
    same_bits(again.state.anchor, hub.state.anchor)
    worker.say()
    assert form(worker) is Form.WHOLE
    worker.say()
    assert form(worker) is Form.RESIDUAL
    same_bits(worker.state.anchor, told(again, worker))


def test_a_model_that_another_process_was_told_is_not_what_this_one_holds() -> None:
    hub = core(EXCHANGE)
    first, other = Worker(hub, "w"), Worker(hub, "other")
    for _ in range(3):
        other.say()
        first.say()
    # Another process of its name joins, is told the same version, and dies; the first returns.
    hub.join("w", 1.0, 0.0)
    hub.whole(first.number)
    assert int(first.state.mem["version"]) == hub.state.version
    assert not torch.equal(first.state.anchor, hub.state.anchor)
    hub.back(first.number)
    first.say()
    assert form(first) is Form.WHOLE
    # Who was answered with less since then is who it was.
    first.say()
    assert form(first) is Form.RESIDUAL
    hub.back(first.number)
    other.say()
    first.say()
    assert form(first) is Form.RESIDUAL
    same_bits(first.state.anchor, told(hub, first))


def test_a_message_as_long_as_the_model_is_not_said() -> None:
    hub = core(tw.Hub(downlink=tw.PerWorker(tw.TopK(density=1.0))))
    worker = Worker(hub, "w")
    worker.say()
    assert form(worker) is Form.WHOLE
    same_bits(worker.state.anchor, hub.state.anchor)


def test_a_worker_that_left_leaves_its_place_to_another() -> None:
    hub = core(EXCHANGE)
    a, b = Worker(hub, "a"), Worker(hub, "b")
    hub.leave("a")
    c = Worker(hub, "c")
    a.join(1.0)
    for worker, how in ((a, Form.WHOLE), (b, Form.RESIDUAL), (c, Form.RESIDUAL)):
        worker.say()
        assert form(worker) is how


def test_a_refused_update_is_answered_with_what_is_owed() -> None:
    stale = tw.Staleness(0, "refuse")
    hub = core(tw.Hub(downlink=PER_WORKER, staleness=stale))
    slow, fast = Worker(hub, "slow"), Worker(hub, "fast")
    fast.say()
    slow.say()
    assert (hub.state.refused, form(slow)) == (1, Form.RESIDUAL)
    same_bits(slow.state.anchor, told(hub, slow))


def test_no_room_for_one_worker_is_said_before_it_begins() -> None:
    least = 4 * SPANS.d
    tw.Hub(downlink=tw.PerWorker(memory=least)).check(SIGNTOPK, SPANS)
    with pytest.raises(ConfigError, match=f"memory={least} for every worker"):
        tw.Hub(downlink=tw.PerWorker(memory=least - 1)).check(SIGNTOPK, SPANS)
    with pytest.raises(ConfigError, match="Hub, downlink"):
        tw.Hub(downlink=tw.PerWorker(tw.QSGD(bits=2, scale="none"))).check(SIGNTOPK, SPANS)


def test_an_answer_of_another_kind_is_refused() -> None:
    mine, others = core(EXCHANGE), core(tw.Hub(downlink=tw.Stream(SIGNTOPK, every=1)))
    spoken = []
    for hub in (mine, others):
        worker = Worker(hub, "w")
        worker.say()
        worker.say()
        spoken.append((worker, worker.last[2]))
    for (worker, _), (_, reply), what in zip(
        spoken, reversed(spoken), ("a stream does not fit", "one worker does not fit"), strict=True
    ):
        at, head = Reader(reply[26:], "answer"), Head.read(Reader(reply[26:], "answer"))
        at.take(18, "head")
        with pytest.raises(FrameError, match=what):
            worker.hub.exchange.apply(worker.state.anchor, head, at, worker.here(1))


@pytest.mark.network
def test_workers_train_on_a_live_hub_with_residuals_of_their_own(tmp_path: Path) -> None:
    exchange = tw.Hub(downlink=tw.PerWorker(tw.TopK(density=0.3) >> tw.Sign()))
    with live(tmp_path, settings=HubSettings(2, None, SIGNTOPK, exchange)) as hub:
        joined = [join(hub, seed) for seed in range(2)]
        for turn in range(12):
            for seed, (optimizer, model) in enumerate(joined):
                train(optimizer, model, 1, 10 * turn + seed)
        replicas = hub.server.core._replies._replicas
        assert replicas is not None
        for number, (optimizer, _) in enumerate(joined, 1):
            same_bits(optimizer.anchor, replicas._held[number][1])
            optimizer.leave()
        assert hub.state.applied == 24


@pytest.mark.network
def test_more_workers_than_residuals_is_said_in_the_log(tmp_path: Path, caplog) -> None:
    exchange = tw.Hub(downlink=tw.PerWorker(SIGNTOPK, memory=4 * 47))
    settings = HubSettings(2, None, SIGNTOPK, exchange)
    with caplog.at_level("WARNING", "thinwire.hub"), live(tmp_path, settings=settings) as hub:
        first, _ = join(hub, 0)
        assert "residuals" not in caplog.text
        second, _ = join(hub, 1)
        assert "2 workers are here, and there is memory for the residuals of 1" in caplog.text
        first.leave()
        second.leave()


def test_a_core_of_other_rules_holds_nobody() -> None:
    hub: Core = core(tw.Hub(downlink=tw.Exact()))
    Worker(hub, "w").say()
    assert hub._replies._replicas is None
