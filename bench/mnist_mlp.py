"""An MLP on MNIST without a server: accuracy and bytes of QPRSGD's ring and gossip.

784-128-10, ReLU, plain SGD, N = 8 workers with batches of 16, step size falling to 0 as a cosine.
Vanilla is one exact mean of gradients a step; its bytes are those of a float32 ring all-reduce,
2 (N - 1)/N * 4d a rank a step. All others take H = 5 local steps a round in lock-step, through
`LocalSGD`, and their bytes are the frames that left a rank, measured. Shards are iid, or sorted by
label: worker r holds about 1.25 neighbouring digits. Step sizes are the best of
a grid on 5000 images held out of the training set, at seed 0; accuracies are on the test set.

(a) ring, gossip, and gossip with its correction on, against vanilla, over 20 epochs;
(b) mixing before or after the local steps, over label-sorted shards, 4 epochs, more seeds;
(c) quantized differences against quantized models, at fewer bits, 4 epochs.

    python bench/mnist_mlp.py --data DIR
    python bench/mnist_mlp.py --data DIR --quick

Each run is one line of `--log`; a second call goes on where the first was stopped. The table is
written to `--out` with date, machine, versions and seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from copy import copy
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from published import ran_on
from torch import Tensor, nn

from thinwire.cli.idx import Digits, load_mnist
from thinwire.compress import QSGD
from thinwire.errors import NonFiniteError
from thinwire.exchange import DPSGD, Exchange, Gossip, Ring
from thinwire.seat import Seat
from thinwire.shell import LocalSGD
from thinwire.simulate import LockStep
from thinwire.topology import Hypercube, RingGraph, Topology, Torus

N, BATCH, H, HELD_OUT = 8, 16, 5, 5000
GRID = (0.1, 0.2, 0.3)
BITS = (8, 4, 3, 2)
EPOCHS, SHORT, MIXING_SEEDS = 20, 4, 4
CORRECTION = 0.5
GRAPHS: dict[str, Topology] = {
    "ring graph": RingGraph(),
    "hypercube": Hypercube(),
    "torus": Torus(),
}
PREDICTED = {"ring graph": 94.3, "hypercube": 91.4, "torus": 91.4}
PLAIN = tuple(f"gossip, {graph}" for graph in PREDICTED)
CORRECTED = tuple(f"corrected gossip, {graph}" for graph in PREDICTED)
MAIN = {False: ("ring", *PLAIN), True: ("ring", *CORRECTED, *PLAIN[:2])}
"""The rows of (a), by whether shards are sorted by label."""

TUNED = {False: "gossip, hypercube", True: "corrected gossip, hypercube"}
"""The method whose step size all with local steps take in (a), by the same."""

MIXED, MIXING_GRID = "gossip, ring graph", (0.2, 0.3)


@dataclass(frozen=True)
class Setting:
    """One run.

    Args:
        method: "vanilla", one of `MAIN` or `MIXED`, or "models, ring graph" for whole quantized
            models.
        label_sorted: whether shards are sorted by label.
        lr: the step size at the start.
        bits: of a code.
        mixing: of gossip, after the local steps or before.
        seed: of shards, start, batches and operators.
        epochs: passes over the training set.
        hidden: units of the hidden layer.
    """

    method: str
    label_sorted: bool = False
    lr: float = 0.3
    bits: int = 8
    mixing: str = "after"
    seed: int = 0
    epochs: int = EPOCHS
    hidden: int = 128

    @property
    def exchange(self) -> Exchange:
        """What the method exchanges."""
        if self.method == "ring":
            return Ring(form="ring")
        kind, _, graph = self.method.partition(", ")
        if kind == "corrected gossip":
            return Gossip(GRAPHS[graph], self.mixing, CORRECTION)
        return {"gossip": Gossip, "models": DPSGD}[kind](GRAPHS[graph], self.mixing)


class Task:
    """The data, cut into shards, and the networks of all workers, computed together.

    Worker r's parameters are the r-th slices of stacked tensors, so one batched product serves
    all workers' gradients; their optimizers and rounds are their own.
    """

    def __init__(self, setting: Setting, data: Digits) -> None:
        self.setting = setting
        draws = torch.Generator().manual_seed(setting.seed)
        order = torch.randperm(len(data.train_y), generator=draws)
        self.held, order = order[:HELD_OUT], order[HELD_OUT:]
        if setting.label_sorted:
            order = order[data.train_y[order].argsort(stable=True)]
        self.shards = order[: len(order) // N * N].view(N, -1)
        self.per_epoch = self.shards.shape[1] // BATCH
        self.x, self.y = (data.train_x - 0.1307) / 0.3081, data.train_y
        self.test_x, self.test_y = (data.test_x - 0.1307) / 0.3081, data.test_y
        torch.manual_seed(setting.seed)
        first, second = nn.Linear(784, setting.hidden), nn.Linear(setting.hidden, 10)
        start = [first.weight.T, first.bias, second.weight.T, second.bias]
        self.start = [p.detach().contiguous() for p in start]
        self.draws = torch.Generator().manual_seed(1_000_003 * (setting.seed + 1))

    @property
    def d(self) -> int:
        """Parameters of one network."""
        return sum(p.numel() for p in self.start)

    def batches(self) -> Tensor:
        """Returns one epoch's batches, (steps, N, BATCH): each shard in its own new order."""
        size = self.shards.shape[1]
        orders = [torch.randperm(size, generator=self.draws) for _ in range(N)]
        picked = self.shards.gather(1, torch.stack(orders))[:, : self.per_epoch * BATCH]
        return picked.view(N, self.per_epoch, BATCH).transpose(0, 1)

    def descend(self, stack: list[Tensor], pick: Tensor, eta: float) -> None:
        """Takes one step of each network on its own batch, in place; pick is (networks, batch).

        The chain rule written out: a third of the time of `torch.autograd` and an optimizer each.
        """
        w1, b1, w2, b2 = stack
        x, each = self.x[pick], self.y[pick].unsqueeze(2)
        before = hidden(stack, x)
        after = before.relu()
        error = logits(stack, after).softmax(2)
        error.scatter_add_(2, each, -torch.ones(each.shape))
        error /= pick.shape[1]
        back = (error @ w2.transpose(1, 2)) * (before > 0)
        w1.baddbmm_(x.transpose(1, 2), back, alpha=-eta)
        b1.sub_(back.sum(1), alpha=eta)
        w2.baddbmm_(after.transpose(1, 2), error, alpha=-eta)
        b2.sub_(error.sum(1), alpha=eta)

    def accuracy(self, params: list[Tensor], held: bool = False) -> float:
        """Returns the right percentage of the test images, or of those held out."""
        x, y = (self.x[self.held], self.y[self.held]) if held else (self.test_x, self.test_y)
        one = [p.unsqueeze(0) for p in params]
        right = logits(one, hidden(one, x.unsqueeze(0)).relu())[0].argmax(1) == y
        return 100 * float(right.double().mean())


