"""Softmax regression on MNIST in the first paper's convex setting, by any preset.

d = 7850, one flat scope, iid shards, mini-batches of b, l2 term 1/n, step size c a / (a + t).
It runs in one process in lock-step, or, under `torchrun`, as one worker of the process group.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from thinwire.cli.idx import Digits
from thinwire.compress import QSGD, Compressor, Identity, Sign, TopK
from thinwire.errors import ConfigError
from thinwire.exchange import (
    DPSGD,
    Asynchronous,
    Choco,
    DeepSqueeze,
    Exchange,
    Feedback,
    Gossip,
    Marsit,
    NoFeedback,
    Ring,
    Server,
)
from thinwire.schedule import HSchedule, RandomGaps
from thinwire.seat import Seat
from thinwire.shell import LocalSGD
from thinwire.simulate import LockStep

D, K = 7850, 40


def _methods(k: int, feedback: bool) -> dict[str, tuple[Compressor, Exchange]]:
    """What each preset says in this setting, one flat scope, and to whom."""
    owed = Feedback() if feedback else NoFeedback(permit="biased")
    topk, sign = TopK(k=k, scope="global"), Sign(scope="global")
    eight = QSGD(bits=8, norm="max", scale="none", scope="global", bucket=1024, coding="fixed")
    return {
        "qsparse_local_sgd": (topk >> Sign(), Server(owed)),
        "qsparse_async": (topk >> Sign(), Asynchronous(owed)),
        "topk_sgd": (topk, Server(owed)),
        "ef_sign_sgd": (sign, Server(owed)),
        "local_sgd": (Identity(), Server(NoFeedback())),
        "vanilla": (Identity(), Server(NoFeedback())),
        "qprsgd_ring": (eight, Ring()),
        "qprsgd_gossip": (eight, Gossip()),
        "choco_sgd": (topk, Choco()),
        "deep_squeeze": (replace(eight, scale="fit"), DeepSqueeze()),
        "d_psgd": (Identity(), DPSGD(mixing="before")),
        "squarm_sgd": (topk >> Sign(), Choco(trigger=1e-4)),
        "marsit": (Sign(), Marsit()),
    }


WITHOUT_FEEDBACK = ("qsparse_local_sgd", "qsparse_async", "topk_sgd", "ef_sign_sgd")
"""Presets that an experiment may run with feedback off."""
KEEPS_K = ("qsparse_local_sgd", "qsparse_async", "topk_sgd", "choco_sgd", "squarm_sgd")
"""Presets that keep k entries."""
ONE_STEP = ("vanilla", "topk_sgd", "ef_sign_sgd", "choco_sgd", "deep_squeeze", "d_psgd", "marsit")
"""Presets that take one local step a round unless asked for more."""


@dataclass(frozen=True)
class Setting:
    """One run.

    Args:
        preset: a name of `thinwire.PRESETS`.
        H: local steps per round; the longest of random gaps where the preset is asynchronous.
        k: kept entries, where the preset sparsifies.
        step_size: c of c a / (a + t).
        step_decay: a of c a / (a + t); the paper's is about d H / k.
        feedback: whether the residual is kept.
        target_error: stops when the mean of three evaluations in a row is at most this.
        workers: N.
        batch: b, of each worker.
        max_steps: gives up after so many.
        evaluate_every: steps from one evaluation to the next; None for 8, or H where all workers
            share a model only every H steps.
        seed: of shards, batches and operators.
    """

    preset: str = "qsparse_local_sgd"
    H: int = 8
    k: int = K
    step_size: float = 0.3
    step_decay: float = 8 * D / K
    feedback: bool = True
    target_error: float = 0.10
    workers: int = 15
    batch: int = 8
    max_steps: int = 2500
    evaluate_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        known = _methods(1, True)
        if self.preset not in known:
            raise ConfigError(f"no preset {self.preset!r}; choose {', '.join(known)}")
        if self.preset == "vanilla" and self.H != 1:
            raise ConfigError("vanilla takes one local step a round; local_sgd takes H")
        if not self.feedback and self.preset not in WITHOUT_FEEDBACK:
            raise ConfigError(
                f"{self.preset} cannot run without feedback; {', '.join(WITHOUT_FEEDBACK)} can"
            )
        if self.k != K and self.preset not in KEEPS_K:
            raise ConfigError(f"{self.preset} keeps no k entries; {', '.join(KEEPS_K)} do")
        for name in ("H", "k", "workers", "batch", "max_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("step_size", "step_decay"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.target_error <= 1:
            raise ConfigError(f"target error is {self.target_error}; it must lie in [0, 1]")

    @property
    def gaps(self) -> HSchedule:
        """The local steps of each worker's rounds."""
        return RandomGaps(self.H) if self.preset == "qsparse_async" else self.H

    @property
    def method(self) -> tuple[Compressor, Exchange]:
        """C of this run, and who says it to whom."""
        return _methods(self.k, self.feedback)[self.preset]


@dataclass(frozen=True)
class Progress:
    """Where a run stands after an evaluation; costs are uplink, all workers together."""

    step: int
    rounds: int
    framed_bytes: int
    test_error: float


def usual_H(preset: str) -> int:
    """Returns the local steps that a preset takes where none are asked for."""
    return 1 if preset in ONE_STEP else 8


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
    setting: Setting, data: Digits, tell: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Trains until the target or the last step; returns what it cost, uplink, all workers together.

    Args:
        setting: the run.
        data: MNIST, or anything of its shapes.
        tell: is called after each evaluation.

    Raises:
        ConfigError: settings that cannot run.
    """
    began, three, done = time.perf_counter(), [1.0, 1.0, 1.0], 0
    workers, step = _cluster(setting, data)
    first = workers[0]
    shared = 1 if setting.preset == "qsparse_async" else setting.H
    every, error = setting.evaluate_every or max(8, shared), 1.0
    for done in range(1, setting.max_steps + 1):
        for worker in workers:
            worker.backward()
        step()
        for worker in workers:
            worker.schedule.step()
        if done % every == 0 and done % shared == 0:
            error = first.test_error(_anchor(workers))
            three = [*three[1:], error]
            uplink = _uplink(workers)
            tell(Progress(done, first.optimizer.round, uplink, error))
            if sum(three) / 3 <= setting.target_error:
                break
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
        "reached": sum(three) / 3 <= setting.target_error,
        "steps": done,
        "rounds": rounds,
        "framed_bytes": _uplink(workers),
        "sent_bytes": _total([sum(w.optimizer.stats.sent.values()) for w in workers]),
        "fixed_width_bits": (
            _total([w.optimizer.round for w in workers]) * bits
            if isinstance(exchange, (Server, Asynchronous))
            else None
        ),
        "test_error": sum(three) / 3,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _cluster(setting: Setting, data: Digits) -> tuple[list[Worker], Callable[[], object]]:
    if dist.is_available() and dist.is_initialized():
        worker = Worker(setting, data, dist.get_rank(), None)
        return [worker], worker.optimizer.step
    N = setting.workers
    workers = [Worker(setting, data, rank, Seat(rank, N)) for rank in range(N)]
    cluster = LockStep([worker.optimizer for worker in workers])
    # A scheduler must see its optimizer step; in lock-step the cluster steps them all.
    return workers, cluster.step


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
