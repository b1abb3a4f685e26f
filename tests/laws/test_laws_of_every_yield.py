"""A fault at every yield of every exchange of a plain group: no wrong anchor, and no deadlock.

A calm group's yields are counted first, from its first hello on; then the group is run once for
each worker, each of its yields, and each fault: it dies there, after any number of its posts, and
each frame it takes is lost, late, altered, the one before, or comes twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from laws.plain_sim import D, Fault, Group, Setting, every_fault

import thinwire as tw
from thinwire import QSGD, Identity, Sign, TopK
from thinwire.errors import PeerLost, TransportError
from thinwire.exchange import mending
from thinwire.ledger import conservation_error

SPARSE, CODES = TopK(k=3), QSGD(bits=8, norm="max")
UNBIASED = QSGD(bits=8, norm="max", scale="none")
COMPLETE, MATCHING = tw.Complete(), tw.RandomMatching()
SETTINGS = {
    "gather": Setting(tw.Gather(), SPARSE),
    "server": Setting(tw.Server(), SPARSE),
    "server, downlink": Setting(tw.Server(downlink=Sign()), SPARSE),
    "ring": Setting(tw.Ring("ring", tw.Feedback(permit="any")), UNBIASED),
    "ring, two-phase": Setting(tw.Ring("two-phase"), UNBIASED),
    "ring, gather": Setting(tw.Ring("gather", tw.Feedback()), SPARSE),
    "marsit": Setting(tw.Marsit(K=2), Sign()),
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
    "d-psgd, matching": Setting(
        tw.DPSGD(MATCHING, "before"), Identity(), lossy="without", least=2
    ),
    "edge gossip": Setting(tw.EdgeGossip(gamma=0.5), SPARSE, least=2),
    "edge gossip, measured": Setting(tw.EdgeGossip(COMPLETE), SPARSE),
    "asynchronous": Setting(tw.Asynchronous(), SPARSE, H=tw.RandomGaps(most=2), books=False),
    "asynchronous, root 1": Setting(
        tw.Asynchronous(root=1), SPARSE, H=tw.RandomGaps(most=3), books=False, least=2
    ),
}
STEPS = 3
MENDED = 5
"""Rounds after a loss in which all is right again, and what was owed is said."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "thinwire")


def run_all(name: str, N: int) -> int:
    """Runs a group once for each fault, checks what must hold, and returns how many there were."""
    setting = SETTINGS[name]
    calm = Group(setting, N, STEPS)
    assert calm.done == set(range(N))
    assert not any(calm.mail.values()), "a frame was posted and never taken"
    faults = list(every_fault(calm))
    for fault in faults:
        try:
            check(Group(setting, N, STEPS, [fault]), calm, fault)
        except AssertionError as error:
            raise AssertionError(f"N={N}, {fault}: {error}") from error
    if setting.lossy:
        longer = Group(setting, N, STEPS + MENDED)
        for fault in lost_messages(longer, STEPS):
            check_lost(Group(setting, N, STEPS + MENDED, [fault]), longer, [fault])
    return len(faults)


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
            assert isinstance(error, (tw.FrameError, tw.ConfigError)), (rank, error)
            assert f"rank {source}" in str(error), (rank, error, source)
    if fault.what in ("wrong", "stale") or (fault.what == "lost" and not group.setting.lossy):
        assert any(not isinstance(e, TransportError) for e in group.errors.values())


# What is lost where a group goes on without it.


def lost_messages(calm: Group, rounds: int) -> list[Fault]:
    """Returns the loss of each message of the first rounds, and of none said before them."""
    return [
        f
        for f in every_fault(calm, ["lost"])
        if calm.shapes[f.rank][f.at].posts
        and calm.workers[f.rank].place[1] > 1
        and 0 <= round_of(calm, f) < rounds
    ]


def round_of(calm: Group, fault: Fault) -> int:
    """Returns the round of a fault; -1 where it is before the first, or a number that is agreed."""
    shapes = calm.shapes[fault.rank]
    first = len(shapes) - sum(s.posts > 0 and len(s.takes) > 0 for s in shapes)
    return calm.rounds[fault.rank][fault.at] if fault.at >= first else -1


def check_lost(group: Group, calm: Group, faults: Sequence[Fault]) -> None:
    assert group.errors == {}, faults
    assert group.done == set(range(group.N))
    if group.setting.lossy == "mended":
        check_mended(group, conserved=len(faults) == 1)
    else:
        check_without(group, calm, faults)


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
    if isinstance(exchange, tw.Choco):
        return state.anchor + state.mem["r"]
    return state.anchor if exchange.mixing == "before" else state.anchor + state.mem["p"]


def check_without(group: Group, calm: Group, faults: Sequence[Fault]) -> None:
    """Asserts that in the round of the loss all others end as if calm, and the hearer near it."""
    (fault,) = faults
    round = round_of(calm, fault)
    spread = 0.0
    for rank in range(group.N):
        mine, theirs = group.held[rank][round]["anchor"], calm.held[rank][round]["anchor"]
        if rank == fault.rank:
            spread = float((mine - theirs).norm())
        else:
            assert torch.equal(mine, theirs), rank
    models = [h[round]["anchor"] for h in calm.held]
    deltas = [torch.randn(D, generator=torch.Generator().manual_seed(0)).norm()] * 4
    most = max(float((a - b).norm()) for a in models for b in models) + float(sum(deltas))
    assert spread <= most, (spread, most)
    assert all(bool(h[-1]["anchor"].isfinite().all()) for h in group.held)
