"""updates = said + residual + forgotten, over all workers; keeping books changes no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thinwire as tw
from thinwire.ledger import Entry, conservation_error

N, D, ROUNDS = 3, 50, 6
TOP, FAIR = tw.TopK(k=5), tw.QSGD(bits=8, norm="max", scale="none")
OWING, BARE = tw.Feedback(permit="any"), tw.NoFeedback()
SETTINGS = {
    "server": (tw.Server(), TOP),
    "server, no feedback": (tw.Server(BARE), FAIR),
    "server, downlink": (tw.Server(downlink=TOP), TOP),
    "gather": (tw.Gather(), TOP),
    "gather, decay": (tw.Gather(tw.Feedback(decay=0.8)), TOP),
    "gather, no feedback": (tw.Gather(BARE), FAIR),
    "ring": (tw.Ring("ring", OWING), FAIR),
    "ring, no feedback": (tw.Ring("ring"), FAIR),
    "two-phase": (tw.Ring("two-phase", OWING), FAIR),
    "two-phase, no feedback": (tw.Ring("two-phase"), FAIR),
    "ring of whole messages": (tw.Ring("gather", tw.Feedback()), TOP),
    "all-reduce": (tw.AllReduce(), tw.Identity()),
    "marsit": (tw.Marsit(K=4), tw.Sign()),
    "gossip": (tw.Gossip(tw.RingGraph()), FAIR),
    "gossip, before": (tw.Gossip(tw.RingGraph(), mixing="before"), FAIR),
    "choco": (tw.Choco(tw.RingGraph()), TOP),
    "deep squeeze": (tw.DeepSqueeze(tw.RingGraph()), tw.QSGD(bits=8, norm="max")),
    "d-psgd": (tw.DPSGD(tw.RingGraph()), tw.Identity()),
}


def run(exchange: tw.Exchange, compressor: Any, books: bool, **more: Any) -> list[tw.LocalSGD]:
    workers = []
    for rank in range(N):
        p = torch.nn.Parameter(torch.zeros(D))
        inner = torch.optim.SGD([p], lr=1.0)
        workers.append(
            tw.LocalSGD(
                [p], inner, compressor=compressor, exchange=exchange, group=tw.Seat(rank, N),
                ledger=tw.Ledger() if books else None, **more,
            )
        )  # fmt: skip
    cluster = tw.LockStep(workers)
    for round in range(ROUNDS):
        for rank, worker in enumerate(workers):
            draw = torch.Generator().manual_seed(100 * round + rank)
            (p,) = worker.inner.param_groups[0]["params"]
            p.grad = torch.randn(D, generator=draw) ** 3
            if round == ROUNDS // 2:
                worker.inner.param_groups[0]["lr"] = 0.1
        cluster.step()
    return workers


@pytest.mark.parametrize("name", SETTINGS)
def test_every_update_is_said_owed_or_booked_as_forgotten(name: str) -> None:
    exchange, compressor = SETTINGS[name]
    workers = run(exchange, compressor, True)
    assert conservation_error([worker.books() for worker in workers]) < 1e-5


@pytest.mark.parametrize("name", SETTINGS)
def test_keeping_books_changes_no_bit(name: str) -> None:
    exchange, compressor = SETTINGS[name]
    kept, none = (run(exchange, compressor, books) for books in (True, False))
    for a, b in zip(kept, none, strict=True):
        assert torch.equal(a.anchor.view(torch.int32), b.anchor.view(torch.int32))


def test_a_residual_that_is_cleared_at_a_drop_is_booked() -> None:
    workers = run(tw.Gather(), TOP, True, clear_residual_at_drop=0.5)
    books = [worker.books() for worker in workers]
    assert conservation_error(books) < 1e-5
    assert float(books[0]["forgotten"].norm()) > 0.1


@pytest.mark.parametrize("policy", ["skip", "drop"])
def test_what_a_policy_leaves_out_is_booked(policy: str) -> None:
    workers = run(tw.Gather(), TOP, True, watch=tw.Watch(nonfinite=policy))
    cluster = tw.LockStep(workers)
    for rank, worker in enumerate(workers):
        (p,) = worker.inner.param_groups[0]["params"]
        p.grad = torch.full((D,), torch.nan if rank == 1 else 1.0)
    cluster.step()
    books = [worker.books() for worker in workers]
    assert conservation_error(books) < 1e-5
    forgets = [float(b["forgotten"].norm()) > 0 for b in books]
    assert forgets == ([True, False, True] if policy == "skip" else [False] * 3)


@pytest.mark.parametrize("term", ["updates", "said", "residual", "forgotten"])
def test_a_term_that_is_off_by_a_thousandth_would_be_noticed(term: str) -> None:
    exchange, compressor = SETTINGS["gather, decay"]
    books = [worker.books() for worker in run(exchange, compressor, True)]
    books[1] = {**books[1], term: books[1][term] * 1.001}
    assert conservation_error(books) > 1e-5


def test_books_go_on_in_another_life() -> None:
    first = tw.Ledger()
    first.book(Entry.nothing(D).with_unsaid(torch.ones(D)))
    second = tw.Ledger()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.updates, first.updates)
    assert torch.equal(second.forgotten, first.forgotten)


def test_books_of_a_hub_s_worker_are_refused() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    inner = torch.optim.SGD([p], lr=1.0)
    with pytest.raises(tw.ConfigError, match="cannot balance"):
        tw.LocalSGD(
            [p], inner, H=tw.RandomGaps(4), exchange=tw.Asynchronous(), ledger=tw.Ledger(),
            compressor=TOP, group=tw.Seat(0, 1),
        )  # fmt: skip


def test_books_that_are_not_kept_cannot_be_asked_for() -> None:
    with pytest.raises(tw.ConfigError, match="ledger=Ledger"):
        run(tw.Gather(), TOP, False)[0].books()
