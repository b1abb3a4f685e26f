"""An MLP on MNIST without a server: accuracy and bytes of QPRSGD's ring and gossip.

784-128-10, ReLU, plain SGD, N = 8 workers with batches of 16, step size falling linearly to 0.
Vanilla is one exact mean of gradients a step; its bytes are those of a float32 ring all-reduce,
2 (N - 1)/N * 4d a rank a step. All others take H = 5 local steps a round in lock-step, through
`LocalSGD`, and their bytes are the frames that left a rank, measured. Shards are iid, or sorted by
label: worker r holds about 1.25 neighbouring digits. Each column has its own step size, the best of
a grid on 5000 images held out of the training set, at seed 0; accuracies are on the test set.

    python bench/mnist_mlp.py --data DIR
    python bench/mnist_mlp.py --data DIR --quick

Each run is one line of `--log`; a second call goes on where the first was stopped. The table is
written to `--out` with date, machine, versions and seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from thinwire.cli.idx import Digits, load_mnist
from thinwire.cli.output import machine
from thinwire.compress import QSGD
from thinwire.errors import NonFiniteError
from thinwire.exchange import DPSGD, Exchange, Gossip, Ring
from thinwire.shell import LocalSGD, Seat
from thinwire.simulate import LockStep
from thinwire.topology import Hypercube, RingGraph, Topology, Torus

N, BATCH, H, HELD_OUT = 8, 16, 5, 5000
GRID = (0.1, 0.2, 0.3)
BITS = (8, 4, 3, 2)
GRAPHS: dict[str, Topology] = {
    "ring graph": RingGraph(),
    "hypercube": Hypercube(),
    "torus": Torus(),
}
MAIN = ("ring", "two-phase", "gossip, ring graph", "gossip, hypercube", "gossip, torus")
TUNED_AS = {"ring": "two-phase", "gossip, torus": "gossip, hypercube"}
"""Rows that take the step size of another: the same method, but for rounding or labels."""

PREDICTED = {
    "ring": 95.0,
    "two-phase": 95.0,
    "gossip, ring graph": 94.3,
    "gossip, hypercube": 91.4,
    "gossip, torus": 91.4,
}


@dataclass(frozen=True)
class Setting:
    """One run.

    Args:
        method: "vanilla", one of `MAIN`, or "models, ring graph" for whole quantized models.
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
    epochs: int = 4
    hidden: int = 128

    @property
    def exchange(self) -> Exchange:
        """What the method exchanges."""
        if self.method in ("ring", "two-phase"):
            return Ring(form=self.method)  # type: ignore[arg-type]
        kind, _, graph = self.method.partition(", ")
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
        start = [first.weight, first.bias, second.weight, second.bias]
        self.start = [p.detach() for p in start]
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

    def gradients(self, stack: list[Tensor], pick: Tensor) -> tuple[Tensor, ...]:
        """Returns each worker's gradients, stacked, on its own batch; pick is (N, BATCH)."""
        logits = network(stack, self.x[pick])
        each = nn.functional.cross_entropy(logits.flatten(0, 1), self.y[pick].flatten())
        return torch.autograd.grad(each * N, stack)

    def accuracy(self, params: list[Tensor], held: bool = False) -> float:
        """Returns the right percentage of the test images, or of those held out."""
        x, y = (self.x[self.held], self.y[self.held]) if held else (self.test_x, self.test_y)
        with torch.no_grad():
            right = network([p.unsqueeze(0) for p in params], x.unsqueeze(0))[0].argmax(1) == y
        return 100 * float(right.double().mean())


def network(stack: list[Tensor], x: Tensor) -> Tensor:
    w1, b1, w2, b2 = stack
    hidden = torch.baddbmm(b1.unsqueeze(1), x, w1.transpose(1, 2)).relu()
    return torch.baddbmm(b2.unsqueeze(1), hidden, w2.transpose(1, 2))


def train(setting: Setting, data: Digits) -> dict[str, Any]:
    """Runs one setting and returns its accuracies and its bytes."""
    began, task = time.monotonic(), Task(setting, data)
    sent, diverged = 0.0, False
    stack = [p.expand(N, *p.shape).clone().requires_grad_() for p in task.start]
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
    middle = [p.detach().mean(0) for p in stack]
    spread = sum(
        float((p.detach() - m).double().square().sum()) / N
        for p, m in zip(stack, middle, strict=True)
    )
    size = sum(float(m.double().square().sum()) for m in middle)
    workers = [task.accuracy([p.detach()[rank] for p in stack]) for rank in range(N)]
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
    for step, pick in each_batch(task):
        means = [g.mean(0) for g in task.gradients(stack, pick)]
        with torch.no_grad():
            for p, g in zip(stack, means, strict=True):
                p.sub_(task.setting.lr * (1 - step / steps) * g)


