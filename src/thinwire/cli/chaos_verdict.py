"""When a chaos story has lost nothing, and when all the stories of a kind have not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from thinwire.cli.chaos_plan import KINDS

Result = dict[str, Any]
CONSERVED = 1e-5
FEW = 8
"""Stories of a kind below which the mean of their differences is mostly luck."""
HAIR = 1e-9
"""Accuracies are counts of images: what is less is rounding."""


def spread(accuracies: Sequence[float]) -> dict[str, float]:
    """Returns how far calm runs of one form lie apart that differ in their seeds alone.

    Example:
        >>> found = spread([0.96, 0.97, 0.95])
        >>> found["lowest"], found["highest"], round(found["sd"], 4), found["seeds"]
        (0.95, 0.97, 0.01, 3)
    """
    return {
        "lowest": min(accuracies),
        "highest": max(accuracies),
        "mean": mean(accuracies),
        "sd": stdev(accuracies),
        "seeds": len(accuracies),
    }


def within(result: Result) -> bool:
    """Returns whether a story ended no further from its calm run than calm runs lie apart.

    Its calm run has its own seed, so that a seed's own luck is in both.
    """
    seeds = result["calm_spread"]
    apart = abs(result["accuracy"] - result["calm_accuracy"])
    return bool(apart <= seeds["highest"] - seeds["lowest"] + HAIR)


def problem(result: Result) -> str | None:
    """Returns what is wrong with a story's end, or None."""
    if not result["ended"]:
        return f"it did not end well: {result['why']}"
    if not result["conservation_error"] <= CONSERVED:
        return f"updates are missing: {result['conservation_error']:.1e} of them"
    if result["left_over"]:
        return "it left a process behind"
    lost = any(event["what"] == "lose" for event in result["events"])
    if not lost and not result["same_bits_as_attended"]:
        return "it ended in other bits than a calm run of those that were there"
    if not result["within_spread"]:
        seeds = result["calm_spread"]
        return (
            f"it ended at {result['accuracy']:.1%} and calm at {result['calm_accuracy']:.1%}: "
            f"calm runs of {seeds['seeds']} seeds lie {seeds['highest'] - seeds['lowest']:.1%} "
            "apart at most"
        )
    return None


@dataclass(frozen=True)
class Balance:
    """How far the stories of one kind end from their calm runs.

    Args:
        kind: of exchange.
        stories: that ended.
        mean: of the differences, accuracy less calm accuracy.
        error: the standard error of that mean; NaN for one story.
        bound: how far from 0 the mean may be.
    """

    kind: str
    stories: int
    mean: float
    error: float
    bound: float

    @property
    def problem(self) -> str | None:
        """What is wrong with the kind as a whole, or None."""
        if abs(self.mean) <= self.bound + HAIR:
            return None
        return (
            f"{self.kind}: {self.stories} stories end {100 * self.mean:+.2f} points from their "
            f"calm runs in the mean, standard error {100 * self.error:.2f}; "
            f"allowed are {100 * self.bound:.2f}"
        )


def balances(results: Sequence[Result]) -> list[Balance]:
    """Returns the balance of each kind of which a story has ended.

    The mean of the differences may be one standard deviation of the seeds. Two runs that differ
    in luck alone lie sqrt(2) deviations apart: of fewer than eight such pairs, two standard
    errors are more than one deviation, and so much is allowed.
    """
    found = []
    for kind in KINDS:
        mine = [r for r in results if r["kind"] == kind and r["ended"]]
        if not mine:
            continue
        n = len(mine)
        apart = [r["accuracy"] - r["calm_accuracy"] for r in mine]
        sd = math.sqrt(mean(r["calm_spread"]["sd"] ** 2 for r in mine))
        error = stdev(apart) / math.sqrt(n) if n > 1 else math.nan
        bound = sd * max(1.0, math.sqrt(FEW / n))
        found.append(Balance(kind, n, mean(apart), error, bound))
    return found


def show(results: Sequence[Result]) -> None:
    """Prints one line a kind of exchange."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in (
        "kind", "ended", "accuracy", "apart", "within", "bits", "conserved", "held up",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    found = {balance.kind: balance for balance in balances(results)}
    for kind in KINDS:
        mine = [r for r in results if r["kind"] == kind]
        fine = [r for r in mine if r["ended"]]
        if not fine:
            if mine:
                table.add_row(kind, f"0/{len(mine)}")
            continue
        balance = found[kind]
        table.add_row(
            kind,
            f"{len(fine)}/{len(mine)}",
            f"{mean(r['accuracy'] for r in fine):.1%}",
            f"{100 * balance.mean:+.2f}"
            + (f" ± {100 * balance.error:.2f}" if balance.stories > 1 else ""),
            f"{sum(r['within_spread'] for r in fine)}/{len(fine)}",
            f"{sum(r['same_bits_as_attended'] for r in fine)}/{len(fine)}",
            f"{max(r['conservation_error'] for r in fine):.0e}",
            f"{max(r['slowest_step'] for r in fine):.1f} s",
        )
    console = Console()
    console.print(table)
    console.print(
        "apart: points from the calm runs of the same seeds, mean and standard error; within: no "
        "further\nthan calm runs of other seeds lie apart; bits: those of a calm run in which the "
        "same workers are away",
        soft_wrap=True,
    )