def hidden(stack: list[Tensor], x: Tensor) -> Tensor:
    return torch.baddbmm(stack[1].unsqueeze(1), x, stack[0])


def logits(stack: list[Tensor], after: Tensor) -> Tensor:
    return torch.baddbmm(stack[3].unsqueeze(1), after, stack[2])


def train(setting: Setting, data: Digits) -> dict[str, Any]:
    """Runs one setting and returns its accuracies and its bytes."""
    began, task = time.monotonic(), Task(setting, data)
    sent, diverged = 0.0, False
    stack = [p.expand(N, *p.shape).clone() for p in task.start]
    steps = setting.epochs * task.per_epoch
    if setting.method == "vanilla":
        sent = steps * 2 * (N - 1) / N * 4 * task.d
        vanilla(task, stack, steps)
    else:
        cluster = LockStep([worker(task, stack, rank) for rank in range(N)])
        joined = [w.stats.totals()[1] for w in cluster.workers]
        try:
            local(task, stack, steps, cluster)
        except NonFiniteError:
            diverged = True
        each = [w.stats.totals()[1] for w in cluster.workers]
        sent = max(after - before for before, after in zip(joined, each, strict=True))
    middle = [p.mean(0) for p in stack]
    spread = sum(
        float((p - m).double().square().sum()) / N for p, m in zip(stack, middle, strict=True)
    )
    size = sum(float(m.double().square().sum()) for m in middle)
    workers = [task.accuracy([p[rank] for p in stack]) for rank in range(N)]
    return {
        "steps": steps,
        "d": task.d,
        "held": task.accuracy(middle, held=True),
        "accuracy": task.accuracy(middle),
        "workers": mean(workers),
        "worst": min(workers),
        "consensus": (spread / size) ** 0.5,
        "sent": sent,
        "vanilla_sent": steps * 2 * (N - 1) / N * 4 * task.d,
        "diverged": diverged,
        "seconds": time.monotonic() - began,
    }


