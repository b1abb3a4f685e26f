"""A byte-level GPT by DDP, DiLoCo, SparseLoCo, Qsparse and QPRSGD at equal tokens.

    python recipes/gpt/run.py --all     # tunes each method, trains it with every seed: RESULTS.md
    python recipes/gpt/run.py --list    # what is done, and what is left to do
    python recipes/gpt/run.py --method qsparse-h4 --seed 1

Every run is one log in --out, and stops and goes on at any time: the same command does what is
left. Read the logs with `thinwire report runs/gpt/*.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from queue import Empty
from statistics import mean, stdev
from typing import Any

import torch
from gpt_cell import Cell, finished, run
from gpt_data import Text, load
from gpt_methods import METHODS, Method, grid, variants
from gpt_model import parameters

import thinwire as tw
from thinwire.cli.progress import Board, Watched, board
from thinwire.kernels import cpu
from thinwire.runs import ran_on

TUNED_ON = 4
"""Tuning sees one token in so many."""
Job = tuple[Cell, Path]


@dataclass(frozen=True)
class Plan:
    """What there is to run.

    Args:
        out: folder of logs.
        cell: what all runs share.
        seeds: how many each method is trained with.
        names: of the methods.
    """

    out: Path
    cell: Cell
    seeds: int
    names: tuple[str, ...]

    def tuning(self, name: str, lever: str, best: Method) -> list[Job]:
        """The runs of one lever of one method."""
        short = replace(self.cell, tokens=self.cell.tokens // TUNED_ON, seed=0, evaluations=4)
        return [
            (replace(short, method=m), self.out / "tuning" / f"{name}-{_digest(m)}.jsonl")
            for m in variants(best, lever)
        ]

    def tuned(self, name: str) -> Iterator[list[Job]]:
        """Yields the runs of each lever, the best so far of those before it; returns that."""
        best = METHODS[name]
        for lever in grid(name):
            jobs = self.tuning(name, lever, best)
            yield jobs
            ends = [(finished(log) or {}).get("bits_per_byte", float("inf")) for _, log in jobs]
            best = jobs[ends.index(min(ends))][0].method
        yield self.final(name, best)

    def final(self, name: str, best: Method) -> list[Job]:
        """The runs that count, one a seed."""
        log = f"{name}-{_digest(best)}"
        return [
            (replace(self.cell, method=best, seed=seed), self.out / f"{log}-seed{seed}.jsonl")
            for seed in range(self.seeds)
        ]


def _digest(method: Method) -> str:
    return "-".join(f"{v:g}" for v in vars(method).values() if not isinstance(v, str))


def work(plan: Plan, files: Sequence[Path], processes: int) -> dict[str, list[Job]]:
    """Runs what is left of the plan and returns the final runs of each method."""
    stages = {name: plan.tuned(name) for name in plan.names}
    waiting: dict[str, list[Job]] = {name: next(stage) for name, stage in stages.items()}
    ended: dict[str, list[Job]] = {}
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, board() as drawn:
        told = manager.Queue()
        with ProcessPoolExecutor(processes, spawn, _begin, (list(files), told)) as pool:
            futures = {n: [pool.submit(one, *job) for job in j] for n, j in waiting.items()}
            shown: dict[str, Watched] = {}
            while futures:
                live = [f for each in futures.values() for f in each if not f.done()]
                wait(live, timeout=1.0, return_when=FIRST_COMPLETED)
                _show(told, drawn, shown)
                for name in [n for n, each in futures.items() if all(f.done() for f in each)]:
                    for future in futures.pop(name):
                        future.result()
                    if (jobs := next(stages[name], None)) is None:
                        ended[name] = waiting[name]
                        continue
                    waiting[name] = jobs
                    futures[name] = [pool.submit(one, *job) for job in jobs]
    return ended


_text: Text
_told: Any


def _begin(files: list[Path], told: Any) -> None:
    global _text, _told
    torch.set_num_threads(1)
    cpu.warm()  # loading a kernel takes longer than many rounds: that belongs to no run's seconds
    _text, _told = load(files, Cell(METHODS["ddp"]).shape.context), told


def one(cell: Cell, log: Path) -> None:
    """Runs one cell in a process of the pool."""
    name, d = f"{cell.method.name} seed {cell.seed}", parameters(cell.shape)

    def tell(step: int, *rest: Any) -> None:
        if step % 5 == 0 or step == cell.steps:
            _told.put((name, cell.steps, d, step, *rest))

    result = run(cell, _text, log, tell, norms=True)
    _told.put((name, result["bits_per_byte"], result["ratio"]))


def _show(told: Any, drawn: Board, shown: dict[str, Watched]) -> None:
    while True:
        try:
            name, *rest = told.get_nowait()
        except Empty:
            return
        if len(rest) == 2:
            if name in shown:
                shown.pop(name).end()
            drawn.say(f"{name}: {rest[0]:.4f} bits per byte, {rest[1]:.0f}x fewer bytes")
            continue
        steps, d, *where = rest
        if name not in shown:
            shown[name] = drawn.add(name, steps, d)
        shown[name].tell(*where)


def listed(plan: Plan) -> list[str]:
    """Returns one line a method: what is done and what is next."""
    lines = []
    for name in plan.names:
        for jobs in plan.tuned(name):
            done = sum(finished(log) is not None for _, log in jobs)
            stage = "tuning" if "tuning" in jobs[0][1].parts else "final"
            if done < len(jobs) or stage == "final":
                lines.append(f"{name}: {stage}, {done} of {len(jobs)} runs done")
                break
    return lines


Found = dict[str, list[dict[str, Any]]]
"""What the final runs of each method came to, by its name."""


def results(ended: dict[str, list[Job]]) -> Found:
    """Returns what the final runs came to."""
    return {
        name: [result for _, log in jobs if (result := finished(log))]
        for name, jobs in ended.items()
    }


def table(ended: dict[str, list[Job]], found: Found) -> list[str]:
    """Returns the table of the final runs."""
    ddp = mean(r["bits_per_byte"] for r in found["ddp"]) if "ddp" in found else None
    lines = [
        "| method | settings | bits per byte | against DDP | uplink, all workers | fewer bytes |",
        "|---|---|---|---|---|---|",
    ]
    for name, results in found.items():
        method = ended[name][0][0].method
        named = ("kind", "H", "density")
        told = {
            k: v
            for k, v in vars(method).items()
            if k not in named and (k == "lr" or v != getattr(Method, k))
        }
        bits = [r["bits_per_byte"] for r in results]
        spread = f" +- {stdev(bits):.4f}" if len(bits) > 1 else ""
        gap = "-" if ddp is None or name == "ddp" else f"{100 * (mean(bits) / ddp - 1):+.1f} %"
        lines.append(
            f"| {method.name} | {', '.join(f'{k} {v:g}' for k, v in told.items())} | "
            f"{mean(bits):.4f}{spread} | {gap} | {mean(r['uplink'] for r in results) / 1e6:.2f} MB "
            f"| {mean(r['ratio'] for r in results):.0f}x |"
        )
    return lines


def verdict(found: Found) -> list[str]:
    """Returns the goals, what was measured beside each, and whether it was held."""
    mean_of = {
        name: {key: mean(r[key] for r in runs) for key in ("bits_per_byte", "uplink", "ratio")}
        for name, runs in found.items()
    }
    lines = ["| goal | measured | |", "|---|---|---|"]
    for name, ours in mean_of.items():
        kind, _, H = name.partition("-")
        if kind not in ("sparseloco", "qsparse"):
            continue
        if (peer := mean_of.get(f"diloco-{H}")) is not None:
            fewer = peer["uplink"] / ours["uplink"]
            lines.append(
                f"| {name}: better than DiLoCo at equal H, with >= 50x fewer bytes | "
                f"{ours['bits_per_byte']:.4f} and {peer['bits_per_byte']:.4f} bits per byte, "
                f"{fewer:.0f}x | "
                f"{_held(ours['bits_per_byte'] < peer['bits_per_byte'] and fewer >= 50)} |"
            )
        if (ddp := mean_of.get("ddp")) is not None:
            gap = 100 * (ours["bits_per_byte"] / ddp["bits_per_byte"] - 1)
            lines.append(
                f"| {name}: at most 5 % behind DDP, with >= 100x fewer bytes | {gap:+.1f} %, "
                f"{ours['ratio']:.0f}x | {_held(gap <= 5 and ours['ratio'] >= 100)} |"
            )
    return lines


def _held(held: bool) -> str:
    return "held" if held else "**MISSED**"


def publish(ended: dict[str, list[Job]], plan: Plan, command: str, out: Path) -> None:
    """Writes the table with what a reader must know of it."""
    c, found = plan.cell, results(ended)
    task = json.loads(next(iter(ended.values()))[0][1].read_text().splitlines()[0])["task"]
    text = [
        "# A byte-level GPT: bits per byte against bytes sent",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, `{command}`, seeds 0 to {plan.seeds - 1}, mean +- "
        f"standard deviation. {ran_on()}.",
        "",
        f"{task}. {c.tokens / 1e6:g} M tokens for every method, {c.workers} workers, local batch "
        f"{c.batch} windows of {c.shape.context} bytes, {c.steps} local steps, AdamW. Each method "
        f"tuned lever by lever on a {TUNED_ON}th of the tokens, seed 0, by the same held-out "
        "windows, and where messages are sparse within a 200th of DDP's bytes (12.5 %: a 100th). "
        "Uplink: framed bytes of all workers' own messages; DDP's and dense first steps': "
        "a float32 gradient each. Fewer bytes: against DDP's.",
        "",
        *table(ended, found),
        "",
        *verdict(found),
        "",
    ]
    out.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


def main(given: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="tune and train every method")
    what.add_argument("--list", action="store_true", help="say what is done and what is left")
    what.add_argument("--method", choices=METHODS, help="one run, settings as they stand")
    p.add_argument("--only", nargs="+", choices=METHODS, help="with --all: these methods")
    p.add_argument("--seed", type=int, default=0, help="of the one run")
    p.add_argument("--seeds", type=int, default=3, help="runs of each method")
    p.add_argument("--tokens", type=int, default=10_000_000, help="bytes that each run sees")
    p.add_argument("--data", type=Path, nargs="+", default=[], metavar="FILE", help="other text")
    p.add_argument("--out", type=Path, default=Path("runs/gpt"), help="folder of logs")
    p.add_argument("--results", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    p.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    c = p.parse_args(given)
    for name in ("tokens", "seeds", "processes"):
        if getattr(c, name) < 1:
            p.error(f"--{name} is {getattr(c, name)}; it must be at least 1")
    cell = Cell(METHODS["ddp"], tokens=c.tokens)
    plan = Plan(c.out, cell, c.seeds, tuple(c.only or METHODS))
    try:
        if c.list:
            print("\n".join(listed(plan)))
        elif c.all:
            ended = work(plan, c.data, c.processes)
            only = f" --only {' '.join(c.only)}" if c.only else ""
            publish(ended, plan, f"python recipes/gpt/run.py --all{only}", c.results)
        else:
            _one_run(replace(cell, method=METHODS[c.method], seed=c.seed), c)
    except tw.ThinwireError as error:
        raise SystemExit(f"gpt: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("gpt: stopped; the same command goes on from the snapshots") from None


def _one_run(cell: Cell, c: argparse.Namespace) -> None:
    torch.set_num_threads(c.processes)
    text = load(c.data, cell.shape.context)
    with board() as drawn:
        bar = drawn.add(cell.method.name, cell.steps, parameters(cell.shape))
        result = run(cell, text, c.out / f"{c.method}-seed{c.seed}.jsonl", bar.tell, norms=True)
    print(f"{cell.method.name}: {result['bits_per_byte']:.4f} bits per byte, "
          f"{result['ratio']:.0f}x fewer bytes than DDP")  # fmt: skip


if __name__ == "__main__":
    main()
