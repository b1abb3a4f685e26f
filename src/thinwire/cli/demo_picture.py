"""The demo's picture: test accuracy against bytes sent, one curve a method."""

from __future__ import annotations

import io
from itertools import cycle
from pathlib import Path
from typing import Any

from thinwire.cli.output import size, write_atomically

# Okabe and Ito's colours, told apart by all kinds of colour vision; marker and line style tell
# the curves apart without colour.
STYLES = (
    ("#000000", "o", "-"),
    ("#0072B2", "s", "--"),
    ("#D55E00", "^", "-."),
    ("#009E73", "D", (0, (1, 1))),
    ("#CC79A7", "v", (0, (5, 1, 1, 1, 1, 1))),
)


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """Draws the curves into a PNG file.

    Raises:
        ConfigError: the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

    figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    low = min(p["accuracy"] for r in results for p in r["curve"])
    top = max(p["accuracy"] for r in results for p in r["curve"])
    height = max(top - low, 0.05)
    tiers = _tiers([r["bytes"] for r in results])
    for result, (colour, marker, line), tier in zip(results, cycle(STYLES), tiers, strict=False):
        x = [point["bytes"] for point in result["curve"]]
        y = [point["accuracy"] for point in result["curve"]]
        axes.plot(
            x, y, color=colour, linestyle=line, linewidth=1.6, marker=marker, markersize=6,
            markevery=max(1, len(x) // 6), markeredgecolor="white",
        )  # fmt: skip
        axes.plot(x[-1], y[-1], color=colour, marker=marker, markersize=9, markeredgecolor="white")
        axes.annotate(
            f"{result['method']}\n{size(x[-1])}, {y[-1]:.1%}",
            (x[-1], y[-1]), xytext=(x[-1], top + height * (0.07 + 0.14 * tier)),
            ha="right" if tier else "left", va="bottom",
            color=colour, fontsize=9.5, fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkB": 5,
                        "relpos": (tier, 0)},
        )  # fmt: skip
    axes.set_ylim(low - 0.04 * height, top + 0.35 * height)
    axes.set_yticks([tick for tick in axes.get_yticks() if low - 0.04 * height <= tick <= 1.0])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: _round_size(n)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("bytes sent by all workers, both directions (log scale)")
    axes.set_ylabel("test accuracy (% of images)")
    first = results[0]
    axes.set_title(
        f"Handwritten digits, {first['workers']} workers, {first['epochs']} epochs: "
        "what each method put on the wire",
        loc="left",
    )
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_atomically(file, drawn.getvalue())


def _tiers(ends: list[int]) -> list[int]:
    # Labels of neighbouring curves stand at two heights, so that they do not collide.
    order = sorted(range(len(ends)), key=ends.__getitem__)
    return [(len(ends) - order.index(curve)) % 2 for curve in range(len(ends))]


def _round_size(n: float) -> str:
    number, unit = size(n).split()
    return f"{float(number):g} {unit}"
