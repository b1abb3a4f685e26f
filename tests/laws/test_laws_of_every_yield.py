"""A fault at every yield of every exchange of a plain group: no wrong anchor, and no deadlock.

A calm group's yields are counted first, from its first hello on; then the group is run once for
each worker, each of its yields, and each fault: it dies there, after any number of its posts, and
each frame it takes is lost, late, altered, the one before, or comes twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from laws.plain_sim import D, Fault, Group, Setting, each_way, every_fault, learned

import thinwire as tw
from thinwire import QSGD, Choco, Identity, Sign, TopK
from thinwire.errors import ConfigError, FrameError, PeerLost, TransportError
from thinwire.exchange import gather, hear
from thinwire.exchange.mending import Mending
from thinwire.ledger import conservation_error

SPARSE, CODES = TopK(k=3), QSGD(bits=8, norm="max")
UNBIASED = QSGD(bits=8, norm="max", scale="none", coding="fixed")
COMPLETE, MATCHING = tw.Complete(), tw.RandomMatching()
SETTINGS = {
    "gather": Setting(tw.Gather(), SPARSE),
    "server": Setting(tw.Server(), SPARSE),
    "server, downlink": Setting(tw.Server(downlink=Sign()), SPARSE),
    "ring": Setting(tw.Ring("ring", tw.Feedback(permit="any")), UNBIASED, relays=True),
    "ring, two-phase": Setting(tw.Ring("two-phase"), UNBIASED),
    "ring, gather": Setting(tw.Ring("gather", tw.Feedback()), SPARSE, relays=True),
    "marsit": Setting(tw.Marsit(K=2), Sign(), relays=True),
    "all-reduce": Setting(tw.AllReduce(), Identity()),
    "gossip": Setting(tw.Gossip(), UNBIASED, lossy="mended"),
    "gossip, before": Setting(tw.Gossip(COMPLETE, "before"), UNBIASED, lossy="mended"),
    "gossip, corrected": Setting(tw.Gossip(correction=0.5), UNBIASED, lossy="mended"),
    "choco": Setting(tw.Choco(gamma=0.5), SPARSE, lossy="mended"),
    "choco, measured": Setting(tw.Choco(COMPLETE), SPARSE, lossy="mended"),
    "choco, trigger": Setting(tw.Choco(gamma=0.5, trigger=9.0), SPARSE, lossy="mended"),
    "deep squeeze": Setting(tw.DeepSqueeze(), CODES, lossy="without"),
    "deep squeeze, matching": Setting(
        tw.DeepSqueeze(MATCHING, gamma=0.5), CODES, lossy="without", least=2
    ),
    "d-psgd": Setting(tw.DPSGD(), Identity(), lossy="without"),
    "d-psgd, matching": Setting(tw.DPSGD(MATCHING, "before"), Identity(), lossy="without", least=2),
    "edge gossip": Setting(tw.EdgeGossip(gamma=0.5), SPARSE, least=2),
    "edge gossip, measured": Setting(tw.EdgeGossip(COMPLETE), SPARSE),
    "asynchronous": Setting(
        tw.Asynchronous(), SPARSE, H=tw.RandomGaps(most=2), books=False, steps=4
    ),
    "asynchronous, root 1": Setting(
        tw.Asynchronous(root=1), SPARSE, H=tw.RandomGaps(most=3), books=False, least=2, steps=5
    ),
}
START = torch.full((D,), 0.5)
MENDED = 5
"""Rounds after a loss in which all is right again, and what was owed is said."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "thinwire")


def run_all(name: str, N: int) -> int:
    """Runs a group once for each fault, checks what must hold, and returns how many there were."""
    setting = SETTINGS[name]
    steps, count = setting.steps, 0
    calm = Group(setting, N, steps)
    assert calm.done == set(range(N))
    assert not any(calm.mail.values()), "a frame was posted and never taken"
    for fault in every_fault(calm):
        try:
            for group in each_way(setting, N, steps, fault):
                check(group, calm, fault)
                count += 1
        except AssertionError as error:
            raise AssertionError(f"N={N}, {fault}: {error}") from error
    if setting.lossy:
        longer = Group(setting, N, steps + MENDED)
        for fault in lost_messages(longer, steps):
            check_lost(Group(setting, N, steps + MENDED, [fault]), longer, [fault])
            count += 1
    return count


def check(group: Group, calm: Group, fault: Fault) -> None:
    """Asserts an end of all, on none but the calm run's anchors, with errors that say whose."""
    assert group.dead == ({fault.rank} if fault.what == "dies" else set())
    assert group.dead | group.done | set(group.errors) == set(range(group.N))
    if fault.what == "lost" and not group.errors:
        assert group.setting.lossy, "a message was lost, and nobody noticed"
    else:
        check_anchors(group, calm)
    if fault.what == "late":
        assert not group.errors
    check_named(group, calm, fault)


