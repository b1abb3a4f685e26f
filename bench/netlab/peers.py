"""Peers side by side on shaped links: one MLP of 1.86 M parameters on MNIST, 4 hosts.

    python bench/netlab/peers.py --data DIR                 # every cell, resumable
    python bench/netlab/peers.py --data DIR --quick         # few peers, one rate, one seed
    python bench/netlab/peers.py --data DIR --table         # what the cells so far say

A cell is one peer at one rate and seed, one JSON file in --runs; a cell that is there is not run
again. All peers have the same model, start, data, order, batch and seeds. Seconds count computing
and talking, not starting, tests and closing. Needs root.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lab import Lab, report
from peer_methods import KINDS, LR, PEERS
from torch import nn
from torch.nn.functional import cross_entropy

from thinwire import units
from thinwire.cli.idx import Digits, load_mnist
from thinwire.cli.output import machine, write_atomically
from thinwire.cli.signals import Interrupted, heeded
from thinwire.errors import ConfigError, ThinwireError

TARGET = 0.97
BATCH = 32
EVALUATE_EVERY = 32
RATES = ("50mbit", "100mbit", "1gbit")
TOO_LONG = 600.0
"""Seconds: what would take longer is counted unshaped, and timed shaped for a few steps."""
PROBE = 12
QUICK = (
    "DDP PowerSGD r1", "PostLocalSGDOptimizer H64", "torchft LocalSGD H64", "torchft DiLoCo H64",
    "thinwire signtopk H8", "thinwire ring8 H8",
)  # fmt: skip


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def work(said: dict[str, Any]) -> None:
    """One rank of one cell."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, N = dist.get_rank(), dist.get_world_size()
    digits = load_mnist(Path(said["data"]))
    model = network(said["seed"])
    module, optimizer, close = KINDS[said["peer"]["kind"]](model, said["peer"])
    order = torch.Generator().manual_seed(1000 * said["seed"] + rank)
    own = torch.arange(rank, len(digits.train_x), N)
    spent = computing = 0.0
    reached = None
    curve = []
    before = _interface()
    for step in range(1, said["steps"] + 1):
        batch = own[torch.randint(len(own), (BATCH,), generator=order)]
        x, y = digits.train_x[batch], digits.train_y[batch]
        if step == 3:
            dist.barrier()  # Kernels are loaded and buckets built: from here on seconds count.
            spent, computing = 0.0, 0.0
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = cross_entropy(module(x), y)
        loss.backward()
        computed = time.perf_counter()
        optimizer.step()
        spent += time.perf_counter() - began
        computing += computed - began
        if step % EVALUATE_EVERY == 0 or step == said["steps"]:
            right = torch.zeros(1)
            if rank == 0:
                right[0] = accuracy(model, digits)
            dist.broadcast(right, 0)
            sent = _interface() - before
            curve.append({"step": step, "seconds": spent, "sent": sent, "accuracy": float(right)})
            if float(right) >= TARGET and reached is None:
                reached = step
                if not said["to_the_end"]:
                    break
    facts = torch.tensor([spent, computing, float(_interface() - before)], dtype=torch.float64)
    dist.all_reduce(facts, dist.ReduceOp.SUM)
    if rank == 0:
        result = {
            "steps": step, "reached_at": reached, "seconds": spent, "curve": curve,
            "sent_all_hosts": float(facts[2]), "seconds_per_step": spent / max(1, step - 2),
            "forward_backward_share": float(facts[1] / facts[0]), "accuracy": curve[-1]["accuracy"],
        }  # fmt: skip
        Path(said["out"]).write_text(json.dumps(result))
    report(framed=0)
    close()
    del module, optimizer
    gc.collect()
    dist.barrier()
    os._exit(0)


def accuracy(model: nn.Module, digits: Digits) -> float:
    with torch.no_grad():
        return float((model(digits.test_x).argmax(1) == digits.test_y).double().mean())


def _interface() -> int:
    found = re.search(r"eth0:\s*(.*)", Path("/proc/net/dev").read_text())
    return 0 if found is None else int(found[1].split()[8])


