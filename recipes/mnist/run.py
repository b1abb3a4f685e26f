"""The first paper's convex experiments on MNIST: every figure and the tables, from one command.

    python recipes/mnist/run.py --data DIR              # all of it, five seeds
    python recipes/mnist/run.py --data DIR --quick      # the figures alone, one seed

Softmax regression, d = 7850, N = 15, b = 8, iid shards, one flat scope. Protocol (a): one shared
step size for every scheme, whose runs are the figures; (b): every scheme with its own best.
Each run is one log in --out, and a second call does what is left.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from queue import Empty
from typing import Any

import torch
from mnist_schemes import (
    DRAWN,
    FIGURES,
    SCHEMES,
    STEP_SIZES,
    Protocol,
    Scheme,
    file_of,
    protocol_a,
    protocol_b,
    runs_of,
)
from mnist_table import (
    MORE_SEEDS,
    Result,
    Row,
    reading,
    row,
    rows,
    settings_again,
    table,
    tuned,
    tuning,
    verdict,
)

import thinwire as tw
from thinwire.cli.idx import Digits, load_mnist
from thinwire.cli.mnist import LINK, Progress, train
from thinwire.cli.mnist_setting import D, Setting
from thinwire.cli.output import write_atomically
from thinwire.cli.progress import Board, Watched, board
from thinwire.kernels import cpu
from thinwire.runs import ran_on, read_runs

HERE = Path(__file__).parent
TASK = "MNIST, softmax regression"
Runs = dict[str, tuple[str, Setting]]
"""By the log's name: the method's, and what is run."""
_digits: Digits
_told: Any


def one(name: str, setting: Setting, folder: Path, whole: bool) -> None:
    """Trains one run, to its last step where a figure wants the whole curve; leaves one log."""
    log = folder / file_of(setting)
    about = {"task": TASK, "method": name, "parameters": D}
    with tw.RunLog("mnist", setting.seed, vars(setting), log, **about) as lines:
        met: list[tw.LocalSGD] = []

        def meet(optimizer: tw.LocalSGD, step: int) -> None:
            met.append(optimizer)
            tw.Measured(optimizer, lines, norms=True, step=step)

        def tell(p: Progress) -> None:
            lines.write("evaluation", **vars(p))
            said, sent, _ = met[0].stats.totals()
            where = p.step, p.round, p.loss, said, sent
            _told.put((log.name, f"{name} seed {setting.seed}", *where))

        train(replace(setting, target_error=0.0) if whole else setting, _digits, tell, meet=meet)
    _told.put((log.name, name))


@functools.cache
def cost_to(target: float, log: Path) -> Result:
    """Returns what a run had cost when three evaluations in a row averaged at most the target."""
    (run,), _ = read_runs([log])
    errors = [1.0, 1.0]
    for line in run.evaluations:
        errors.append(line["test_error"])
        if sum(errors[-3:]) / 3 <= target:
            return {**line, "reached": True}
    return {**run.evaluations[-1], "reached": False}


def result_of(setting: Setting, folder: Path) -> Result:
    """Returns what the run of a setting had cost at test error 0.10."""
    return cost_to(0.10, folder / file_of(setting))


def finished(log: Path) -> bool:
    """Whether a run's log says that it ended."""
    if not log.is_file():
        return False
    last = log.read_text(encoding="utf-8").rpartition("\n")[0].rpartition("\n")[2]
    return '"done"' in last


def measure(c: argparse.Namespace) -> None:
    """Does what is left of the runs: the figures', the tables', those of the step sizes chosen."""
    seeds = range(c.seeds)

    def named(protocol: Protocol, schemes: Sequence[Scheme], seeds: range) -> Runs:
        return {file_of(s): (n, s) for n, s in runs_of(protocol, schemes, seeds, c.steps)}

    drawn = named(protocol_a, DRAWN, seeds)
    if c.quick:
        work(c, drawn, set(drawn))
        return
    tables = named(protocol_a, SCHEMES, seeds) | named(protocol_b, SCHEMES, tuning(seeds))
    work(c, drawn | tables, set(drawn))

    def chosen(scheme: Scheme) -> list[Setting]:
        return [tuned(scheme, seeds, c.steps, lambda s: result_of(s, c.out))]

    work(c, named(chosen, SCHEMES, seeds), set(drawn))
    again = too_close(c, found_of(c)).values()
    more = [(scheme.name, s) for pairs in again for scheme, s in pairs]
    files = {file_of(run): (name, run) for name, s in more for run in by_seeds(s, MORE_SEEDS)}
    work(c, files, set(drawn))


def found_of(c: argparse.Namespace) -> dict[str, list[Row]]:
    """Returns the rows of both protocols, whose runs are done."""
    return rows(SCHEMES, range(c.seeds), c.steps, lambda s: result_of(s, c.out))


def too_close(
    c: argparse.Namespace, found: dict[str, list[Row]]
) -> dict[str, list[tuple[Scheme, Setting]]]:
    """Returns, by protocol, what is to be run by more seeds."""
    return settings_again(found, SCHEMES, range(c.seeds), c.steps, lambda s: result_of(s, c.out))


def by_seeds(setting: Setting, n: int) -> list[Setting]:
    """Returns the setting for each of the first n seeds."""
    return [replace(setting, seed=seed) for seed in range(n)]


