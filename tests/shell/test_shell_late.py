"""A round is late by what rounds usually take; the log names whom a rank waits for."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import pytest
from shell_cases import Run

import thinwire as tw
from thinwire.cli.gang import Gang
from thinwire.transport.watchdog import Watchdog


class Clock:
    """Stands still unless it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def watchdog(clock: Clock, awaited: int | None = 2, **deadline) -> Watchdog:
    return Watchdog(1, tw.Deadline(**deadline), lambda: awaited, clock)


def rounds(dog: Watchdog, clock: Clock, *seconds: float) -> None:
    for number, took in enumerate(seconds):
        with dog.over(number):
            clock.now += took


def test_the_deadline_is_the_median_and_so_many_deviations() -> None:
    past = [2.0, 2.2, 1.8, 2.0, 2.4, 1.6]
    # Distances from the median 2: 0, .2, .2, 0, .4, .4; their median .2.
    assert tw.Deadline(deviations=5, least=0).limit(past) == pytest.approx(2 + 5 * 1.4826 * 0.2)
    assert tw.Deadline(deviations=5, least=30).limit(past) == 30


def test_one_straggler_hardly_moves_the_deadline() -> None:
    deadline, past = tw.Deadline(least=0), [2.0, 2.2, 1.8, 2.1, 1.9]
    assert deadline.limit([*past, 600.0]) < 4


def test_the_deadline_follows_rounds_that_grow_longer() -> None:
    clock = Clock()
    dog = watchdog(clock, least=0)
    rounds(dog, clock, *[1.0] * 64)
    before = dog.deadline.limit(dog.past)
    rounds(dog, clock, *[10.0] * 64)
    assert before == 1.0
    assert dog.deadline.limit(dog.past) == 10.0


def test_no_round_is_late_before_five_are_known() -> None:
    assert tw.Deadline().limit([1.0] * 4) is None
    assert tw.Deadline().limit([1.0] * 5) == 5.0


def test_the_log_says_how_late_and_whom_this_rank_waits_for(caplog) -> None:
    clock = Clock()
    dog = watchdog(clock, least=0)
    rounds(dog, clock, *[3.0] * 9)
    dog.complain(round=17, began=clock.now - 12.34, limit=6.2)
    watchdog(clock, awaited=None).past.append(1)
    assert caplog.messages == [
        "rank 1, round 17 is late: 12.3 s so far, usually 3.0 s, deadline 6.2 s; "
        "this rank waits for rank 2"
    ]


def test_a_round_that_fails_teaches_no_usual_time() -> None:
    clock = Clock()
    dog = watchdog(clock)
    with pytest.raises(tw.PeerLost), dog.over(0):
        raise tw.PeerLost(2, "gone")
    assert list(dog.past) == []


def test_a_late_round_is_named_while_it_is_still_on(caplog) -> None:
    dog = Watchdog(0, tw.Deadline(least=0.05), lambda: 3)
    for number in range(5):
        with dog.over(number):
            pass
    with caplog.at_level(logging.WARNING, "thinwire"), dog.over(5):
        deadline = time.monotonic() + 10
        while len(caplog.messages) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    # Twice as long passes before it says so again.
    assert [message.count("waits for rank 3") for message in caplog.messages[:2]] == [1, 1]


def test_a_simulation_has_no_clock(monkeypatch) -> None:
    def never(self, round):
        raise AssertionError("a simulation times nothing")

    monkeypatch.setattr(Watchdog, "over", never)
    Run(2).steps(3)


def wait_for(rank: int, N: int, args: dict, say) -> None:
    """Trains until told otherwise; says what its log says, and what it raises."""
    import torch

    class Say(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say("log", text=record.getMessage())

    logging.getLogger("thinwire").addHandler(Say())
    model = torch.nn.Linear(4, 2)
    watch = tw.Watch(deadline=tw.Deadline(least=0.3, hard=args["hard"]))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = tw.LocalSGD(model, inner, exchange=tw.Gather(tw.NoFeedback()), watch=watch)
    say("pid", number=os.getpid())
    began = time.monotonic()
    try:
        for _ in range(100_000):
            optimizer.zero_grad()
            model(torch.ones(1, 4)).sum().backward()
            began = time.monotonic()
            optimizer.step()
            if optimizer.round in (10, 11):
                say("round", number=optimizer.round)
    except tw.TransportError as error:
        took = time.monotonic() - began
        say("raised", kind=type(error).__name__, text=str(error), after=took)
        time.sleep(2.0)  # The others must not find this one gone before they time out.


@pytest.mark.network
@pytest.mark.slow
def test_a_stopped_rank_is_named_after_the_deadline_and_ends_the_run_after_the_hard_one(
    monkeypatch,
) -> None:
    path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    monkeypatch.setenv("PYTHONPATH", path)
    hard, pids, logs, raised, stopped = 3.0, {}, {}, {}, False
    with Gang(3, "test_shell_late:wait_for", {"hard": hard}) as gang:
        for message in gang.messages():
            rank = message["rank"]
            if message["event"] == "pid":
                pids[rank] = message["number"]
            elif message["event"] == "round" and rank == 1 and not stopped:
                stopped = True
                os.kill(pids[1], signal.SIGSTOP)
            elif message["event"] == "log":
                logs.setdefault(rank, message["text"])
            elif message["event"] == "raised":
                raised[rank] = message
            if len(raised) == 2:
                break
        os.kill(pids[1], signal.SIGCONT)
    assert all("waits for rank 1" in logs[rank] for rank in (0, 2))
    for rank in (0, 2):
        assert raised[rank]["kind"] == "RoundTimeout"
        assert "waited too long for rank 1" in raised[rank]["text"]
        assert hard - 0.5 < raised[rank]["after"] < hard + 2
        print(f"rank {rank}: {raised[rank]['kind']} after {raised[rank]['after']:.2f} s")