def worker(task: Task, stack: list[Tensor], rank: int) -> LocalSGD:
    s = task.setting
    params = [nn.Parameter(p.detach()[rank]) for p in stack]
    operator = QSGD(bits=s.bits, norm="max", scale="none", bucket=1024)
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
        gradients = task.gradients(stack, pick)
        for rank, w in enumerate(cluster.workers):
            w.inner.param_groups[0]["lr"] = task.setting.lr * (1 - step / steps)
            for p, g in zip(w.inner.param_groups[0]["params"], gradients, strict=True):
                p.grad = g[rank]
        cluster.step()
    if steps % H:
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
        method = TUNED_AS.get(method, method)

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


def mixing_table(rows: list[tuple[bool, str, Row]]) -> list[str]:
    lines = [
        "| shards | graph | mixing | lr | mean model, each seed | mean | mean over workers |",
        "|---|---|---|---|---|---|---|",
    ]
    for label_sorted, mixing, r in rows:
        graph = r.method.partition(", ")[2]
        lines.append(
            f"| {shards(label_sorted)} | {graph} | {mixing} | {r.lr:g} | {listed(r.accuracies)} | "
            f"{r.accuracy:.2f} | {r.workers:.2f} |"
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


def verdict(tables: dict[bool, list[Row]], mixings: list[tuple[bool, str, Row]]) -> list[str]:
    lines = ["| shards | claim | goal | measured | |", "|---|---|---|---|---|"]

    def add(where: str, claim: str, goal: str, measured: str, met: bool) -> None:
        lines.append(f"| {where} | {claim} | {goal} | {measured} | {'met' if met else 'MISSED'} |")

    for label_sorted, (base, *others) in tables.items():
        where = shards(label_sorted)
        got = base.accuracy
        add(where, "vanilla's accuracy", "at least 97.5 %", f"{got:.2f} %", got >= 97.5)
        for r in others:
            below = base.accuracy - r.accuracy
            add(where, f"{r.method}: below vanilla", "at most 0.5", f"{below:.2f}", below <= 0.5)
            add(
                where,
                f"{r.method}: fewer bytes",
                f"at least 90 % ({PREDICTED[r.method]:.1f} predicted)",
                f"{r.reduction:.1f} %",
                r.reduction >= 90,
            )
    for method in dict.fromkeys(r.method for s, _, r in mixings if s):
        after, before = (
            next(r for s, m, r in mixings if s and m == mixing and r.method == method)
            for mixing in ("after", "before")
        )
        ahead = [a - b for a, b in zip(after.accuracies, before.accuracies, strict=True)]
        error = stdev(ahead) / len(ahead) ** 0.5 if len(ahead) > 1 else 0.0
        add(
            "label-sorted",
            f"{method}: mixing after the local steps (the default) is the winner",
            "above before",
            f"{after.accuracy:.2f} against {before.accuracy:.2f}; "
            f"{mean(ahead):+.2f} +- {error:.2f} (standard error over seeds)",
            mean(ahead) > 0,
        )
        if mean(ahead) > 0 and mean(ahead) < 2 * error:
            lines[-1] = lines[-1].removesuffix("met |") + "ahead, within the spread |"
    return lines


def report(runs: Runs, base: Setting, seeds: int, command: str) -> str:
    tables = {
        s: [row(runs, method, s, seeds) for method in ("vanilla", *MAIN)] for s in (False, True)
    }
    mixings = [
        (True, mixing, row(runs, "gossip, ring graph", True, seeds, mixing=mixing))
        for mixing in ("after", "before")
    ]
    cells = {
        (s, method, b): row(runs, method, s, 1, runs.best("gossip, ring graph", s), bits=b)
        for s in (True, False)
        for method in ("gossip, ring graph", "models, ring graph")
        for b in BITS
    }
    about = ", ".join(f"{k} {v}" for k, v in machine().items())
    d = runs.get("vanilla", False, tables[False][0].lr)["d"]
    return "\n".join(
        [
            "# An MLP on MNIST without a server",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, `{command}`, seeds 0 to {seeds - 1}. {about}.",
            "",
            f"784-{base.hidden}-10, d = {d}, N = {N}, batches of {BATCH} a worker, H = {H}, "
            f"{base.epochs} epochs, 8-bit codes (max norm, buckets of 1024, unbiased), feedback "
            "off, plain SGD with its step size falling linearly to 0. Every column takes the best "
            f"step size of {runs.grid}, tried from the largest down for as long as it helps, by "
            "5000 held-out training images at seed 0 (ring takes "
            "two-phase's, torus the hypercube's: at N = 8 they are the same graph, other labels). "
            "Baseline of bytes: a float32 ring all-reduce every step, 2 (N - 1)/N * 4d a rank a "
            "step, counted; all other bytes are frames that left a rank, measured (the rank that "
            "sent most).",
            "",
            "## Ring and gossip against vanilla, at equal epochs",
            "",
            *main_table(tables),
            "",
            "## Mixing before or after the local steps",
            "",
            *mixing_table(mixings),
            "",
            "## Quantized differences against quantized models, gossip over a ring graph",
            "",
            "Seed 0; the mean model (in brackets the mean over workers); mixing after the local "
            "steps; the step size is that of 8-bit differences throughout.",
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
