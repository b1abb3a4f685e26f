"""Peers side by side on shaped links, 4 hosts: an MLP on MNIST, and a GPT on bytes.

    python bench/netlab/peers.py --data DIR --list     # what would be run, and how long it takes
    python bench/netlab/peers.py --data DIR --all      # probes, then whole runs, then RESULTS.md
    python bench/netlab/peers.py --data DIR --quick    # some peers, a few steps: under 5 minutes
    python bench/netlab/peers.py --data DIR --quality  # how good each becomes, in lock-step

First `tune.py` counts every peer's steps. A probe is a few steps and rounds of a peer on links of a
rate; with them each peer's settings are chosen. Where a whole run takes ten minutes at most, it is
made; elsewhere steps x seconds a step stands in its place, marked so. The quick form has fixed
settings: it needs no counting and no probes, and is no part of RESULTS.md. Each cell is a file in
--runs, and is not run again, unless it failed: the next call tries that again. Needs root.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import peer_quick
import torch
from jobs import JobFailed
from lab import ABOUT, Lab
from peer_costs import RATES, Cost, Peer, choose, counted, nominal, probed, shape
from peer_methods import PEERS
from peer_results import write
from tasks import task
from tune import stem, trained

from thinwire import units
from thinwire.cli.output import machine, write_atomically
from thinwire.cli.signals import ended
from thinwire.errors import ConfigError, ThinwireError

HOSTS = 4
TOO_LONG = 600.0
"""Seconds of a whole run; a longer one is a product."""
START = 20.0
"""Seconds until a job's processes have imported, loaded data and warmed up."""
JUDGING = 6.0
"""Seconds of judging in a whole run."""
SEEDS = (0, 1, 2)
Cell = dict[str, Any]


