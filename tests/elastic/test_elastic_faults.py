"""Every fault at every yield of every exchange: no wrong anchor, no update twice, no deadlock.

A calm group's yields are counted first; then the group is run once for each worker, each of its
yields and each kind of fault, from the first meeting through two rounds, and on for three more.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from elastic.elastic_sim import KINDS, ROUNDS, Fault, Group, Setting, every_fault, told

import thinwire as tw
from thinwire.elastic import member, rounds
from thinwire.elastic.history import Standing

SPARSE = tw.TopK(k=3)
CODES = tw.QSGD(bits=8, norm="max", scale="none")
OWING = tw.Feedback(permit="any")
SETTINGS = {
    "gather": Setting(tw.Gather(), SPARSE),
    "gather, no feedback": Setting(tw.Gather(tw.NoFeedback()), CODES),
    "gather, decay": Setting(tw.Gather(tw.Feedback(decay=0.9)), SPARSE),
    "gather, mean over N": Setting(tw.Gather(), SPARSE, mean="configured"),
    "server": Setting(tw.Server(), SPARSE),
    "ring": Setting(tw.Ring("ring", OWING), CODES),
    "ring, no feedback": Setting(tw.Ring("ring"), CODES),
    "ring, two-phase": Setting(tw.Ring("two-phase", OWING), CODES),
    "ring, gather": Setting(tw.Ring("gather", tw.Feedback()), SPARSE),
    "marsit": Setting(tw.Marsit(K=2), tw.Sign()),
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "thinwire")


def run_all(setting: Setting, N: int, kinds=KINDS) -> int:
    """Runs a group once for each fault, and again where it mattered who gave up first."""
    count = 0
    for fault in every_fault(setting, N, kinds):
        try:
            count += 1
            if told(setting, N, [fault]).chose:
                count += 1
                told(replace(setting, gives_up=-1), N, [fault])
        except AssertionError as error:
            raise AssertionError(f"N={N}, {fault}: {error}") from error
    return count


@pytest.mark.parametrize("N", [1, 2])
def test_no_fault_at_any_yield_of_a_small_group_does_harm(N: int) -> None:
    assert run_all(SETTINGS["gather"], N) >= 40 * N


@pytest.mark.parametrize("what", ["dies", "errs"])
def test_no_fault_at_any_yield_of_three_does_harm(what: str) -> None:
    assert run_all(SETTINGS["gather"], 3, [(what, None)]) >= 30


COMPARED = replace(SETTINGS["gather"], watch=tw.Watch(compare=1))


def test_no_fault_where_replicas_are_compared_does_harm() -> None:
    assert run_all(COMPARED, 2) > run_all(SETTINGS["gather"], 2)


def test_replicas_that_part_between_two_quorums_are_found_and_named() -> None:
    group = Group(replace(COMPARED, watch=tw.Watch(compare=4)), 3, [])
    group.run(2)
    group.lives[1].optimizer.hold()[0].anchor[3] += 1
    group.run(4)
    with pytest.raises(tw.DivergedError, match=r"rank 1.*anchor") as found:
        group.run(5)
    assert found.value.ranks == [1]


@pytest.mark.slow
@pytest.mark.parametrize("N", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_no_fault_at_any_yield_of_any_exchange_of_two_does_harm(name: str, N: int) -> None:
    survives(name, N)


@pytest.mark.exhaustive
@pytest.mark.parametrize("N", [3, 4])
@pytest.mark.parametrize("name", SETTINGS)
def test_no_fault_at_any_yield_of_any_exchange_does_harm(name, N, record_property) -> None:
    record_property("runs", survives(name, N))


def survives(name: str, N: int) -> int:
    told(SETTINGS[name], N, [])
    runs = run_all(SETTINGS[name], N)
    assert runs >= 28 * N
    return runs


@pytest.mark.exhaustive
def test_no_two_faults_of_two_workers_do_harm() -> None:
    setting = SETTINGS["gather"]
    firsts = [f for f in every_fault(setting, 3, [("sleeps", None), ("errs", 1)]) if f.victim == 0]
    seconds = [f for f in every_fault(setting, 3, [("sleeps", 1), ("errs", None)]) if f.victim == 1]
    for first in firsts:
        for second in seconds:
            told(setting, 3, [first, second])


def test_a_calm_group_runs_plain_rounds() -> None:
    group = told(SETTINGS["gather"], 3, [])
    assert {x.optimizer.round for x in group.lives} == {ROUNDS + 2}
    assert [len(r.names) for r in group.lives[0].elastic.standing.history.reigns] == [3]


def test_who_died_is_gone_from_the_mean_and_who_returns_counts_from_the_next_round() -> None:
    (at,) = {f.at for f in every_fault(SETTINGS["gather"], 3, [("dies", 0)]) if f.at == 6}
    gone = told(SETTINGS["gather"], 3, [Fault(2, at, 0, "dies")])
    names = [r.names for r in gone.lives[0].elastic.standing.history.reigns]
    assert names[-1] == ("w0", "w1")
    back = told(SETTINGS["gather"], 3, [Fault(2, at, 0, "returns")])
    names = [r.names for r in back.lives[0].elastic.standing.history.reigns]
    assert names[-2:] == [("w0", "w1"), ("w0", "w1", "w2")]


def test_without_a_quorum_nobody_goes_on() -> None:
    for at in range(20):
        group = Group(SETTINGS["gather"], 2, [Fault(1, at, None, "dies")])
        group.run(ROUNDS)
        if len(group.up()) == 2:
            continue  # the fault would have come later
        (left,) = group.up()
        before = left.optimizer.round
        for _ in range(5):
            group.regroup()
            group.settle()
        assert left.optimizer.round == before


def breaks(setting: Setting, N: int, kinds) -> bool:
    for fault in every_fault(setting, N, kinds):
        try:
            told(setting, N, [fault])
        except AssertionError:
            return True
    return False


def test_taking_up_a_round_before_all_are_done_would_be_noticed(monkeypatch) -> None:
    def at_once(*_):
        yield from ()

    monkeypatch.setattr(rounds, "_all_done", at_once)
    assert breaks(SETTINGS["gather"], 3, [("errs", None)])


def test_an_update_counted_twice_would_be_noticed(monkeypatch) -> None:
    monkeypatch.setattr(Standing, "move", lambda self, to, mem, books: (Standing(to), mem))
    assert breaks(SETTINGS["gather"], 3, [("errs", None)])


def test_an_update_that_is_lost_would_be_noticed(monkeypatch) -> None:
    def dropped(exchange, delta, mem):
        return mem, tw.ledger.Entry(delta.double(), delta.double() * 0, delta.double() * 0)

    monkeypatch.setattr(member, "fold", dropped)
    assert breaks(SETTINGS["gather"], 3, [("sleeps", None)])


def test_an_anchor_with_one_other_bit_would_be_noticed() -> None:
    group = told(SETTINGS["gather"], 2, [])
    anchor = group.lives[1].optimizer.anchor
    anchor.view(torch.int32)[3] ^= 1
    with pytest.raises(AssertionError):
        group.check()