def work(c: argparse.Namespace, runs: Runs, drawn: set[str]) -> None:
    """Does those of the runs that have no whole log."""
    todo = {file: run for file, run in runs.items() if not finished(c.out / file)}
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, board() as shown:
        told, bars = manager.Queue(), dict[str, Watched]()
        with ProcessPoolExecutor(c.processes, spawn, _begin, (c.data, told)) as pool:
            left = {pool.submit(one, n, s, c.out, f in drawn) for f, (n, s) in todo.items()}
            while left:
                done, left = wait(left, timeout=1.0, return_when=FIRST_COMPLETED)
                _show(told, shown, bars, c.steps)
                for future in done:
                    future.result()
                if done:
                    shown.say(f"{len(runs) - len(left)} of {len(runs)} runs done")


def _show(told: Any, shown: Board, bars: dict[str, Watched], steps: int) -> None:
    while True:
        try:
            file, name, *numbers = told.get_nowait()
        except Empty:
            return
        if not numbers:
            if file in bars:
                bars.pop(file).end()
            continue
        if file not in bars:
            bars[file] = shown.add(name, steps, D)
        bars[file].tell(*numbers)


def _begin(data: Path, told: Any) -> None:
    global _digits, _told
    torch.set_num_threads(1)
    cpu.warm()  # loading a kernel takes longer than many rounds: that belongs to no run's seconds
    _digits, _told = load_mnist(data), told


def draw(c: argparse.Namespace) -> None:
    """Draws each figure from the logs, and one page of them all."""
    from thinwire.cli.report_figures import picture
    from thinwire.cli.report_page import page
    from thinwire.cli.report_series import tasks_of

    (c.results.parent / "figures").mkdir(parents=True, exist_ok=True)
    by_name = {s.name: s for s in SCHEMES}
    for figure, names in FIGURES.items():
        chosen = [by_name[name] for name in names]
        runs = runs_of(protocol_a, chosen, range(c.seeds), c.steps)
        found, notes = read_runs([c.out / file_of(setting) for _, setting in runs])
        tasks = tasks_of(found)
        write_atomically(c.results.parent / "figures" / f"{figure}.png", picture(tasks))
        write_atomically(c.out / f"{figure}.html", page(tasks, notes).encode())


def publish(c: argparse.Namespace) -> None:
    """Writes RESULTS.md: both tables, the goals, the figures."""
    seeds = range(c.seeds)
    found = found_of(c)
    more = {
        protocol: [row(s, at, range(MORE_SEEDS), lambda s: result_of(s, c.out)) for s, at in pairs]
        for protocol, pairs in too_close(c, found).items()
    }
    text = [
        "# MNIST softmax regression: the first paper's convex experiments",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, `python recipes/mnist/run.py --data DIR`, seeds "
        f"{seeds.start} to {seeds.stop - 1}, mean +- standard deviation. {ran_on()}.",
        "",
        "d = 7850, N = 15, b = 8, iid shards, l2 term 1/n, one flat scope, step size "
        "c a / (a + t). The target is reached when the mean of three evaluations in a row, one "
        "every max(8, H) steps (8 where each worker speaks at gaps of its own), is at most 0.10. "
        "Uplink, all workers together, in the paper's fixed-width accounting and as framed "
        "(`len(frame)`). QTopK says 4 bits a value. Asynchronous: each worker's gaps are drawn "
        "from {1, ..., H}.",
        "",
        "## (a) one shared step size: c = 0.3, a = 1570 for every scheme",
        "",
        *table(found["a"]),
        "",
        f"## (b) every scheme with its own best c of {STEP_SIZES} and a = dH/40",
        "",
        f"The best by bits over {len(tuning(seeds))} seeds; measured over all.",
        "",
        *table(found["b"]),
        "",
        "## Goals",
        "",
        f"A goal within two standard errors of what {len(seeds)} seeds measured, on either side, "
        f"is measured again by {MORE_SEEDS}, and those decide.",
        "",
        *verdict(found, more),
        "",
        "## Beside the paper",
        "",
        *reading(found),
        "",
        "## Figures",
        "",
        "Protocol (a), bands over all seeds. The busiest link is the master's, which says and "
        f"hears one after the other, at {LINK / 1e6:g} Mbit/s; its bytes are measured, its "
        "seconds are their quotient, no computation in it.",
        "",
        *(f"![{name}](figures/{name}.png)" for name in FIGURES),
        "",
    ]
    c.results.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))
    if "MISSED" in "\n".join(text):
        raise SystemExit("mnist: a goal is missed; see the table")


def main(given: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", type=Path, required=True, help="folder of MNIST's four IDX files")
    p.add_argument("--out", type=Path, default=Path("runs/mnist"), help="folder of logs")
    p.add_argument("--results", type=Path, default=HERE / "RESULTS.md", help="the tables")
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--steps", type=int, default=2500, help="where a run gives up")
    p.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    p.add_argument("--quick", action="store_true", help="figures alone, one seed, 400 steps")
    c = p.parse_args(given)
    if c.quick:
        c.seeds, c.steps = 1, min(c.steps, 400)
    for name in ("seeds", "steps", "processes"):
        if getattr(c, name) < 1:
            p.error(f"--{name} is {getattr(c, name)}; it must be at least 1")
    try:
        load_mnist(c.data)
        c.out.mkdir(parents=True, exist_ok=True)
        measure(c)
        draw(c)
        if not c.quick:
            publish(c)
    except tw.ThinwireError as error:
        raise SystemExit(f"mnist: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("mnist: stopped; the same command does what is left") from None


if __name__ == "__main__":
    main()