def vanilla(task: Task, stack: list[Tensor], steps: int) -> None:
    """All workers at one point: the exact mean of their gradients, every step."""
    one = [p[:1].clone() for p in stack]
    for step, pick in each_batch(task):
        task.descend(one, pick.reshape(1, -1), step_size(task.setting, step, steps))
    for p, q in zip(stack, one, strict=True):
        p.copy_(q.expand_as(p))


def step_size(setting: Setting, step: int, steps: int) -> float:
    return setting.lr * (1 + math.cos(math.pi * step / steps)) / 2


def worker(task: Task, stack: list[Tensor], rank: int) -> LocalSGD:
    # Its parameters are its slices of the stack: the local steps are taken there, for all at once.
    s, params = task.setting, [nn.Parameter(p[rank]) for p in stack]
    operator = QSGD(bits=s.bits, norm="max", scale="none", bucket=1024, coding="fixed")
    inner = torch.optim.SGD(params, lr=s.lr)
    return LocalSGD(
        params,
        inner,
        H=H,
        compressor=operator,
        exchange=s.exchange,
        group=Seat(rank, N),
        seed=s.seed,
    )


def local(task: Task, stack: list[Tensor], steps: int, cluster: LockStep) -> None:
    """H local steps, then a round; the last round may be shorter."""
    for step, pick in each_batch(task):
        task.descend(stack, pick, step_size(task.setting, step, steps))
        if (step + 1) % H == 0 or step + 1 == steps:
            cluster.sync()


def each_batch(task: Task) -> Any:
    for epoch in range(task.setting.epochs):
        yield from enumerate(task.batches(), epoch * task.per_epoch)