def cell(said: argparse.Namespace, name: str, rate: str, seed: int) -> dict[str, Any]:
    """Runs one cell: whole where that takes ten minutes at most, else as a marked product."""
    peer = {**PEERS[name], "lr": said.lr}
    common = {"data": str(said.data), "seed": seed, "peer": peer}
    probe = run_in_lab(said.hosts, rate, {**common, "steps": PROBE, "to_the_end": True})
    expected = probe["seconds_per_step"] * said.steps
    facts = {"name": name, "rate": rate, "seed": seed, "hosts": said.hosts, "peer": peer,
             "batch": BATCH, "target": TARGET, "machine": machine()}  # fmt: skip
    whole = {**common, "steps": said.steps, "to_the_end": said.to_the_end}
    if expected <= TOO_LONG:
        return {**facts, "how": "whole", **run_in_lab(said.hosts, rate, whole)}
    counted = run_in_lab(said.hosts, "unlimited", whole)
    seconds = counted["steps"] * probe["seconds_per_step"]
    return {
        **facts, "how": "steps counted unshaped x seconds a step measured shaped", **counted,
        "seconds": seconds, "seconds_per_step": probe["seconds_per_step"],
    }  # fmt: skip


def run_in_lab(hosts: int, rate: str, job: dict[str, Any]) -> dict[str, Any]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        out = Path(folder) / "out.json"
        spec = Path(folder) / "job.json"
        spec.write_text(json.dumps({**job, "out": str(out)}))
        bits = None if rate == "unlimited" else units.rate(rate)
        with Lab(hosts, bits) as lab:
            lab.job([__file__, "--work", str(spec)], {}, torchrun=False)
        result: dict[str, Any] = json.loads(out.read_text())
        return result


def table(runs: Path) -> str:
    """Returns what the cells so far say, as a table in Markdown."""
    lines = ["| peer | rate | seed | to 97 % | s a step | MB sent, all hosts | accuracy | how |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for file in sorted(runs.glob("*.json")):
        c = json.loads(file.read_text())
        to = f"{c['seconds']:.1f} s" if c["reached_at"] else f"not in {c['steps']} steps"
        lines.append(
            f"| {c['name']} | {c['rate']} | {c['seed']} | {to} | {c['seconds_per_step']:.4f} "
            f"| {c['sent_all_hosts'] / 1e6:.1f} | {c['accuracy']:.2%} | {c['how']} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Peers side by side on shaped links.")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help="folder of MNIST's IDX files")
    parser.add_argument("--runs", type=Path, default=Path("bench/netlab/runs"))
    parser.add_argument("--peers", nargs="*", default=None, help="some of them, by name")
    parser.add_argument("--rates", nargs="*", default=None)
    parser.add_argument("--seeds", type=int, nargs="*", default=None)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4000, help="give up after so many")
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--to-the-end", action="store_true", help="go on after the target")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    said = parser.parse_args()
    if said.work:
        work(json.loads(Path(said.work).read_text()))
    try:
        with heeded():
            if said.table:
                print(table(said.runs))
                return 0
            if said.data is None:
                raise ConfigError("name MNIST's folder: --data ../shared/data/mnist")
            load_mnist(said.data)
            names = said.peers or (QUICK if said.quick else PEERS)
            unknown = [name for name in names if name not in PEERS]
            if unknown:
                raise ConfigError(f"no peer {unknown[0]!r}; choose from {', '.join(PEERS)}")
            if said.quick:
                said.steps = min(said.steps, 256)
            said.runs.mkdir(parents=True, exist_ok=True)
            for seed in said.seeds or ((0,) if said.quick else (0, 1, 2)):
                for rate in said.rates or (("100mbit",) if said.quick else RATES):
                    for name in names:
                        file = (
                            said.runs / f"{name.replace(' ', '_')}-{rate}-lr{said.lr}-{seed}.json"
                        )
                        if file.exists():
                            continue
                        print(f"{name}, {rate}, seed {seed} ...", flush=True)
                        result = cell(said, name, rate, seed)
                        write_atomically(file, json.dumps(result, indent=1).encode())
            print(table(said.runs))
    except Interrupted as stop:
        print(f"peers: {'; '.join(stop.notes)}; the cells so far are kept", file=sys.stderr)
        return stop.code
    except ThinwireError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
