"""Softmax regression on MNIST in the first paper's convex setting, by any preset.

d = 7850, one flat scope, iid shards, mini-batches of b, l2 term 1/n, step size c a / (a + t).
It runs in one process in lock-step, or, under `torchrun`, as one worker of the process group.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from thinwire.cli.idx import Digits
from thinwire.cli.keeping import Keeping, Recent, Run, Same
from thinwire.cli.mnist_setting import Setting
from thinwire.errors import ConfigError
from thinwire.exchange import Asynchronous, Server
from thinwire.seat import Seat
from thinwire.shell import LocalSGD
from thinwire.simulate import LockStep


@dataclass(frozen=True)
class Progress:
    """Where a run stands after an evaluation; costs are uplink, all workers together."""

    step: int
    rounds: int
    framed_bytes: int
    test_error: float


class Worker:
    """One worker's model, data and shell."""

    def __init__(
        self, setting: Setting, data: Digits, rank: int, group: Seat | dist.ProcessGroup | None
    ) -> None:
        self.setting, self.data = setting, data
        N, n = setting.workers, len(data.train_y)
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(setting.seed))
        self.shard = shuffled[rank * n // N : (rank + 1) * n // N]
        if not len(self.shard):
            raise ConfigError(f"{N} workers cannot share {n} images; use fewer workers")
        self.draws = torch.Generator().manual_seed(1_000_003 * (setting.seed + 1) + rank)
        self.model = nn.Linear(data.train_x.shape[1], 10)
        nn.init.zeros_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        inner = torch.optim.SGD(self.model.parameters(), lr=setting.step_size, weight_decay=1 / n)
        compressor, exchange = setting.method
        self.optimizer = LocalSGD(
            self.model,
            inner,
            H=setting.gaps,
            compressor=compressor,
            exchange=exchange,
            group=group,
            seed=setting.seed,
        )
        a = setting.step_decay
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda t: a / (a + t))

    def parts(self, recent: Recent, same: Same) -> dict[str, Any]:
        """Returns what a snapshot holds of this worker beside its model and its rounds."""
        stats = self.optimizer.stats
        return {
            "setting": same, "recent": recent, "stats": stats,
            "schedule": self.schedule, "draws": self.draws,
        }  # fmt: skip

    def backward(self) -> None:
        """Leaves the gradient of one mini-batch in the parameters."""
        pick = torch.randint(len(self.shard), (self.setting.batch,), generator=self.draws)
        batch = self.shard[pick]
        self.optimizer.zero_grad()
        logits = self.model(self.data.train_x[batch])
        nn.functional.cross_entropy(logits, self.data.train_y[batch]).backward()  # type: ignore[no-untyped-call]

    def test_error(self, anchor: Tensor) -> float:
        """Returns the wrong fraction of the test images, at these parameters."""
        w = anchor[: 10 * self.data.test_x.shape[1]].view(10, -1)
        logits = self.data.test_x @ w.t() + anchor[w.numel() :]
        return float((logits.argmax(1) != self.data.test_y).double().mean())


def train(
    setting: Setting,
    data: Digits,
    tell: Callable[[Progress], None] = lambda progress: None,
    snapshots: str | Path | None = None,
    every: int = 50,
) -> dict[str, Any]:
    """Trains until the target or the last step; returns what it cost, uplink, all workers together.

    Args:
        setting: the run.
        data: MNIST, or anything of its shapes.
        tell: is called after each evaluation.
        snapshots: a folder to keep snapshots in, and to go on from.
        every: rounds from one snapshot to the next.

    Raises:
        ConfigError: settings that cannot run.
    """
    began, recent, stopped = time.perf_counter(), Recent(), False
    workers, step, run = _cluster(setting, data)
    first = workers[0]
    shared = 1 if setting.preset == "qsparse_async" else setting.H
    evaluate = setting.evaluate_every or max(8, shared)
    with ExitStack() as stack:
        keeping = None
        if snapshots is not None:
            same = Same(asdict(setting), free=("max_steps", "target_error", "evaluate_every"))
            each = [(w.model, w.optimizer, w.parts(recent, same)) for w in workers]
            keeping = stack.enter_context(Keeping(snapshots, every, each, run))
        done = 0 if keeping is None else keeping.step
        while done < setting.max_steps and recent.mean > setting.target_error and not stopped:
            done += 1
            for worker in workers:
                worker.backward()
            step()
            for worker in workers:
                worker.schedule.step()
            if done % evaluate == 0 and done % shared == 0:
                error = first.test_error(_anchor(workers))
                recent.add(error)
                tell(Progress(done, first.optimizer.round, _uplink(workers), error))
            stopped = keeping is not None and keeping.after_step()
    rounds = first.optimizer.round
    compressor, exchange = setting.method
    bits = compressor.fixed_width_bits(first.optimizer.spans)
    return {
        "preset": setting.preset,
        "H": setting.H,
        "k": setting.k,
        "step_size": setting.step_size,
        "step_decay": setting.step_decay,
        "feedback": setting.feedback,
        "workers": setting.workers,
        "seed": setting.seed,
        "target_error": setting.target_error,
        "reached": recent.mean <= setting.target_error,
        "stopped": stopped,
        "steps": done,
        "rounds": rounds,
        "framed_bytes": _uplink(workers),
        "sent_bytes": _total([sum(w.optimizer.stats.sent.values()) for w in workers]),
        "fixed_width_bits": (
            _total([w.optimizer.round for w in workers]) * bits
            if isinstance(exchange, (Server, Asynchronous))
            else None
        ),
        "test_error": recent.mean,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _cluster(setting: Setting, data: Digits) -> tuple[list[Worker], Callable[[], object], Run]:
    if dist.is_available() and dist.is_initialized():
        worker = Worker(setting, data, dist.get_rank(), None)
        drive = worker.optimizer.drive
        return [worker], worker.optimizer.step, lambda talks: [drive(talk) for talk in talks]
    N = setting.workers
    workers = [Worker(setting, data, rank, Seat(rank, N)) for rank in range(N)]
    cluster = LockStep([worker.optimizer for worker in workers])
    # A scheduler must see its optimizer step; in lock-step the cluster steps them all.
    return workers, cluster.step, cluster.run


def _uplink(workers: list[Worker]) -> int:
    return _total([worker.optimizer.stats.uplink for worker in workers])


def _total(own: list[int]) -> int:
    total = torch.tensor([sum(own)], dtype=torch.int64)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return int(total)


def _anchor(workers: list[Worker]) -> Tensor:
    """The parameters that are tested: all workers' own, or, where they differ, their mean."""
    first = workers[0].optimizer
    if first.exchange.replicates or first.exchange.hands_anchor:
        return first.agreed  # Rank 0 is the master.
    total = torch.stack([worker.optimizer.anchor for worker in workers]).sum(0)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return total / first.place[1]
