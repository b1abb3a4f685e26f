"""One run: N workers in lock-step, the frames they send, one log; it goes on where it stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpt_data import Text
from gpt_methods import Method
from gpt_model import GPT, Shape
from torch import nn

import thinwire as tw
from thinwire import flat
from thinwire.cli.keeping import Keeping

BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0
RISE, FALL = 0.04, 0.1
"""The step size rises over this share of the run and falls to this share of its peak, a cosine."""
Tell = Callable[[int, int, float, int, int], None]


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        method: what is compared.
        seed: of the model, the batches and the operators.
        tokens: bytes of text that all workers see together.
        workers: N.
        batch: b, windows of each worker's mini-batch.
        shape: of the model.
        evaluations: how often it is judged on the way.
        windows: held-out windows that it is judged by.
    """

    method: Method
    seed: int = 0
    tokens: int = 10_000_000
    workers: int = 4
    batch: int = 16
    shape: Shape = field(default_factory=Shape)
    evaluations: int = 20
    windows: int = 256

    @property
    def steps(self) -> int:
        """Local steps of each worker; the same tokens for every method."""
        return max(1, self.tokens // (self.workers * self.batch * self.shape.context))

    @property
    def settings(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {k: v for k, v in asdict(self).items() if k != "seed"}


class Worker:
    """One worker's model, AdamW, draws and shell."""

    def __init__(self, cell: Cell, text: Text, rank: int, share: tuple[int, int]) -> None:
        self.cell, self.text, self.share, self.rank = cell, text, share, rank
        self.model = GPT(cell.shape, cell.seed)
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if p.dim() != 2]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY},
                  {"params": others, "weight_decay": 0.0}]  # fmt: skip
        self.inner = torch.optim.AdamW(groups, lr=cell.method.lr, betas=BETAS, fused=True)
        self.draws = [torch.Generator().manual_seed(1_000_003 * (cell.seed + 1) + r)
                      for r in range(*share)]  # fmt: skip

    def sit(self, N: int) -> None:
        """Takes its seat among N workers, from where its parameters are now."""
        preset = self.cell.method.preset
        self.optimizer = tw.LocalSGD(
            self.model, self.inner, group=tw.Seat(self.rank, N), seed=self.cell.seed, **preset
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: step_size(self.cell, step + self.cell.method.dense)
        )

    def backward(self) -> float:
        """Leaves the mean gradient of its mini-batches in the parameters; returns the loss."""
        c, N = self.cell, self.cell.workers
        self.inner.zero_grad()
        ranks = range(*self.share)
        drawn = [
            self.text.batch(r, N, c.batch, c.shape.context, draws)
            for r, draws in zip(ranks, self.draws, strict=True)
        ]
        x, y = (torch.cat(part) for part in zip(*drawn, strict=True))
        # As on most machines that train such models: matrix products in bfloat16, the rest float32.
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model.loss(x, y)
        loss.backward()
        return float(loss.detach())

    def clip(self) -> None:
        """Shortens its gradient to norm CLIP where it is longer."""
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)


class Seconds:
    """Seconds of training, over all the lives of a run, evaluations left out."""

    def __init__(self) -> None:
        self.total = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Returns them."""
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from them."""
        self.total = state["total"]