class Runs:
    """Results by setting: those of the log, and those measured on demand and added to it."""

    def __init__(self, log: Path, data: Digits, base: Setting, grid: tuple[float, ...]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._data, self._base, self.grid = log, data, base, grid
        self._done: dict[str, dict[str, Any]] = {}
        if log.exists():
            for line in log.read_text().splitlines():
                entry = json.loads(line)
                self._done[json.dumps(entry["setting"], sort_keys=True)] = entry["result"]

    def after(self, base: Setting) -> Runs:
        """Returns the same runs where nothing else is said from another base."""
        other = copy(self)
        other._base = base
        return other

    def get(self, method: str, label_sorted: bool, lr: float, **more: Any) -> dict[str, Any]:
        setting = replace(self._base, method=method, label_sorted=label_sorted, lr=lr, **more)
        name = json.dumps(asdict(setting), sort_keys=True)
        if name not in self._done:
            result = self._done[name] = train(setting, self._data)
            with self._log.open("a") as out:
                out.write(json.dumps({"setting": asdict(setting), "result": result}) + "\n")
            told = f"{result['accuracy']:.2f} {result['workers']:.2f} {result['seconds']:.1f} s"
            print(f"{setting}: {told}", flush=True)
        return self._done[name]

    def best(self, method: str, label_sorted: bool, **more: Any) -> float:
        """Returns the step size of the grid that is best on the held-out images, at seed 0.

        From the largest down, for as long as the next is better.
        """

        def held(lr: float) -> float:
            result = self.get(method, label_sorted, lr, **more)
            return -1.0 if result["diverged"] else result["held"]

        best, *smaller = sorted(self.grid, reverse=True)
        for lr in smaller:
            if held(lr) <= held(best):
                break
            best = lr
        return best


@dataclass(frozen=True)
class Row:
    """Means over seeds of one method on one kind of shards; the reduction is in percent."""

    method: str
    lr: float
    accuracies: list[float]
    workers: float
    worst: float
    held: float
    consensus: float
    megabytes: float
    reduction: float
    diverged: bool

    @property
    def accuracy(self) -> float:
        """The mean model's."""
        return mean(self.accuracies)


def row(
    runs: Runs, method: str, label_sorted: bool, seeds: int, lr: float | None = None, **more: Any
) -> Row:
    lr = runs.best(method, label_sorted, **more) if lr is None else lr
    results = [runs.get(method, label_sorted, lr, seed=s, **more) for s in range(seeds)]
    sent, base = mean(r["sent"] for r in results), mean(r["vanilla_sent"] for r in results)
    return Row(
        method,
        lr,
        [r["accuracy"] for r in results],
        mean(r["workers"] for r in results),
        min(r["worst"] for r in results),
        mean(r["held"] for r in results),
        mean(r["consensus"] for r in results),
        sent / 1e6,
        100 * (1 - sent / base),
        any(r["diverged"] for r in results),
    )


def shards(label_sorted: bool) -> str:
    return "label-sorted" if label_sorted else "iid"


def listed(accuracies: list[float]) -> str:
    return ", ".join(f"{a:.2f}" for a in accuracies)


def main_table(tables: dict[bool, list[Row]]) -> list[str]:
    lines = [
        "| shards | method | lr | test accuracy of the mean model, each seed | mean | "
        "mean over workers | worst worker | workers' distance, relative | MB sent a rank | "
        "against float32 ring |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label_sorted, rows in tables.items():
        for r in rows:
            fewer = f"-{r.reduction:.1f} %" if r.method != "vanilla" else "baseline"
            lines.append(
                f"| {shards(label_sorted)} | {r.method} | {r.lr:g} | {listed(r.accuracies)} | "
                f"{r.accuracy:.2f} | {r.workers:.2f} | {r.worst:.2f} | {r.consensus:.1e} | "
                f"{r.megabytes:.1f} | {fewer} |"
            )
    return lines


Mixings = dict[tuple[str, float], Row]
"""Rows by mixing and step size."""


def mixing_table(mixings: Mixings) -> list[str]:
    lines = [
        "| lr | mixing | mean model, each seed | mean | mean over workers | held out | "
        "after is ahead by |",
        "|---|---|---|---|---|---|---|",
    ]
    for (mixing, lr), r in mixings.items():
        ahead, error = ahead_by(mixings["after", lr], mixings["before", lr])
        by = f"{ahead:+.2f} +- {error:.2f}" if mixing == "before" else ""
        lines.append(
            f"| {lr:g} | {mixing} | {listed(r.accuracies)} | {r.accuracy:.2f} | {r.workers:.2f} | "
            f"{r.held:.2f} | {by} |"
        )
    return lines


def bits_table(cells: dict[tuple[bool, str, int], Row]) -> list[str]:
    lines = [
        "| shards | what is quantized | lr | " + " | ".join(f"{b} bits" for b in BITS) + " |",
        "|---|---|---|" + "---|" * len(BITS),
    ]
    for label_sorted, method in dict.fromkeys((s, m) for s, m, _ in cells):
        rows = [cells[label_sorted, method, b] for b in BITS]
        what = "differences (Gossip)" if method.startswith("gossip") else "models (DPSGD)"
        shown = ["diverged" if r.diverged else f"{r.accuracy:.2f} ({r.workers:.2f})" for r in rows]
        lines.append(
            f"| {shards(label_sorted)} | {what} | {rows[0].lr:g} | " + " | ".join(shown) + " |"
        )
    return lines


def verdict(tables: dict[bool, list[Row]], mixings: Mixings) -> list[str]:
    lines = ["| shards | claim | goal | measured | |", "|---|---|---|---|---|"]

    def add(where: str, claim: str, goal: str, measured: str, met: bool) -> None:
        lines.append(f"| {where} | {claim} | {goal} | {measured} | {'met' if met else 'MISSED'} |")

    for label_sorted, (base, *others) in tables.items():
        where = shards(label_sorted)
        got = base.accuracy
        add(where, "vanilla's accuracy", "at least 97.5 %", f"{got:.2f} %", got >= 97.5)
        for r in others:
            each = [a - b for a, b in zip(base.accuracies, r.accuracies, strict=True)]
            below, spread = mean(each), stdev(each) if len(each) > 1 else 0.0
            shown = f"{below:.2f} (seeds: {min(each):.2f} to {max(each):.2f}, s.d. {spread:.2f})"
            add(where, f"{r.method}: below vanilla", "at most 0.5", shown, below <= 0.5)
            predicted = PREDICTED.get(r.method.partition(", ")[2], 95.0)
            add(
                where,
                f"{r.method}: fewer bytes",
                f"at least 90 % ({predicted:.1f} predicted)",
                f"{r.reduction:.1f} %",
                r.reduction >= 90,
            )
    after, before = (
        max((r for (m, _), r in mixings.items() if m == mixing), key=lambda r: r.held)
        for mixing in ("after", "before")
    )
    ahead, error = ahead_by(after, before)
    add(
        "label-sorted",
        f"{MIXED}: mixing after the local steps (the default) is the winner, each at its best lr",
        "above before",
        f"{after.accuracy:.2f} (lr {after.lr:g}) against {before.accuracy:.2f} (lr {before.lr:g}); "
        f"{ahead:+.2f} +- {error:.2f} (standard error over seeds)",
        ahead > 0,
    )
    if 0 < ahead < 2 * error:
        lines[-1] = lines[-1].removesuffix("met |") + "ahead, within the spread |"
    return lines


def ahead_by(after: Row, before: Row) -> tuple[float, float]:
    """Returns how far mixing after is ahead, and the standard error over seeds."""
    ahead = [a - b for a, b in zip(after.accuracies, before.accuracies, strict=True)]
    return mean(ahead), stdev(ahead) / len(ahead) ** 0.5 if len(ahead) > 1 else 0.0


def report(runs: Runs, base: Setting, seeds: int, command: str) -> str:
    tables = {
        s: [
            row(runs, "vanilla", s, seeds),
            *(row(runs, method, s, seeds, runs.best(TUNED[s], s)) for method in MAIN[s]),
        ]
        for s in (False, True)
    }
    short = replace(base, epochs=min(SHORT, base.epochs))
    brief = runs.after(short)
    some = MIXING_SEEDS if seeds > 1 else 1
    mixings = {
        (mixing, lr): row(brief, MIXED, True, some, lr, mixing=mixing)
        for lr in (MIXING_GRID if seeds > 1 else runs.grid)
        for mixing in ("after", "before")
    }
    cells = {
        (s, method, b): row(brief, method, s, 1, brief.best("gossip, ring graph", s), bits=b)
        for s in (True, False)
        for method in ("gossip, ring graph", "models, ring graph")
        for b in BITS
    }
    about = ran_on()
    d = runs.get("vanilla", False, tables[False][0].lr)["d"]
    return "\n".join(
        [
            "# An MLP on MNIST without a server",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, `{command}`, seeds 0 to {seeds - 1}. {about}.",
            "",
            f"784-{base.hidden}-10, d = {d}, N = {N}, batches of {BATCH} a worker, H = {H}, "
            "8-bit codes (max norm, buckets of 1024, unbiased), feedback off, plain SGD with its "
            "step size falling to 0 as a cosine. Step sizes are the best of "
            f"{runs.grid}, tried from the largest down for as long as it helps, by {HELD_OUT} "
            "held-out training images at seed 0: vanilla's its own, and one for all with local "
            f"steps, that of {TUNED[False]} (iid) and of {TUNED[True]} (label-sorted). At "
            "N = 8 a 2 x 4 torus and the hypercube are one graph under other labels; at N = 16 a "
            "2 x 8 torus is another, but a hypercube's degree of 4 sends more than a tenth of the "
            f"baseline. Corrected gossip is `Gossip(correction={CORRECTION:g})`: not one byte "
            "more. Baseline of bytes: a float32 ring all-reduce every step, 2 (N - 1)/N * 4d a "
            "rank a step, counted; all other bytes are frames that left a rank, measured (the "
            "rank that sent most).",
            "",
            f"## (a) Ring and gossip against vanilla, {base.epochs} epochs each",
            "",
            *main_table(tables),
            "",
            f"## (b) Mixing before or after the local steps: label-sorted, {short.epochs} epochs",
            "",
            f"{MIXED}, without correction. Held out: the mean over seeds, by which each takes its "
            "best step size. More of it, on quadratics over four graphs, in "
            "[RESULTS-gossip_floor](RESULTS-gossip_floor.md).",
            "",
            *mixing_table(mixings),
            "",
            f"## (c) Quantized differences against quantized models, {short.epochs} epochs",
            "",
            "Gossip over a ring graph without correction, seed 0; the mean model (in brackets the "
            "mean over workers); mixing after the local steps; the step size is that of 8-bit "
            "differences throughout.",
            "",
            *bits_table(cells),
            "",
            "## Goals",
            "",
            *verdict(tables, mixings),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed, one step size")
    parser.add_argument("--log", type=Path, default=Path("runs/mnist_mlp.jsonl"))
    parser.add_argument("--out", type=Path, help="by default bench/, of a quick run runs/")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    base = Setting("vanilla", epochs=1) if chosen.quick else Setting("vanilla")
    seeds, grid = (1, (0.3,)) if chosen.quick else (chosen.seeds, GRID)
    folder = "runs" if chosen.quick else "bench"
    command = "python bench/mnist_mlp.py --data DIR" + (" --quick" if chosen.quick else "")
    runs = Runs(chosen.log, load_mnist(chosen.data), base, grid)
    text = report(runs, base, seeds, command)
    (chosen.out or Path(folder) / "RESULTS-mnist_mlp.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