class Bench:
    """The cells of one call, those there are and those to be run."""

    def __init__(self, said: argparse.Namespace, what: str) -> None:
        self.said, self.what = said, what
        self.tuning = counted(said.runs / "tuning", what)
        self.names = said.peers or (peer_quick.NAMES if said.quick else tuple(PEERS))
        self.rates = said.rates or (("100mbit",) if said.quick else RATES)
        self.broken: set[str] = set()
        if not self.tuning and not said.quick:
            raise ConfigError(
                f"{said.runs / 'tuning'} has no counted steps; first run: python "
                f"bench/netlab/tune.py --task {what} --data DIR --out {said.runs / 'tuning'}"
            )

    @property
    def log(self) -> Path:
        """What the jobs' processes say: torchft says much."""
        path: Path = self.said.runs / "jobs.log"
        return path

    @property
    def cells(self) -> list[Cell]:
        """Those that are done."""
        found = sorted(self.said.runs.glob(f"{self.what}-*.json"))
        return [json.loads(file.read_text()) for file in found]

    def probes(self, rate: str) -> list[Cell]:
        """Returns a probe of each peer, and of the model with no communication at all."""
        inner = {"lr": 0.01, "beta": 0.9}
        base = {"name": "no communication", "kind": "alone", "family": "alone", **inner}
        found = [self._cell("probe", base, rate, 0, 48)]
        for name in self.names:
            shapes: list[Peer] = []
            for counted_cell in self.tuning:
                settings = counted_cell["peer"]
                if settings["family"] != PEERS[name]["family"]:
                    continue
                peer = {**settings, **PEERS[name], "name": name, **inner}
                if "H" in peer:
                    peer["H"] = 8
                if "outer_lr" in peer:
                    peer |= {"outer_lr": 0.7, "momentum": 0.9}
                if peer not in shapes:
                    shapes.append(peer)
            for peer in shapes:
                steps = {"thinwire": 64}.get(peer["kind"], 24 if "H" in peer else 8)
                found.append(self._cell("probe", peer, rate, 0, steps))
        return found

    def whole(self, rate: str) -> list[Cell]:
        """Returns the whole runs at a rate, the fastest peers first."""
        best = [b for b in (self.best(name, rate) for name in self.names) if b is not None]
        cells = []
        for peer, seconds, _, _ in sorted(best, key=lambda b: b[1]):
            if seconds <= TOO_LONG:
                for seed in self.said.seeds or SEEDS:
                    cells.append(self._cell("whole", peer, rate, seed, 1536, stop=True))
        return cells

    def quick(self, rate: str) -> list[Cell]:
        """Returns a few steps of each peer, with fixed settings."""
        return [
            self._cell("quick", peer, rate, seed, steps)
            for peer, steps in peer_quick.peers(self.what, self.names)
            for seed in self.said.seeds or SEEDS[:1]
        ]

    def quality(self) -> None:
        """Trains each peer's chosen settings for the task's steps, in lock-step; no root."""
        what = task(self.what, self.said.data)
        found = [self.best(name, rate) for name in self.names for rate in self.rates]
        for key in dict.fromkeys(best[3] for best in found if best):
            for seed in self.said.seeds or SEEDS:
                peer = json.loads(key)
                file = self.said.runs / "tuning" / f"quality-{stem(what, peer, seed)}.json"
                if not file.exists():
                    ended_at = trained(what, peer, seed)
                    print(f"{ended_at['score']:.4f}", seed, key, flush=True)
                    write_atomically(file, json.dumps(ended_at).encode())

    def best(self, name: str, rate: str) -> tuple[Peer, float, list[int], str] | None:
        """Returns a peer's best settings at a rate; see `choose`."""
        return choose(name, rate, self.tuning, probed(self.cells))

    def seconds(self, cells: list[Cell]) -> float:
        """Returns what these cells are predicted to take, those that are done left out."""
        left = self.left(cells)
        costs = probed(self.cells)
        total = START if left else 0.0
        for cell in left:
            peer, rate = cell["peer"], cell["rate"]
            if peer["kind"] == "alone":
                continue
            known = costs.get((self.what, rate, *shape(peer))) or nominal(peer, rate)
            cost = Cost(max(known.local, 0.0), known.round)
            steps = cell["steps"]
            if cell["how"] == "whole" and (found := self.best(peer["name"], rate)):
                steps = min(steps, fmean(found[2]))
            judging = JUDGING if cell["how"] == "whole" else 1.0
            total += steps * cost.step(peer) + judging
        return total

    def left(self, cells: list[Cell]) -> list[Cell]:
        """Returns those to be run: they are not there, or failed in an earlier call."""

        def done(file: Path) -> bool:
            return file.exists() and "failed" not in json.loads(file.read_text())

        return [c for c in cells if c["file"] not in self.broken and not done(Path(c["file"]))]

    def run(self, cells: list[Cell], rate: str) -> None:
        """Runs the cells that are left, in one job; what breaks is marked, for the next call.

        Raises:
            ThinwireError: this machine makes no lab; nothing is marked.
        """
        while left := self.left(cells):
            limit = 120 + 4 * self.seconds(left)
            print(f"{self.what}, {rate}: {len(left)} cells, about {self.seconds(left):.0f} s ...",
                  flush=True)  # fmt: skip
            began = time.monotonic()
            try:
                self._job(left, rate, limit)
                print(f"  {time.monotonic() - began:.0f} s", flush=True)
            except JobFailed as error:
                still = self.left(left)
                if not still:
                    continue
                broken = still[0]
                self.broken.add(broken["file"])
                failed = {**broken, "task": self.what, "failed": str(error)}
                write_atomically(Path(broken["file"]), json.dumps(failed).encode())
                print(f"  {broken['peer']['name']} failed: {error}; see {self.log}", flush=True)

    def _job(self, cells: list[Cell], rate: str, limit: float) -> None:
        data = None if self.said.data is None else str(self.said.data.resolve())
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            spec = Path(folder) / "job.json"
            spec.write_text(json.dumps({"task": self.what, "data": data, "cells": cells}))
            with Lab(HOSTS, units.rate(rate)) as lab:
                worker = str(Path(__file__).with_name("peer_work.py"))
                lab.job([worker, str(spec)], {}, torchrun=False, limit=limit, log=self.log)

    def _cell(
        self, how: str, peer: Peer, rate: str, seed: int, steps: int, stop: bool = False
    ) -> Cell:
        said = json.dumps([peer, steps], sort_keys=True)
        digest = hashlib.sha256(said.encode()).hexdigest()[:8]
        name = peer["name"].replace(" ", "_")
        file = self.said.runs / f"{self.what}-{how}-{name}-{rate}-{seed}-{digest}.json"
        return {
            "how": how, "peer": peer, "rate": rate, "seed": seed, "steps": steps,
            "judge": how != "probe" and peer["kind"] != "alone", "stop": stop,
            "file": str(file.resolve()), "machine": machine(), "lab": ABOUT,
        }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Peers side by side on shaped links.")
    parser.add_argument("--data", type=Path, help="folder of MNIST's IDX files")
    parser.add_argument("--runs", type=Path, default=Path("runs/netlab"))
    parser.add_argument("--tasks", nargs="*", choices=("mlp", "gpt"), default=["mlp"])
    parser.add_argument("--peers", nargs="*", help="some of them, by name")
    parser.add_argument("--rates", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--results", type=Path, help="where --all writes; RESULTS.md beside this")
    what = parser.add_mutually_exclusive_group(required=True)
    for option in ("all", "quick", "list", "quality"):
        what.add_argument(f"--{option}", action="store_true")
    said = parser.parse_args()

    def work() -> None:
        unknown = [name for name in said.peers or () if name not in PEERS]
        if unknown:
            raise ConfigError(f"no peer {unknown[0]!r}; choose from {', '.join(PEERS)}")
        for rate in said.rates or ():
            units.rate(rate)
        for name in said.tasks:
            # Data that are missing are said here, in one sentence, and not by every rank.
            next(task(name, said.data).batches(0, 0, HOSTS))
        if said.quick:
            said.runs.mkdir(parents=True, exist_ok=True)
        # What is missing of any task is said before the first is run.
        for bench in [Bench(said, name) for name in said.tasks]:
            _task(bench, said)
        if said.all:
            target = said.results or Path(__file__).with_name("RESULTS.md")
            write(target, said.runs)
            print(f"written: {target}")

    return ended("peers", work, "the cells so far are kept")


def _task(bench: Bench, said: argparse.Namespace) -> None:
    if said.quality:
        torch.set_num_threads(1)
        bench.quality()
        return
    if said.quick:
        _quick(bench)
        return
    total = 0.0
    for rate in bench.rates:
        for make in (bench.probes, bench.whole):
            cells = make(rate)
            total += bench.seconds(cells)
            if not said.list:
                bench.run(cells, rate)
                continue
            for cell in cells:
                peer = {k: v for k, v in cell["peer"].items() if k not in ("kind", "family")}
                print(f"{cell['how']:6} {rate:8} seed {cell['seed']} {json.dumps(peer)}")
            print(f"       {rate}: {len(cells)} cells, about {bench.seconds(cells):.0f} s\n")
    if said.list:
        print(f"{bench.what}: about {total / 60:.0f} min")


def _quick(bench: Bench) -> None:
    failed = 0
    for rate in bench.rates:
        cells = bench.quick(rate)
        bench.run(cells, rate)
        found = [json.loads(Path(cell["file"]).read_text()) for cell in cells]
        failed += sum("failed" in cell for cell in found)
        print(f"\n{bench.what}, {rate}, {HOSTS} hosts\n\n{peer_quick.table(bench.what, found)}\n")
    if failed:
        raise ThinwireError(f"{failed} cells failed; {bench.log} has what their processes said")


if __name__ == "__main__":
    sys.exit(main())
