"""What each worker of a chaos story does: a small training run that keeps snapshots and books."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thinwire.cli.chaos_faults import Strikes, Struck
from thinwire.cli.chaos_plan import DEADLINE, ROUNDS, N, Story
from thinwire.cli.demo_train import CLASSES, PIXELS, Digits, accuracy
from thinwire.company import Tried
from thinwire.compress import QSGD, Compressor, Sign, TopK
from thinwire.elastic import Quorum
from thinwire.elastic.history import Told
from thinwire.elastic.regroup import Answer, Ask, Regroup
from thinwire.errors import SnapshotError
from thinwire.exchange import Choco, Exchange, Feedback, Gather, Gossip, Ring, Server
from thinwire.exchange.driver import Observer
from thinwire.ledger import Ledger, fold
from thinwire.seat import Seat
from thinwire.shell import LocalSGD
from thinwire.simulate import LockStep
from thinwire.snapshots import Snapshots
from thinwire.topology import RingGraph
from thinwire.transport import DistributedTransport
from thinwire.wire.frame import HEADER, length

H = 4
HIDDEN = 32
LR = 0.2
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


def network(seed: int) -> nn.Sequential:
    """Returns the model, 64-32-10: d = 2,410 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def method(kind: str, form: str) -> tuple[Exchange, Compressor]:
    """Returns how the workers of a story talk."""
    sparse, codes = TopK(density=0.05) >> Sign(), QSGD(bits=8, norm="max", bucket=256)
    if form == "server":
        return Server(Feedback()), sparse
    if kind == "gossip":
        plain = QSGD(bits=8, norm="max", scale="none", bucket=256)
        return (Choco(RingGraph()), codes) if form == "choco" else (Gossip(RingGraph()), plain)
    if form == "gather" and kind != "ring":
        return Gather(Feedback()), sparse
    if form == "gather":
        return Ring("gather", Feedback()), sparse
    return Ring("ring" if form == "ring" else "two-phase", Feedback()), codes


def optimizer_of(story: Story, model: nn.Module, group: Any) -> LocalSGD:
    """Returns the optimizer of a worker of this story."""
    exchange, compressor = method(story.kind, story.form)
    inner = torch.optim.SGD(model.parameters(), lr=LR)
    return LocalSGD(
        model, inner, H=H, compressor=compressor, exchange=exchange, group=group,
        seed=story.seed, ledger=Ledger(),
    )  # fmt: skip


def batch(digits: Digits, step: int) -> tuple[Tensor, Tensor]:
    """Returns the batch of that local step, whatever came before."""
    epoch, at = divmod(step, digits.steps)
    draw = torch.Generator().manual_seed((digits.seed * 1009 + epoch) * 1009 + digits.rank)
    order = torch.randperm(len(digits.images), generator=draw)
    size = len(digits.images) // digits.steps
    chosen = order[at * size : (at + 1) * size]
    return digits.images[chosen], digits.labels[chosen]


def learn(model: nn.Module, optimizer: LocalSGD, digits: Digits, step: int) -> None:
    """Takes one local step, and the round if it is due."""
    images, labels = batch(digits, step)
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def calm(story: Story, data: str) -> dict[str, Any]:
    """Runs the story without its events, all workers in this process, and returns how it ends."""
    models = [network(story.seed) for _ in range(N)]
    workers = [optimizer_of(story, m, Seat(rank, N)) for rank, m in enumerate(models)]
    cluster = LockStep(workers)
    shares = [Digits(data, rank, N, story.seed) for rank in range(N)]
    for step in range(H * ROUNDS):
        for model, worker, share in zip(models, workers, shares, strict=True):
            images, labels = batch(share, step)
            worker.zero_grad()
            cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        cluster.step()
    return outcome([worker.anchor for worker in workers], shares[0])


def outcome(anchors: list[Tensor], digits: Digits) -> dict[str, Any]:
    """Returns the accuracy of the mean of these models, and their digest."""
    total = torch.zeros_like(anchors[0])
    for anchor in anchors:
        total += anchor
    data = b"".join(anchor.numpy().tobytes() for anchor in anchors)
    return {
        "accuracy": accuracy(network(0), total / len(anchors), digits.test),
        "digest": hashlib.sha256(data).hexdigest(),
    }


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
            learn(model, optimizer, digits, snapshots.step)
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
    """An elastic worker on which strikes fall, and whose books outlive it."""

    strikes: Strikes
    file: Path

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
        return told


def _elastic(job: Job) -> int:
    story, name = job.story, f"w{job.rank}"
    model, told = network(story.seed), [-1]
    group = Noted(job.address, N, name, deadline=DEADLINE, host=job.host)
    group.strikes = _strikes(job, lambda: told[0])
    group.file = job.folder / f"books-{job.rank}-{job.life}.pt"
    optimizer = optimizer_of(story, model, group)
    digits = Digits(job.data, job.rank, N, story.seed)
    slowest = 0.0
    with Snapshots(job.folder / name, every=EVERY) as snapshots:
        resumed = snapshots.resume(model, optimizer)
        told[0] = optimizer.round
        while optimizer.round < ROUNDS:
            began = time.monotonic()
            learn(model, optimizer, digits, snapshots.step)
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
