"""Writes bench/netlab/RESULTS.md from the cells in --runs: goal, measured, held or MISSED."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lab import ABOUT
from peer_costs import SKIPPED, Peer, choose, cost, counted, probed, shape
from peer_methods import PEERS
from tasks import Gpt, Mlp
from tune import table as tuned

from thinwire.runs import ran_on

VERSIONS = ("torchft-nightly", "torchft")
PRODUCT = "product"
TITLES = {
    "mlp": "the MLP of 1.86 M parameters on MNIST, batch 32, to 97 % test accuracy",
    "gpt": "the byte-level GPT of 0.84 M parameters, batch 2 x 128 bytes, to 4 bits a byte",
}
Cells = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One peer at one rate: what it took, over seeds.

    Args:
        name: the peer's.
        peer: its settings.
        how: "whole", or "product" of counted steps and probed seconds a step.
        seconds: of training, by seed.
        steps: by seed.
        reached: whether every seed came to the goal.
        sent: bytes that left all hosts' interfaces, mean over seeds.
        framed: bytes of thinwire's frames in them; None for others.
        busy: seconds a step of the same model with no communication, same hosts and rate.
        ends: how good the same settings become, by seed: accuracy, or minus the bits a byte.
    """

    name: str
    peer: Peer
    how: str
    seconds: list[float]
    steps: list[int]
    reached: bool
    sent: float
    framed: float | None
    busy: float
    ends: list[float]

    @property
    def mean(self) -> float:
        """Seconds, mean over seeds."""
        return fmean(self.seconds)

    @property
    def utilisation(self) -> float:
        """Compute time / wall time."""
        return fmean(self.steps) * self.busy / self.mean


