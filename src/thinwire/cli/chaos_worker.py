"""What each worker of a chaos story does: a small training run that keeps snapshots and books."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thinwire.cli.chaos_faults import Strikes, Struck
from thinwire.cli.chaos_plan import DEADLINE, ROUNDS, N, Story
from thinwire.cli.chaos_task import H, network, optimizer_of, slope
from thinwire.cli.demo_train import Digits
from thinwire.company import Tried
from thinwire.elastic import Quorum
from thinwire.elastic.history import Told
from thinwire.elastic.meet import Record
from thinwire.elastic.regroup import Answer, Ask, Regroup
from thinwire.errors import SnapshotError
from thinwire.exchange.driver import Observer
from thinwire.ledger import Ledger, fold
from thinwire.shell import LocalSGD
from thinwire.snapshots import Snapshots
from thinwire.transport import DistributedTransport
from thinwire.wire.frame import HEADER, length

EVERY = 5
"""Rounds from snapshot to snapshot."""
STOPPED = 9
"""How a worker ends that was asked to and has left a snapshot."""


@dataclass(frozen=True)
class Job:
    """One life of one worker.

    Args:
        story: what befalls the run.
        rank: this worker.
        life: how often it was started before.
        folder: of the story.
        data: file of the digits.
        address: of the lighthouse, or the file in which a gang meets.
        host: this worker's own address.
    """

    story: Story
    rank: int
    life: int
    folder: Path
    data: str
    address: str
    host: str


def run(job: Job) -> int:
    """Does one life's work and returns how the process is to end."""
    return _elastic(job) if job.story.kind == "elastic" else _gang(job)


def _gang(job: Job) -> int:
    story = job.story
    dist.init_process_group(
        "gloo", init_method=f"file://{job.address}", rank=job.rank, world_size=N,
        timeout=timedelta(seconds=DEADLINE),
    )  # fmt: skip
    model, told = network(story.seed), [-1]
    strikes = _strikes(job, lambda: told[0])
    transport = Struck(DistributedTransport(None, HEADER, length), strikes)
    optimizer = optimizer_of(story, model, transport)
    digits = Digits(job.data, job.rank, N, story.seed)
    books = optimizer.ledger
    assert books is not None
    slowest = 0.0
    with Snapshots(job.folder / "snapshots", every=EVERY) as snapshots:
        resumed = snapshots.resume(model, optimizer, books=books)
        told[0] = optimizer.round
        while optimizer.round < ROUNDS:
            began = time.monotonic()
            slope(model, optimizer, digits, snapshots.step)
            optimizer.step()
            told[0] = optimizer.round
            try:
                with strikes.disk():
                    stop = snapshots.after_step()
            except SnapshotError:
                strikes.mend()
                stop = False
            slowest = max(slowest, time.monotonic() - began)
            if stop:
                _leave_gang()
                return STOPPED
    _write(job, optimizer, slowest, {"resumed": resumed is not None})
    _leave_gang()
    return 0


def _leave_gang() -> None:
    dist.barrier()  # nobody leaves while another still talks
    dist.destroy_process_group()


class Noted(Quorum):
    """An elastic worker on which strikes fall, and whose books and notes outlive it."""

    strikes: Strikes
    file: Path
    notes: Path

    def note(self, what: str, *facts: Any) -> None:
        """Notes what `thinwire.cli.chaos_calm` needs to have the same workers away."""
        with self.notes.open("a") as file:
            file.write(json.dumps([what, *facts]) + "\n")

    def adopt(self, worker: LocalSGD, record: Record, ready: bool) -> None:
        """Goes on where others are, and notes it."""
        super().adopt(worker, record, ready)
        if ready:
            self.note("told")

    def answer(self, ask: Ask, worker: LocalSGD, observer: Observer) -> Answer:
        """Answers as ever, unless something happens."""
        if not isinstance(ask, Regroup):
            self.strikes.message()
        return super().answer(ask, worker, observer)

    def told(self, worker: LocalSGD, delta: Tensor, tried: Tried) -> Told:
        """Notes the books as they are, and as they will be if this try, or one before it, stands.

        Others take a round up only after this worker has said that it is done: so whatever they
        take up is noted.
        """
        told = super().told(worker, delta, tried)
        assert worker.ledger is not None
        mem, _ = fold(worker.exchange, delta, worker.hold()[0].mem)
        tries = []
        for t in (*(t for t in self.standing.told if t.round == told.round), told):
            assert t.entry is not None
            assert t.said is not None
            books = Ledger()
            books.load_state_dict(worker.ledger.state_dict())
            books.book(t.entry)
            left = {"residual": mem["residual"] - t.said}
            tries.append((t.round, t.generation, books.closed(worker.exchange, left, 1)))
        _save({"books": worker.books(), "tries": tries}, self.file)
        self.note("said", *told.generation)
        return told


def _elastic(job: Job) -> int:
    story, name = job.story, f"w{job.rank}"
    model, told = network(story.seed), [-1]
    group = Noted(job.address, N, name, deadline=DEADLINE, host=job.host)
    group.strikes = _strikes(job, lambda: told[0])
    group.file = job.folder / f"books-{job.rank}-{job.life}.pt"
    group.notes = job.folder / f"notes-{job.rank}-{job.life}.jsonl"
    optimizer = optimizer_of(story, model, group)
    digits = Digits(job.data, job.rank, N, story.seed)
    slowest = 0.0
    with Snapshots(job.folder / name, every=EVERY) as snapshots:
        resumed = snapshots.resume(model, optimizer)
        told[0] = optimizer.round
        _save({"residual": optimizer.residual}, job.folder / f"kept-{job.rank}-{job.life}.pt")
        steps = 0
        while optimizer.round < ROUNDS:
            began = time.monotonic()
            if steps % H == 0:
                group.note("began", optimizer.round, snapshots.step)
            steps += 1
            slope(model, optimizer, digits, snapshots.step)
            optimizer.step()
            told[0] = optimizer.round
            slowest = max(slowest, time.monotonic() - began)
            snapshots.after_step()
    group.strikes = Strikes([], job.folder, lambda: -1)
    optimizer.leave()
    history = group.standing.history.to_json()
    _write(job, optimizer, slowest, {"resumed": resumed is not None, "history": history})
    return 0


def _strikes(job: Job, round_of: Any) -> Strikes:
    mine = [event for event in job.story.events if event.who == job.rank]
    return Strikes(mine, job.folder, round_of, job.story.hosts)


def _write(job: Job, optimizer: LocalSGD, slowest: float, rest: dict[str, Any]) -> None:
    ended = {
        "anchor": optimizer.anchor, "books": optimizer.books(), "round": optimizer.round,
        "slowest": slowest, **rest,
    }  # fmt: skip
    _save(ended, job.folder / f"ended-{job.rank}-{job.life}.pt")


def _save(what: dict[str, Any], file: Path) -> None:
    part = file.with_suffix(".part")
    torch.save(what, part)
    part.replace(file)
