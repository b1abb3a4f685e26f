"""A neighbour's message that never came is made good by its replica, and both are counted."""

from __future__ import annotations

import logging
from collections.abc import Generator

import pytest
import torch
from peer_talks import to_their_ends

import thinwire as tw
from thinwire import QSGD, TopK
from thinwire.stats import Stats
from thinwire.wire.frame import HEADER

N, D = 5, 30
UNBIASED = QSGD(bits=8, norm="max", scale="none")
METHODS = (
    (tw.Gossip(), UNBIASED),
    (tw.Gossip(mixing="before", correction=0.5), UNBIASED),
    (tw.Choco(gamma=0.5), TopK(density=0.3)),
)
HEARD = 2
"""Messages that a worker of a ring graph hears in a round."""


def watched(talk: Generator, stats: Stats, rank: int) -> Generator:
    """The talk, with its worker's `Stats` looking on, as a driver would have it."""
    try:
        ask = next(talk)
        while True:
            stats.asked(ask, rank)
            answer = yield ask
            stats.answered(ask, answer, rank)
            ask = talk.send(answer)
    except StopIteration as stop:
        return stop.value


class Cluster:
    """N shells whose frames may be lost on the way."""

    def __init__(self, exchange: tw.Exchange, C: tw.Compressor) -> None:
        self.reports: list[list[tw.RoundReport]] = [[] for _ in range(N)]
        self.params = [torch.nn.Parameter(torch.zeros(D)) for _ in range(N)]
        self.shells = [
            tw.LocalSGD(
                [p], torch.optim.SGD([p], lr=1.0), compressor=C, exchange=exchange,
                group=tw.Seat(rank, N), on_round=self.reports[rank].append,
            )
            for rank, p in enumerate(self.params)
        ]  # fmt: skip
        tw.LockStep(self.shells)

    def round(self, lost: tuple[tuple[int, int], ...] = ()) -> None:
        """Lets each worker move on its own and runs a round; `lost`: (hearer, which it hears)."""
        for rank, p in enumerate(self.params):
            p.data += torch.linspace(0, rank + 1, D)
        talks = [watched(s.sync_talk(), s.stats, r) for r, s in enumerate(self.shells)]
        ends = to_their_ends(talks, lambda r, n, frame: b"" if (r, n) in lost else frame)
        assert [end.error for end in ends] == [None] * N

    def p_sum(self) -> float:
        return float(sum(s._state.mem["p"].double() for s in self.shells).abs().max())


@pytest.mark.parametrize(("exchange", "C"), METHODS, ids=repr)
def test_a_loss_and_its_repair_are_counted_reported_and_logged(exchange, C, caplog) -> None:
    cluster = Cluster(exchange, C)
    for round in range(5):
        cluster.round(lost=((3, 0),) if round == 1 else ())
    bytes_of_it = HEARD * (HEADER + 4 * D + C.nbytes(D))
    for rank, shell in enumerate(cluster.shells):
        stats, reports = shell.stats, cluster.reports[rank]
        assert (stats.lost, stats.repairs) == ((1, 1) if rank == 3 else (0, 0))
        assert [r.lost for r in reports] == ([0, 1, 0, 0, 0] if rank == 3 else [0] * 5)
        assert [r.repaired for r in reports] == ([False, False, False, rank == 3, False])
        mended = {3: bytes_of_it, 2: bytes_of_it // 2, 4: bytes_of_it // 2}.get(rank, 0)
        assert [r.repair_bytes for r in reports] == [0, 0, 0, mended, 0]
        assert stats.received["REPAIR"] == (bytes_of_it if rank == 3 else 0)
        assert stats.sent["REPAIR"] == (bytes_of_it // 2 if rank in (2, 4) else 0)
        assert stats.as_dict()["repairs"] == stats.repairs
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told == [
        "rank 3, round 1: 1 frames never came; it will ask for replicas",
        "rank 3, round 3: repaired by one dense round of its neighbourhood",
    ]


@pytest.mark.parametrize(("exchange", "C"), METHODS, ids=repr)
def test_the_invariant_holds_again_after_the_repair(exchange, C) -> None:
    cluster, off = Cluster(exchange, C), []
    for round in range(5):
        cluster.round(lost=((3, 0),) if round == 1 else ())
        off.append(cluster.p_sum())
    assert min(off[1:3]) > 1e-2, "nothing was lost"
    assert max(off[0], *off[3:]) < 1e-4, off


def test_a_replica_that_is_lost_too_is_asked_for_again() -> None:
    cluster = Cluster(tw.Gossip(), UNBIASED)
    # A plea in round 1, one replica of two in round 2; so another plea in round 3.
    for lost in (((3, 0),), (), ((3, 1),), (), (), ()):
        cluster.round(lost)
    assert [r.repaired for r in cluster.reports[3]] == [False] * 4 + [True, False]
    assert [r.lost for r in cluster.reports[3]] == [1, 0, 1, 0, 0, 0]
    assert cluster.shells[3].stats.repairs == 1
    assert cluster.p_sum() < 1e-4


@pytest.mark.parametrize(
    ("exchange", "C"),
    [
        (tw.DPSGD(), UNBIASED),
        (tw.DPSGD(mixing="before"), UNBIASED),
        (tw.DeepSqueeze(gamma=0.5), QSGD(bits=8, norm="max")),
    ],
    ids=repr,
)
def test_who_sends_whole_models_is_replaced_by_oneself_for_a_round(exchange, C) -> None:
    exact, short = Cluster(exchange, C), Cluster(exchange, C)
    for _ in range(3):
        exact.round()
        short.round()
    exact.round()
    short.round(lost=((3, 0), (3, 1)))
    for rank in range(N):
        a, b = exact.params[rank].data, short.params[rank].data
        if rank != 3:
            assert torch.equal(a, b), rank
            continue
        # Hearing nobody, it stays where it went by itself: near the others, not a third of it.
        assert float((a - b).norm() / a.norm()) < 0.5
        assert float(b.norm() / a.norm()) > 0.9
    assert short.shells[3].stats.lost == 2


def test_where_nothing_is_lost_nothing_is_repaired_or_logged(caplog) -> None:
    cluster = Cluster(tw.Gossip(), UNBIASED)
    for _ in range(3):
        cluster.round()
    assert all(shell.stats.mended() == (0, 0, 0) for shell in cluster.shells)
    assert not caplog.records