def step_size(cell: Cell, step: int) -> float:
    """Returns the factor of the peak at a local step."""
    rise = max(1, round(RISE * cell.steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, cell.steps - rise)
    return FALL + (1 - FALL) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def finished(log: Path) -> dict[str, Any] | None:
    """Returns a run's result where its log says that it ended, and else None."""
    if not log.is_file():
        return None
    lines = log.read_text(encoding="utf-8").splitlines()
    if len(lines) < 2 or json.loads(lines[-1]).get("status") != "done":
        return None
    result = json.loads(lines[-2])
    return result if result["event"] == "result" else None


def run(
    cell: Cell, text: Text, log: Path, tell: Tell | None = None, norms: bool = False
) -> dict[str, Any]:
    """Trains one cell, or what is left of it, and returns its result; the log is one file.

    Args:
        cell: the run.
        text: what is learned.
        log: its file; snapshots lie beside it until the run is done.
        tell: is told step, round, loss, and bytes that the first worker said and sent.
        norms: whether to log norms of residual and pseudo-gradient.
    """
    if (before := finished(log)) is not None:
        return before
    log.parent.mkdir(parents=True, exist_ok=True)
    workers = _workers(cell, text)
    first, N = workers[0], cell.workers
    d, dense = sum(p.numel() for p in first.model.parameters()), cell.method.dense
    # DDP's workers are one model with all mini-batches: the mean gradient, and AdamW on it.
    ddp = cell.method.kind == "ddp"
    cluster = tw.LockStep([w.optimizer for w in workers])
    seconds, folder = Seconds(), log.with_suffix(".snapshots")
    with ExitStack() as stack:
        each = [(w.model, w.optimizer, _parts(w, seconds)) for w in workers]
        keeping = stack.enter_context(Keeping(folder, _rounds(cell), each, cluster.run))
        lines = stack.enter_context(
            tw.RunLog(
                "gpt", cell.seed, cell.settings, log, task=f"bytes of {text.name}",
                method=cell.method.name, parameters=d, from_step=keeping.step or None,
            )
        )  # fmt: skip
        measured = tw.Measured(first.optimizer, lines, norms=norms, step=keeping.step)
        judge, stopped, last = GPT(cell.shape, 0), False, cell.steps - dense
        x, y = text.judged(cell.windows, cell.shape.context)
        every = max(1, last // cell.evaluations)

        def cost(step: int) -> dict[str, Any]:
            """Of all workers together; of DDP what a ring all-reduce of float32 says and sends."""
            said = 4 * d * N * (step if ddp else dense)
            own = [] if ddp else [w.optimizer.stats.totals() for w in workers]
            return {
                "uplink": said + sum(uplink for uplink, _, _ in own),
                "sent": 2 * (N - 1) * said // N + sum(sent for _, sent, _ in own),
                "seconds": round(seconds.total, 2),
            }

        def evaluate(step: int, loss: float) -> dict[str, Any]:
            flat.write(first.optimizer.agreed, list(judge.parameters()))
            with torch.no_grad():
                parts = [judge.loss(a, b) for a, b in zip(x.split(64), y.split(64), strict=True)]
            tokens = step * N * cell.batch * cell.shape.context
            found = {
                "step": step,
                "tokens": tokens,
                "epoch": tokens / len(text.train),
                "round": first.optimizer.round,
                **cost(step),
                "bits_per_byte": float(torch.stack(parts).mean()) / math.log(2),
                "train_loss": loss,
            }
            lines.write("evaluation", **found)
            return found

        loss = math.nan
        while keeping.step < last and not stopped:
            began = time.perf_counter()
            losses = [w.backward() for w in workers]
            for w in workers:
                w.clip()
            cluster.step()
            for w in workers:
                w.schedule.step()
            step, loss = keeping.step + 1, sum(losses) / len(losses)
            if step == last and step % cell.method.H:
                cluster.sync()
            seconds.total += time.perf_counter() - began
            if tell is not None:
                said, sent, _ = first.optimizer.stats.totals()
                tell(step + dense, first.optimizer.round, loss, said, sent)
            if step % every == 0 and step < last:
                evaluate(step + dense, loss)
            stopped = keeping.after_step()
        if stopped:
            raise KeyboardInterrupt
        found = evaluate(last + dense, loss)
        ratio = 4 * d * N * cell.steps / found["uplink"]
        result = {**found, "classes": dict(measured.classes), "ratio": ratio}
        lines.write("result", **result)
    _forget(folder)
    return {"event": "result", **result}


def _workers(cell: Cell, text: Text) -> list[Worker]:
    N = cell.workers
    if cell.method.kind == "ddp":
        workers = [Worker(cell, text, 0, (0, N))]
    else:
        workers = [Worker(cell, text, rank, (rank, rank + 1)) for rank in range(N)]
    _dense_steps(cell, workers)
    for worker in workers:
        worker.sit(len(workers))
    return workers


def _dense_steps(cell: Cell, workers: list[Worker]) -> None:
    """The first steps with the exact mean gradient: all workers stay one."""
    for step in range(cell.method.dense):
        for w in workers:
            w.backward()
        for same in zip(*(w.model.parameters() for w in workers), strict=True):
            mean = torch.stack([p.grad for p in same]).mean(0)
            for p in same:
                p.grad = mean.clone()
        for w in workers:
            w.clip()
            for group in w.inner.param_groups:
                group["lr"] = cell.method.lr * step_size(cell, step)
            w.inner.step()
    for w in workers:
        for group in w.inner.param_groups:
            group["lr"] = cell.method.lr


def _parts(worker: Worker, seconds: Seconds) -> dict[str, Any]:
    draws = {f"draws{n}": g for n, g in enumerate(worker.draws)}
    stats = worker.optimizer.stats
    return {"schedule": worker.schedule, "stats": stats, "seconds": seconds, **draws}


def _rounds(cell: Cell) -> int:
    """Rounds from snapshot to snapshot: about a twentieth of the run."""
    return max(1, cell.steps // cell.method.H // 20)


def _forget(folder: Path) -> None:
    for file in sorted(folder.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    folder.rmdir()
