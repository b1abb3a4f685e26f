"""The tables: uplink to the target, means over seeds, gains, and the paper's claims as goals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from mnist_schemes import SGD, TOPK, Scheme, protocol_a, protocol_b

from thinwire.cli.mnist_setting import Setting

Result = dict[str, Any]
TUNED_BY = 2
"""Step sizes are chosen by so many seeds."""
MORE_SEEDS = 20
"""A goal within two standard errors of what was measured is measured again by so many seeds."""
Look = Callable[[Setting], Result]
"""Finds the result of a run that is done."""


@dataclass(frozen=True)
class Row:
    """Means over seeds of what a scheme cost until the target, or until it gave up."""

    name: str
    step_size: float
    steps: float
    bits: float
    bits_spread: float
    framed: float
    framed_spread: float
    reached: int
    seeds: int


def row(scheme: Scheme, setting: Setting, seeds: range, look: Look) -> Row:
    """Returns one row; Mbit in fixed width, kB framed, of all workers' messages."""
    results = [look(replace(setting, seed=seed)) for seed in seeds]
    bits = [r["bits"] / 1e6 for r in results]
    framed = [r["uplink"] / 1e3 for r in results]
    steps = mean(r["step"] for r in results)
    reached = sum(r["reached"] for r in results)
    costs = mean(bits), spread(bits), mean(framed), spread(framed)
    return Row(scheme.name, setting.step_size, steps, *costs, reached, len(seeds))


def rows(schemes: list[Scheme], seeds: range, steps: int, look: Look) -> dict[str, list[Row]]:
    """Returns the rows of both protocols."""
    shared = [protocol_a(s)[0] for s in schemes]
    best = [tuned(s, seeds, steps, look) for s in schemes]
    return {
        protocol: [
            row(scheme, replace(setting, max_steps=steps), seeds, look)
            for scheme, setting in zip(schemes, settings, strict=True)
        ]
        for protocol, settings in (("a", shared), ("b", best))
    }


def settings_again(
    found: dict[str, list[Row]], schemes: list[Scheme], seeds: range, steps: int, look: Look
) -> dict[str, list[tuple[Scheme, Setting]]]:
    """Returns, by protocol, what stands in a goal that is too close to call by these seeds."""
    names: dict[str, set[str]] = {"a": set(), "b": set()}
    for protocol, ours, over, what, goal in GOALS if len(seeds) < MORE_SEEDS else ():
        by_name = {r.name: r for r in found[protocol]}
        if {ours, over} <= set(by_name):
            times, error = gain(by_name[ours], by_name[over], what)
            names[protocol] |= {ours, over} if abs(times - goal) <= 2 * error else set()
    chosen = {"a": lambda s: protocol_a(s)[0], "b": lambda s: tuned(s, seeds, steps, look)}
    return {
        protocol: [
            (s, replace(chosen[protocol](s), max_steps=steps)) for s in schemes if s.name in wanted
        ]
        for protocol, wanted in names.items()
    }


def tuned(scheme: Scheme, seeds: range, steps: int, look: Look) -> Setting:
    """Returns the setting of protocol (b) that reaches the target in the fewest bits."""

    def cost(setting: Setting) -> tuple[int, float]:
        found = row(scheme, replace(setting, max_steps=steps), tuning(seeds), look)
        return -found.reached, found.bits

    return min(protocol_b(scheme), key=cost)


def tuning(seeds: range) -> range:
    """Returns the seeds that choose a step size."""
    return seeds[:TUNED_BY]


def spread(values: list[float]) -> float:
    """Returns the standard deviation; of one value, 0."""
    return stdev(values) if len(values) > 1 else 0.0