def check_anchors(group: Group, calm: Group) -> None:
    """Asserts that all a worker ever held after a step is, bit for bit, what it held if calm."""
    for rank, held in enumerate(group.held):
        for step, (mine, theirs) in enumerate(zip(held, calm.held[rank], strict=False)):
            assert mine.keys() == theirs.keys(), (rank, step)
            for name in mine:
                assert torch.equal(mine[name], theirs[name]), (rank, step, name)


def check_named(group: Group, calm: Group, fault: Fault) -> None:
    """Asserts that each error names a rank that is gone, or the frame that was not as it should."""
    source = -1
    if fault.what != "dies":
        source = calm.shapes[fault.rank][fault.at].takes[fault.n]
    for rank, error in group.errors.items():
        if isinstance(error, PeerLost):
            assert error.rank in group.gone, (rank, error)
        elif type(error) is TransportError:
            assert str(error) == f"all-reduce failed on rank {rank}"
        else:
            assert isinstance(error, (FrameError, ConfigError)), (rank, error)
            whose = "rank " if group.setting.relays else f"rank {source}"
            assert whose in str(error), (rank, error, source)
    if fault.what in ("wrong", "stale") or (fault.what == "lost" and not group.setting.lossy):
        assert any(not isinstance(e, TransportError) for e in group.errors.values())


# What is lost where a group goes on without it.


def lost_messages(calm: Group, rounds: int) -> list[Fault]:
    """Returns the loss of each message of the first rounds."""
    return [f for f in every_fault(calm, ["lost"]) if 0 <= round_of(calm, f) < rounds]


def round_of(calm: Group, fault: Fault) -> int:
    """Returns the round of a message; -1 of a hello, or of a number that is agreed."""
    shape = calm.shapes[fault.rank][fault.at]
    # Among neighbours messages go both ways at once; to and from rank 0 one after the other.
    both = shape.posts > 0 and len(shape.takes) > 0
    return calm.rounds[fault.rank][fault.at] if both else -1


def check_lost(group: Group, calm: Group, faults: Sequence[Fault]) -> None:
    """Asserts that a group went on without these messages, or with a correction says why not."""
    rounds = [{round_of(calm, f) for f in faults if f.rank == rank} for rank in range(group.N)]
    again = any(len(each) > 1 for each in rounds)
    if group.errors and again and "s" in group.workers[0].hold()[0].mem:
        errors = group.errors.values()
        assert any("a second message is missing before" in str(e) for e in errors), errors
        assert all(isinstance(e, (FrameError, PeerLost)) for e in errors), errors
        return
    assert group.errors == {}, group.errors
    assert group.done == set(range(group.N))
    if group.setting.lossy == "mended":
        # Of two losses of different rounds only their sum is known, and not how long each lasted.
        check_mended(group, conserved=not again)
    else:
        check_without(group, calm, faults)


def lose_all(name: str, N: int, rounds: int, together: Sequence[int]) -> int:
    """Loses all sets of so many messages of the first rounds; returns how many sets there were."""
    setting, count = SETTINGS[name], 0
    calm = Group(setting, N, rounds + MENDED)
    messages = lost_messages(calm, rounds)
    for faults in (each for n in together for each in combinations(messages, n)):
        try:
            check_lost(Group(setting, N, rounds + MENDED, faults), calm, faults)
        except AssertionError as error:
            raise AssertionError(f"N={N}, {faults}: {error}") from error
        count += 1
    return count


def check_mended(group: Group, conserved: bool) -> None:
    """Asserts that p is x^_i - sum_j W_ij x^_j again on each worker, and nothing is missing."""
    exchange, N = group.setting.exchange, group.N
    states = [worker.hold()[0] for worker in group.workers]
    assert all(int(s.mem["missed"]) == 0 for s in states)
    assert not any("owed" in s.mem for s in states)
    W = torch.tensor(exchange.topology.mixing(N))
    x = torch.stack([replica(exchange, s).double() for s in states])
    p = torch.stack([s.mem["p"].double() for s in states])
    assert float((p - (x - W @ x)).abs().max()) < 1e-4, p - (x - W @ x)
    if "s" in states[0].mem:
        assert float(sum(s.mem["s"].double() for s in states).abs().max()) < 1e-4
    if conserved:
        error = conservation_error([worker.books() for worker in group.workers])
        assert error < 1e-5, error


def replica(exchange: tw.Exchange, state) -> torch.Tensor:
    if isinstance(exchange, Choco):
        return state.anchor + state.mem["r"]
    return state.anchor if exchange.mixing == "before" else state.anchor + state.mem["p"]