def row(name: str, rate: str, cells: Cells, tuning: Cells, ended: Cells) -> Row | None:
    """Returns what is known of a peer at a rate: of whole runs, and else the product.

    Quick cells are no part of it.
    """
    here = [c for c in cells if c["rate"] == rate and c["peer"]["name"] == name]
    bare = [
        c for c in cells
        if c["peer"]["kind"] == "alone" and c["rate"] == rate
        and c["how"] == "probe" and "failed" not in c
    ]  # fmt: skip
    busy = fmean(fmean(c["each"][4:]) for c in bare) if bare else 0.0
    whole = [c for c in here if c["how"] == "whole" and "failed" not in c]
    by: dict[str, list[dict[str, Any]]] = {}
    for c in whole:
        by.setdefault(json.dumps(c["peer"]), []).append(c)
    if by:
        # Where probes have changed the choice, a peer has whole runs of several settings.
        whole = min(by.values(), key=_worth)
        framed = fmean(c["framed"] for c in whole) if whole[0]["framed"] else None
        return Row(
            name, whole[0]["peer"], "whole", [c["seconds"] for c in whole],
            [c["done"] for c in whole], all(c["reached_at"] for c in whole),
            fmean(c["sent"] for c in whole), framed, busy, _ends(name, whole[0]["peer"], ended),
        )  # fmt: skip
    found = choose(name, rate, tuning, probed(cells))
    if found is None:
        return None
    peer, _, steps, _ = found
    like = [
        c for c in here
        if c["how"] == "probe" and "failed" not in c and shape(c["peer"]) == shape(peer)
    ]  # fmt: skip
    if not like:
        return None
    probe = like[0]
    H, rounds = probe["peer"].get("H", 1), fmean(steps) / peer.get("H", 1)
    seconds = [n * cost(probe).step(peer) for n in steps]
    framed = probe["framed"] and probe["framed"] * rounds / (probe["steps"] / H)
    # What a peer sends as it starts is not of a round: DDP shares its parameters, and its first
    # gradients go uncompressed.
    sent = probe["sent_later"] * rounds / (probe["steps"] // H - SKIPPED // H)
    ends = _ends(name, peer, ended)
    return Row(name, peer, PRODUCT, seconds, steps, True, sent, framed, busy, ends)


def _ends(name: str, peer: Peer, ended: Cells) -> list[float]:
    """Returns how good a peer's settings become, by seed, where that was counted."""
    same = [c for c in ended if {**c["peer"], **PEERS[name], "name": name} == peer]
    return [c["score"] for c in sorted(same, key=lambda c: c["seed"])]


def _worth(runs: Cells) -> tuple[bool, float]:
    return not all(c["reached_at"] for c in runs), fmean(c["seconds"] for c in runs)


def settings(peer: Peer) -> str:
    """Returns a peer's settings in one cell of a table."""
    left = ("name", "kind", "family", "algorithm", "method", "hook")
    names = {"beta": "momentum", "momentum": "outer momentum"}
    kept = {k: v for k, v in peer.items() if k not in left and not (k == "beta" and v == 0)}
    return ", ".join(f"{names.get(k, k)} {v:g}" for k, v in kept.items())


def table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| peer | settings | seconds to the goal, by seed | mean | steps | s a step | MB sent, all "
        "hosts | framed MB (the rest of sent) | utilisation | how | quality in the end |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: (not r.reached, r.mean)):
        a_step = r.mean / fmean(r.steps)
        framed = "-"
        if r.framed:
            framed = f"{r.framed / 1e6:.2f} ({100 * (r.sent / r.framed - 1):.1f} %)"
        each = " ".join(f"{s:.1f}" for s in r.seconds)
        mean = f"{r.mean:.1f}" if r.reached else "goal not reached"
        lines.append(
            f"| {r.name} | {settings(r.peer)} | {each} | {mean} "
            f"| {' '.join(map(str, r.steps))} | {a_step:.4f} | {r.sent / 1e6:.2f} | {framed} "
            f"| {r.utilisation:.1%} | {r.how} | {quality(r.ends)} |"
        )
    return lines


def quality(ends: Sequence[float]) -> str:
    """Returns the mean over seeds, and their standard deviation."""
    if len(ends) < 2:
        return "-"
    mean, spread = fmean(ends), stdev(ends)
    if mean > 0:
        return f"{mean:.2%} +- {100 * spread:.2f}"
    return f"{-mean:.3f} +- {spread:.3f} bits"


def goals(rows: dict[str, list[Row]]) -> list[str]:
    """Returns the goals' lines of the MLP: goal, measured, held or MISSED."""
    lines = ["| goal | measured | |", "|---|---|---|"]

    def line(goal: str, measured: str, held: bool) -> None:
        lines.append(f"| {goal} | {measured} | {'held' if held else '**MISSED**'} |")

    def over(rate: str, goal: str, times: float, whom: Callable[[Row], bool]) -> None:
        there = [r for r in rows.get(rate, []) if r.reached]
        own = [r for r in there if r.name.startswith("thinwire")]
        others = [r for r in there if not r.name.startswith("thinwire") and whom(r)]
        if not own or not others:
            lines.append(f"| {goal} | not measured | |")
            return
        best, other = min(own, key=lambda r: r.mean), min(others, key=lambda r: r.mean)
        ratio = other.mean / best.mean
        said = (
            f"{ratio:.2f}x: {best.name} {best.mean:.1f} s ({best.how}), {other.name} "
            f"({settings(other.peer)}) {other.mean:.1f} s ({other.how})"
        )
        line(goal, said, ratio >= times)
        if goal.endswith("best other peer"):
            fewer = other.sent / best.sent
            mb = f"{best.sent / 1e6:.2f} and {other.sent / 1e6:.2f} MB"
            line(f"{rate}: with >= 8x fewer bytes than it", f"{fewer:.1f}x: {mb}", fewer >= 8)

    over("100mbit", "100mbit: >= 20x faster than DDP", 20, lambda r: r.name == "DDP")
    over("100mbit", "100mbit: >= 3x faster than tuned PowerSGD", 3, lambda r: "Power" in r.name)
    over("100mbit", "100mbit: >= 1.5x faster than the best other peer", 1.5, lambda r: True)
    over("50mbit", "50mbit: >= 2x faster than the best other peer", 2, lambda r: True)
    over("1gbit", "1gbit: never slower than DDP", 1, lambda r: r.name == "DDP")
    there = [r for r in rows.get("100mbit", []) if r.ends]
    ddp = next((r for r in there if r.name == "DDP"), None)
    presets = [r for r in there if r.name.startswith("thinwire") and r.reached]
    if ddp and presets:
        best = min(presets, key=lambda r: r.mean)
        more = 100 * (fmean(best.ends) - fmean(ddp.ends))
        said = f"{best.name} {quality(best.ends)}, DDP {quality(ddp.ends)}: {more:+.2f} points"
        line("100mbit: in the end within 0.3 points of DDP", said, more >= -0.3)
    return lines


def write(target: Path, runs: Path) -> None:
    """Writes the results of both tasks, and of lines and predictions where they were measured."""
    text = [
        "# On a thin wire: peers side by side, line use, predictions",
        "",
        f"{date.today()}, 4 hosts as network namespaces on one machine, links shaped both ways "
        f"with `tc tbf`: {ABOUT}. {ran_on(**versions())}.",
        "",
        "Seconds count zero_grad, forward, backward and step with all that it waits for; drawing "
        "batches, judging, imports and connecting are left out for every peer alike. The model is "
        "judged where all workers share it: every 16 steps, or at each round's end where H is "
        'more. "whole" is a run to the goal on the shaped links; "product" is steps counted '
        "unshaped, in lock-step (`tune.py`), x seconds a step measured shaped. Utilisation is the "
        "time of as many steps of the same model with no communication, four at once on this "
        "machine, over wall time. Quality in the end: after "
        f"{Mlp.steps} steps of the MLP and {Gpt.steps} of the GPT with the same settings, in "
        "lock-step, mean and standard deviation over seeds. Bytes are read from the hosts' "
        "interfaces. Not tuned: PowerSGD and DDP's post-local SGD begin after two steps and have "
        "one bucket of all gradients; inner steps keep their rate, without warm-up or decay.",
        "",
    ]
    for task in ("mlp", "gpt"):
        cells = [json.loads(f.read_text()) for f in sorted(runs.glob(f"{task}-*.json"))]
        tuning = counted(runs / "tuning", task)
        ended = counted(runs / "tuning", f"quality-{task}")
        rows = {}
        for rate in ("50mbit", "100mbit", "1gbit"):
            found = [row(name, rate, cells, tuning, ended) for name in PEERS] if tuning else []
            rows[rate] = [r for r in found if r is not None]
        if not any(rows.values()):
            continue
        goal = TITLES[task]
        text += [f"## {goal[0].upper()}{goal[1:]}", ""]
        if task == "mlp":
            text += [*goals(rows), ""]
        for rate, here in ((rate, here) for rate, here in rows.items() if here):
            text += [f"### {rate}", "", *table(here), ""]
        text += [
            "### Steps to the goal over the settings, counted in lock-step",
            "",
            "One seed for all; what is the best at a rate by that is counted with two more, until "
            "no best has one alone. Cells that fell an eighth behind their peer's best, or plainly "
            "went nowhere, were stopped.",
            "",
            tuned(tuning),
            "",
        ]
        broken = [c for c in cells if "failed" in c and c["how"] != "quick"]
        text += [
            f"{c['peer']['name']}, {c['rate']}, {c['how']}: failed: {c['failed']}\n" for c in broken
        ]
        text += _notes(task)
    for name in ("lines", "predict", "scale"):
        part = runs / f"{name}.md"
        if part.exists():
            text += [part.read_text(), *_notes(name)]
    target.write_text("\n".join(text).rstrip() + "\n")


def _notes(name: str) -> list[str]:
    """Returns what is to be known of a part beside its figures, and is written by hand."""
    file = Path(__file__).with_name("notes") / f"{name}.md"
    return [file.read_text()] if file.exists() else []


def versions() -> dict[str, str]:
    """Returns the version of torchft, where it is there."""
    from importlib import metadata

    for package in VERSIONS:
        try:
            return {package: metadata.version(package)}
        except metadata.PackageNotFoundError:
            continue
    return {}
