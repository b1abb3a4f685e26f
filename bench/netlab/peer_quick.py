"""The quick form of bench/netlab/peers.py: a few steps of some peers, with fixed settings.

They are those that do best at 100 Mbit/s by what `tune.py` counted, and need neither its files nor
probes. At another rate they run as well, but are not that rate's best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

from peer_costs import SKIPPED, Peer, cost
from peer_methods import PEERS
from peer_results import settings

NAMES = ("DDP", "DDP PowerSGD", "PostLocalSGDOptimizer", "torchft LocalSGD", "torchft DiLoCo",
         "thinwire SignTopK", "thinwire ring 8 bits")  # fmt: skip
STEPS = {"mlp": 256, "gpt": 128}
FEW = 16
"""Steps of DDP, plain or in fp16: one takes a second at 100 Mbit/s."""
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "mlp": {
        "no communication": {"lr": 0.1},
        "DDP": {"lr": 0.2},
        "DDP fp16": {"lr": 0.2},
        "DDP PowerSGD": {"rank": 1, "lr": 0.1},
        "DDP post-local SGD": {"H": 256, "lr": 0.05},
        "PostLocalSGDOptimizer": {"H": 256, "lr": 0.05},
        "torchft LocalSGD": {"H": 256, "lr": 0.05},
        "torchft DiLoCo": {"H": 128, "outer_lr": 0.9, "momentum": 0.5, "lr": 0.05},
        "thinwire SignTopK": {"H": 16, "density": 0.03, "lr": 0.1},
        "thinwire TopK 4 bits": {"H": 8, "density": 0.01, "lr": 0.1},
        "thinwire ring 8 bits": {"H": 32, "lr": 0.1},
        "thinwire gossip 8 bits": {"H": 16, "lr": 0.1},
    },
    "gpt": {
        "no communication": {"lr": 0.001},
        "DDP": {"lr": 0.0005},
        "DDP fp16": {"lr": 0.0005},
        "DDP PowerSGD": {"rank": 4, "lr": 0.001},
        "DDP post-local SGD": {"H": 32, "lr": 0.0005},
        "PostLocalSGDOptimizer": {"H": 32, "lr": 0.0005},
        "torchft LocalSGD": {"H": 32, "lr": 0.0005},
        "torchft DiLoCo": {"H": 64, "outer_lr": 0.9, "momentum": 0.5, "lr": 0.0005},
        "thinwire SignTopK": {"H": 8, "density": 0.03, "lr": 0.001},
        "thinwire TopK 4 bits": {"H": 8, "density": 0.01, "lr": 0.002},
        "thinwire ring 8 bits": {"H": 16, "lr": 0.0005},
        "thinwire gossip 8 bits": {"H": 16, "lr": 0.0005},
    },
}
BARE = {"kind": "alone", "family": "alone"}
CALLED = {"thinwire": "method", "torchft": "algorithm"}
"""What `peer_methods.py` calls a family of these kinds."""
SCORED: dict[str, Callable[[float], str]] = {
    "mlp": lambda score: f"{score:.1%} of the test set",
    "gpt": lambda score: f"{-score:.2f} bits a byte",
}


def peers(task: str, names: Sequence[str]) -> Iterator[tuple[Peer, int]]:
    """Yields each peer's settings and steps, and those of the model with no communication first."""
    for name in ("no communication", *names):
        kind = PEERS.get(name, BARE)
        peer = {**kind, **SETTINGS[task][name], "beta": 0.9, "name": name}
        if kind["kind"] in CALLED:
            peer[CALLED[kind["kind"]]] = kind["family"]
        yield peer, FEW if kind["family"] == "ddp" else STEPS[task]


def table(task: str, cells: Sequence[dict[str, Any]]) -> str:
    """Returns what quick cells of a rate gave, in Markdown, and below which of them failed."""
    there = [cell for cell in cells if "failed" not in cell]
    bare = [cost(cell).step(cell["peer"]) for cell in there if cell["peer"]["kind"] == "alone"]
    lines = [
        "| peer | settings | seed | steps | s a step | MB a step, all hosts | after them "
        "| utilisation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in there:
        peer, done = cell["peer"], cell["done"]
        step, H = cost(cell).step(peer), peer.get("H", 1)
        sent = cell["sent_later"] / (done // H - SKIPPED // H) / H
        score = SCORED[task](cell["curve"][-1][2]) if cell["curve"] else "-"
        used = f"{fmean(bare) / step:.1%}" if bare else "-"
        lines.append(
            f"| {peer['name']} | {settings(peer)} | {cell['seed']} | {done} | {step:.4f} "
            f"| {sent / 1e6:.3f} | {score} | {used} |"
        )
    lines += [
        f"\n{cell['peer']['name']}, seed {cell['seed']}: failed: {cell['failed']}"
        for cell in cells
        if "failed" in cell
    ]
    return "\n".join(lines)
