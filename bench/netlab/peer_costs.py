"""What a step and a round of each peer cost, and so the settings it does best with.

Seconds to the goal = steps (a local step + a round / H): the steps from `tune.py`, the rest from
probes on shaped links, or, before there are any, from the bytes of a round.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from peer_methods import PEERS

from thinwire import units

RATES = ("50mbit", "100mbit", "1gbit")
D = 1_863_690
SKIPPED = 2
"""Steps at the start of a probe: DDP builds its buckets, and post-local SGD is DDP still."""
LOCAL = 0.012
"""Seconds of a local step where no probe has said so yet: 4 processes on 2 cores."""
Peer = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """Seconds of one local step, and what a round adds to it."""

    local: float
    round: float

    def step(self, peer: Peer) -> float:
        """Returns the seconds a step, rounds in it."""
        return self.local + self.round / float(peer.get("H", 1))


def shape(peer: Peer) -> tuple[Any, ...]:
    """Returns what the cost of a peer depends on, its H apart."""
    return peer["name"], peer.get("rank"), peer.get("density")


def nominal(peer: Peer, rate: str) -> Cost:
    """Returns a guess from the bytes that a round sends."""
    sent = {
        "ddp": 6.0 * D / (2 if peer.get("hook") == "fp16" else 1),
        "powersgd": 6.0 * 5900 * peer.get("rank", 1),
        "local_sgd": 6.0 * D,
        "diloco": 6.0 * D,
        "signtopk": 3 * 1.0 * D * peer.get("density", 0.01),
        "topk4": 3 * 1.4 * D * peer.get("density", 0.01),
        "ring8": 1.5 * D,
        "gossip8": 2.0 * D,
    }[peer["family"]]
    return Cost(LOCAL, 0.02 + 8 * sent / units.rate(rate))


def cost(cell: dict[str, Any]) -> Cost:
    """Returns what the steps of a probe or of a quick cell cost, its first ones left out."""
    H, each = cell["peer"].get("H", 1), cell["each"][SKIPPED:]
    at_round = [s for n, s in enumerate(each, SKIPPED + 1) if n % H == 0]
    between = [s for n, s in enumerate(each, SKIPPED + 1) if n % H]
    local = fmean(between) if between else 0.0
    return Cost(local, fmean(at_round) - local)


def probed(cells: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], Cost]:
    """Returns the costs that probes have measured, by (task, rate, shape)."""
    return {
        (cell["task"], cell["rate"], *shape(cell["peer"])): cost(cell)
        for cell in cells
        if cell["how"] == "probe" and "failed" not in cell
    }


def counted(tuning: Path, task: str) -> list[dict[str, Any]]:
    """Returns the tuning's cells of a task."""
    return [json.loads(file.read_text()) for file in sorted(tuning.glob(f"{task}-*.json"))]


def steps_of(cells: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Returns the counted steps by seed, under each setting as JSON; none where one seed failed."""
    by: dict[str, dict[int, int | None]] = {}
    for cell in cells:
        by.setdefault(json.dumps(cell["peer"]), {})[cell["seed"]] = cell["reached_at"]
    return {
        key: [n for _, n in sorted(seeds.items()) if n]
        for key, seeds in by.items()
        if all(seeds.values())
    }


def choose(
    name: str, rate: str, cells: Sequence[dict[str, Any]], costs: dict[tuple[Any, ...], Cost]
) -> tuple[Peer, float, list[int], str] | None:
    """Returns a peer's best settings at a rate, its seconds and steps, and how `tune.py` has them.

    By the mean over the seeds that were counted: one seed for all settings, more for those that
    were once the best.
    """
    best = None
    for key, steps in steps_of(cells).items():
        settings = json.loads(key)
        if settings["family"] != PEERS[name]["family"]:
            continue
        peer = {**settings, **PEERS[name], "name": name}
        task = cells[0]["task"]
        cost = costs.get((task, rate, *shape(peer))) or nominal(peer, rate)
        seconds = fmean(steps) * cost.step(peer)
        if best is None or seconds < best[1]:
            best = (peer, seconds, steps, key)
    return best