def check_without(group: Group, calm: Group, faults: Sequence[Fault]) -> None:
    """Asserts that in the round of the loss all others end as if calm, and the hearer near it."""
    (fault,) = faults
    round = round_of(calm, fault)
    for rank in range(group.N):
        mine, theirs = group.held[rank][round]["anchor"], calm.held[rank][round]["anchor"]
        if rank == fault.rank:
            # It took its own model in the place of the other's: no further than they are apart.
            before = [h[round - 1]["anchor"] for h in calm.held] if round else [START] * group.N
            after = [x - learned(j, round) for j, x in enumerate(before)]
            apart = max(float((x[rank] - y).norm()) for x in (before, after) for y in x)
            assert float((mine - theirs).norm()) <= 1.05 * apart
        else:
            assert torch.equal(mine, theirs), rank
    assert all(bool(h[-1]["anchor"].isfinite().all()) for h in group.held)


# The claims.

ALL = [(name, N) for name in SETTINGS for N in (1, 2, 3, 4) if SETTINGS[name].least <= N]
MENDING = [name for name in SETTINGS if SETTINGS[name].lossy == "mended"]


@pytest.mark.parametrize("name", ["gossip", "all-reduce"])
def test_no_fault_at_any_yield_of_two_workers_does_harm(name: str) -> None:
    assert run_all(name, 2) > 50


@pytest.mark.slow
@pytest.mark.parametrize(("name", "N"), [(name, N) for name, N in ALL if N < 3])
def test_no_fault_at_any_yield_of_any_exchange_of_one_or_two_does_harm(name: str, N: int) -> None:
    assert run_all(name, N) >= (2 if N == 1 else 50)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "N"), [(name, N) for name, N in ALL if N > 2])
def test_no_fault_at_any_yield_of_any_exchange_does_harm(name, N, record_property) -> None:
    runs = run_all(name, N)
    record_property("runs", runs)
    assert runs > 50 * (N - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", MENDING)
def test_whatever_two_workers_lose_of_three_rounds_they_mend(name: str) -> None:
    # A loss, the plea and the replicas: any of the six messages, in any combination.
    assert lose_all(name, 2, 3, range(1, 7)) == 63


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MENDING)
def test_whatever_two_messages_three_workers_lose_they_mend(name: str) -> None:
    assert lose_all(name, 3, 4, [2]) == 276


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["gossip", "choco"])
def test_whatever_three_messages_of_three_rounds_three_workers_lose_they_mend(name: str) -> None:
    assert lose_all(name, 3, 3, [3]) == 816


@pytest.mark.parametrize("name", ["gather", "ring, two-phase"])
def test_long_frames_that_go_round_end_in_the_same_bits(name: str, monkeypatch) -> None:
    short = Group(SETTINGS[name], 4, 2)
    monkeypatch.setattr(hear, "TOGETHER", 0)
    long = Group(SETTINGS[name], 4, 2)
    assert long.shapes != short.shapes
    assert long.done == set(range(4))
    check_anchors(long, short)
    monkeypatch.setitem(SETTINGS, name, replace(SETTINGS[name], relays=True))
    assert run_all(name, 3) > 100


# That the checks would see what they look for.


def test_workers_that_wait_for_each_other_would_be_noticed(monkeypatch) -> None:
    def silent(*given):
        talk, answer = hear.all_say(*given), None
        with suppress(StopIteration):
            while True:
                answer = yield replace(talk.send(answer), posts=())

    monkeypatch.setattr(gather, "all_say", silent)
    with pytest.raises(AssertionError, match="every rank waits for ever"):
        Group(SETTINGS["gather"], 2, 1)


def test_an_anchor_with_one_other_bit_would_be_noticed() -> None:
    calm, other = (Group(SETTINGS["gather"], 2, 2) for _ in range(2))
    check_anchors(other, calm)
    other.held[1][1]["anchor"].view(torch.int32)[3] ^= 1
    with pytest.raises(AssertionError, match="anchor"):
        check_anchors(other, calm)


@pytest.mark.parametrize("name", MENDING[:4])
def test_a_loss_that_is_never_made_good_would_be_noticed(name: str, monkeypatch) -> None:
    monkeypatch.setattr(Mending, "pleads", False)
    monkeypatch.setattr(Mending, "awaits", False)
    monkeypatch.setattr(Mending, "after", lambda *_: {"missed": torch.tensor([0])})
    with pytest.raises(AssertionError):
        lose_all(name, 2, 2, [1])


def test_an_update_that_is_said_too_little_would_be_noticed(monkeypatch) -> None:
    # Owed for one of the rounds since the loss, and not for both.
    after = Mending.after

    def short(self: Mending, missed: bool, mended: bool, pleas: tuple[int, ...]):
        object.__setattr__(self, "rounds", self.rounds // 2) if mended else None
        return after(self, missed, mended, pleas)

    monkeypatch.setattr(Mending, "after", short)
    for name in MENDING[:4]:
        with pytest.raises(AssertionError):
            lose_all(name, 2, 2, [1])