def table(rows: list[Row]) -> list[str]:
    """Returns the rows with their gains over SGD and over TopK-SGD, where both are there."""
    by_name = {r.name: r for r in rows}
    sgd, topk = by_name.get(SGD), by_name.get(TOPK)
    lines = [
        "| scheme | c | reached | steps | Mbit, fixed width | kB, framed | "
        "against SGD, bits / framed | against TopK, H=1, bits / framed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        more = "" if r.reached == r.seeds else "> "
        lines.append(
            f"| {r.name} | {r.step_size:g} | {r.reached}/{r.seeds} | {more}{r.steps:.0f} | "
            f"{more}{r.bits:.3f} +- {r.bits_spread:.3f} | "
            f"{more}{r.framed:.1f} +- {r.framed_spread:.1f} | {_gain(sgd, r)} | {_gain(topk, r)} |"
        )
    return lines


def _gain(over: Row | None, r: Row) -> str:
    if over is None or r.reached < r.seeds:
        return "-"
    return f"{over.bits / r.bits:.1f}x / {over.framed / r.framed:.1f}x"


GOALS = (
    ("a", "SignTopK, H=8", TOPK, "bits", 10),
    ("a", "SignTopK, H=8", SGD, "bits", 1000),
    ("a", "SignTopK, H=8", TOPK, "framed", 9),
    ("a", "SignTopK, H=8", SGD, "framed", 1000),
    ("a", "SignTopK, gaps in [1, 8]", TOPK, "bits", 8),
    ("a", "SignTopK, gaps in [1, 8]", SGD, "bits", 1000),
    ("b", "SignTopK, H=32", TOPK, "bits", 12),
    ("b", "SignTopK, H=32", SGD, "bits", 2000),
    ("b", "SignTopK, H=32", TOPK, "framed", 11),
    ("b", "SignTopK, H=32", SGD, "framed", 1800),
    ("b", "SignTopK, gaps in [1, 32]", TOPK, "bits", 8),
    ("b", "SignTopK, gaps in [1, 32]", SGD, "bits", 1400),
    ("b", "SignTopK, H=4", "SignTopK, H=4, no feedback", "bits", 5),
)
"""Protocol, ours, over what, in which accounting, at least how many times fewer."""


def gain(mine: Row, theirs: Row, what: str) -> tuple[float, float]:
    """Returns how many times less ours costs, and the standard error of that."""
    times, parts = getattr(theirs, what) / getattr(mine, what), 0.0
    for r in (mine, theirs):
        parts += (getattr(r, f"{what}_spread") / getattr(r, what)) ** 2 / r.seeds
    return times, times * parts**0.5


def verdict(found: dict[str, list[Row]], more: dict[str, list[Row]]) -> list[str]:
    """Returns each goal as measured; those of schemes that were left out are left out.

    Args:
        found: the rows of both protocols.
        more: by more seeds, of goals that were too close to call; they decide there.
    """
    lines = [
        "| protocol | claim | goal | measured, +- its standard error | |",
        "|---|---|---|---|---|",
    ]
    for protocol, ours, over, what, goal in GOALS:
        by_name = {r.name: r for r in found[protocol]}
        if not {ours, over} <= set(by_name):
            continue
        before, note = gain(by_name[ours], by_name[over], what), ""
        if abs(before[0] - goal) <= 2 * before[1]:
            again = {r.name: r for r in more.get(protocol, ())}
            if {ours, over} <= set(again):
                note = f" by {again[ours].seeds} seeds; {_shown(*before)} by {by_name[ours].seeds}"
                by_name = again
        mine, theirs = by_name[ours], by_name[over]
        times, error = gain(mine, theirs, what)
        arrives = theirs.reached == theirs.seeds
        met = mine.reached == mine.seeds and (times >= goal or not arrives)
        shown = _shown(times, error) if arrives else f"over {_times(times)}: it never arrives"
        claim = f"{ours} against {over}, {what}"
        lines.append(
            f"| {protocol} | {claim} | {goal}x | {shown}{note} | {'met' if met else 'MISSED'} |"
        )
    return lines


def _shown(times: float, error: float) -> str:
    return f"{_times(times)} +- {error:.2f}" if times < 100 else f"{_times(times)} +- {error:.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 100 else f"{ratio:.0f}x"


def reading(found: dict[str, list[Row]]) -> list[str]:
    """Returns the tables in sentences, beside the paper's claims."""
    a, b = ({r.name: r for r in found[protocol]} for protocol in "ab")

    def fewer(rows: dict[str, Row], ours: str, over: str) -> str:
        return _times(rows[over].bits / rows[ours].bits)

    def steps(ours: str, over: str) -> str:
        return _times(a[ours].steps / a[over].steps)

    sign, own, without = "SignTopK, H=8", "SignTopK, gaps in [1, 8]", "SignTopK, H=4, no feedback"
    arrives = "arrives" if a[without].reached == a[without].seeds else "never arrives"
    return [
        f"- Claimed: 10 to 15 times fewer bits than TopK-SGD, 1000 times fewer than SGD. Measured: "
        f"{fewer(a, sign, TOPK)} and {fewer(a, sign, SGD)} with one shared step size and H = 8; "
        f"{fewer(b, 'SignTopK, H=32', TOPK)} and {fewer(b, 'SignTopK, H=32', SGD)} with each at "
        "its best and H = 32. Tuned at H = 8 it is "
        f"{fewer(b, sign, TOPK)}: TopK-SGD gains more by a large step than local steps do.",
        f"- Operators, at H = 1: SignTopK takes {steps('SignTopK, H=1', SGD)} SGD's steps, TopK "
        f"{steps(TOPK, SGD)}, EF-Sign {steps('EF-Sign, H=1', SGD)}.",
        "- QTopK by 4 bits, divided by 1 + beta as the theory asks, takes "
        f"{steps('QTopK scaled, H=8', 'QTopK unscaled, H=8')} the steps that it takes undivided: "
        "what is divided away waits in the residual.",
        f"- Local steps cost a dense message little ({steps('Local SGD, H=8', SGD)} the steps at "
        f"H = 8) and a sparse one more ({steps(sign, 'SignTopK, H=1')}): 40 entries a round are "
        "the same 40 whatever H, and a longer round owes more.",
        f"- Asynchronous is behind by {_times(a[own].bits / a[sign].bits)} the bits: gaps drawn "
        "from {1, ..., 8} are 4.5 long on the average, so that a worker speaks almost twice as "
        f"often. In local steps it is ahead: {steps(own, sign)} of theirs.",
        f"- Without error feedback SignTopK {arrives} at the shared step size, and at its best one "
        f"takes {_times(b[without].bits / b['SignTopK, H=4'].bits)} the bits.",
    ]
