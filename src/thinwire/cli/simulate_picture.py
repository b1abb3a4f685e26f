"""The timeline of a simulation: one row a worker, who computes and who talks."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

from thinwire.cli.output import write_atomically
from thinwire.errors import ConfigError
from thinwire.link import Link
from thinwire.virtual import Timeline
from thinwire.virtual.timeline import COMPUTE, SEND, TALK, Span

ROWS = 16
ROUNDS = 3
"""Rounds of the first worker that are drawn, about: more cannot be told apart."""
SCALES = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0), ("ms", 1e-3))
BLUE = "#0072B2"


def check_installed() -> None:
    """Raises a ConfigError unless a picture can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--picture needs matplotlib: pip install 'thinwire[demo]'")


def draw(timeline: Timeline, N: int, result: dict[str, Any], line: Link, file: Path) -> None:
    """Draws the first workers' first rounds into a PNG file.

    Args:
        timeline: what they did.
        N: workers in all.
        result: of the run.
        line: of each worker.
        file: where to.

    Raises:
        ConfigError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = min(N, ROWS)
    until = min(result["virtual_seconds"], ROUNDS * result["seconds_per_round"])
    name, unit = next((n, u) for n, u in SCALES if until >= 2 * u or u == SCALES[-1][1])
    figure = Figure(figsize=(10, 1.9 + 0.36 * rows), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for rank in range(rows):
        y = rank
        axes.broken_barh(
            _within(timeline.of(rank, TALK), until, unit), (y - 0.36, 0.72),
            facecolor="white", edgecolor="#999999", linewidth=0.6, hatch="////",
        )  # fmt: skip
        axes.broken_barh(
            _within(timeline.of(rank, COMPUTE), until, unit), (y - 0.36, 0.72),
            facecolor=BLUE, edgecolor=BLUE, linewidth=0.6,
        )  # fmt: skip
        axes.broken_barh(
            _within(timeline.of(rank, SEND), until, unit), (y + 0.08, 0.24),
            facecolor="black", edgecolor="black", linewidth=1.2,
        )  # fmt: skip
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlim(0, until / unit)
    axes.set_yticks(range(rows), [str(rank) for rank in range(rows)])
    axes.set_ylabel("worker" if rows == N else f"worker, the first {rows} of {N:,}")
    axes.set_xlabel(f"virtual time ({name})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"{result['preset']}, H = {result['H']}, d = {result['params']:,}; {line.say()}: "
        f"machines compute {result['utilisation']:.0%} of the time",
        loc="left", fontsize=10,
    )  # fmt: skip
    keys = [
        Patch(facecolor=BLUE, edgecolor=BLUE, label="computes (solid)"),
        Patch(
            facecolor="white", edgecolor="#999999", hatch="////", label="talks: waits for frames"
        ),
        Patch(facecolor="black", label="its uplink is busy (black bar)"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_atomically(file, drawn.getvalue())


def _within(spans: list[Span], until: float, unit: float) -> list[Span]:
    return [(a / unit, (min(b, until) - a) / unit) for a, b in spans if a < until]
