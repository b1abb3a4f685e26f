"""The report's figures, drawn once: as SVG for a page, together as one PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from thinwire.cli.output import size
from thinwire.cli.report_series import (
    AXES,
    CLASSES,
    NORMS,
    PERCENT,
    Series,
    Tasks,
    has,
    metrics_of,
    spoken,
)

# Okabe and Ito's colours, told apart by all kinds of colour vision; marker, line style and the
# letter at its end tell the curves apart without colour. No pure black: matplotlib leaves that
# out of an SVG, and it could not be made light where the page is dark.
COLOURS = ("#0a0a0a", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#4b9cd3", "#7a3e9d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (1.2, 1.4)), (0, (8, 2, 2, 2)))
HATCHES = ("", "////", "....", "xxxx")
INK, GRID = "#111111", "#c9c9c9"
"""Colours that no series has: the page gives each its own for light and dark."""
WIDTH, HEIGHT = 3.9, 2.75
METRICS = 3


@dataclass(frozen=True)
class Panel:
    """One figure.

    Args:
        title: what it shows, in a few words.
        said: the same for a reader who cannot see it.
        draw: draws it on matplotlib's axes.
    """

    title: str
    said: str
    draw: Callable[[Any], None]


def style(number: int) -> tuple[str, str, Any]:
    """Returns colour, marker and line style of the series of that number."""
    n = len(COLOURS)
    return COLOURS[number % n], MARKERS[number % n], LINES[(number + number // n) % len(LINES)]


def panels(series: Sequence[Series]) -> list[Panel]:
    """Returns every figure that these series have data for."""
    found = []
    bytes_ = "uplink" if has(series, "evaluations", "uplink") else "sent"
    time = "epoch" if has(series, "evaluations", "epoch") else "step"
    for metric in metrics_of(series)[:METRICS]:
        for x in (time, bytes_, "bits", "seconds", "link_seconds"):
            if has(series, "evaluations", x, metric):
                found.append(_curves(series, "evaluations", x, metric, spoken(metric)))
    if any(s.shares for s in series):
        letters = ", ".join(s.letter for s in series if s.shares)
        said = f"Shares of header, index, scale and value in the bytes of methods {letters}."
        found.append(Panel("What a message's bytes are", said, lambda axes: _shares(axes, series)))
    for kind in ("rounds", "evaluations"):
        for key, title in NORMS.items():
            if has(series, kind, "step", key):
                found.append(_curves(series, kind, "step", key, title))
    return found


def svg(panel: Panel, number: int) -> str:
    """Returns a figure as an SVG element whose ids are those of no other number."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC | {"svg.fonttype": "none", "svg.hashsalt": f"{number}"}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        panel.draw(figure.add_subplot())
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[^"]*pt"', "", text, count=2)
    text = re.sub(r'id="([^"]+)"', rf'id="f{number}-\1"', text)
    text = re.sub(r'(href="|url\()#', rf"\1#f{number}-", text)
    for name, colour in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{panel.said}"', 1)


def picture(tasks: Tasks) -> bytes:
    """Returns all figures of all tasks as one PNG, legends beside their titles."""
    import matplotlib
    from matplotlib.figure import Figure

    across, rows = 3, []
    for task, series in tasks.items():
        drawn = panels(series)
        lines = [f"{s.letter}  {s.label}" for s in series]
        rows.append((task, lines, drawn, -(-len(drawn) // across)))
    heights = [row for _, lines, _, n in rows for row in (0.45 + 0.17 * len(lines), HEIGHT * n)]
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(WIDTH * across, sum(heights)), dpi=150, layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for number, (task, lines, drawn, n) in enumerate(rows):
            head, body = parts[2 * number], parts[2 * number + 1]
            head.text(0.01, 0.98, task, va="top", fontsize=13, fontweight="bold")
            top = 0.98 - 0.35 / heights[2 * number]
            head.text(0.01, top, "\n".join(lines), va="top", fontsize=9)
            for place, panel in enumerate(drawn):
                panel.draw(body.add_subplot(n, across, place + 1))
        png = io.BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


_RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}
_VARIABLES = {"ink": INK, "grid": GRID} | {f"c{n}": colour for n, colour in enumerate(COLOURS)}


def _curves(series: Sequence[Series], kind: str, x: str, y: str, what: str) -> Panel:
    title = what if y in NORMS else f"{what} against {AXES[x].partition(',')[0]}"
    ends = []
    for s in series:
        if curve := s.curve(kind, x, y):
            ends.append(f"{s.letter} ends at {curve[-1].y:.4g}")
    said = f"{title}: {'; '.join(ends)}."

    def draw(axes: Any) -> None:
        from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

        tips = []
        for s in series:
            curve = s.curve(kind, x, y)
            if not curve:
                continue
            colour, marker, line = style(s.number)
            xs, ys = [p.x for p in curve], [p.y for p in curve]
            axes.plot(
                xs, ys, color=colour, linestyle=line, linewidth=1.5, marker=marker, markersize=4.5,
                markevery=(0 if len(xs) < 12 else len(xs) // 12, max(1, len(xs) // 6)),
            )  # fmt: skip
            if len(s.runs) > 1:
                low, high = [p.low for p in curve], [p.high for p in curve]
                axes.fill_between(xs, low, high, color=colour, alpha=0.16, linewidth=0)
            tips.append((s.letter, xs[-1], ys[-1], colour))
        if x in ("uplink", "sent", "link_seconds"):
            axes.set_xscale("log")
            say = "{:g}".format if x == "link_seconds" else _round_size
            axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: say(n)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if x == "bits":
            axes.set_xscale("log", base=2)
        if y in PERCENT:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_title(title if y in NORMS else what)
        axes.set_xlabel(AXES[x])
        axes.grid(True)
        axes.margins(x=0.08)
        _label(axes, tips)

    return Panel(title, said, draw)


def _label(axes: Any, tips: list[tuple[str, float, float, str]]) -> None:
    """Writes each letter right of its curve's end, and above another that stands there."""
    taken: list[tuple[float, float]] = []
    to_points = axes.figure.dpi / 72
    for letter, x, y, colour in sorted(tips, key=lambda tip: tip[2]):
        at_x, at_y = axes.transData.transform((x, y)) / to_points
        lift = 0.0
        while any(abs(at_x - ox) < 9 and abs(at_y + lift - oy) < 10 for ox, oy in taken):
            lift += 2.0
        taken.append((at_x, at_y + lift))
        axes.annotate(
            letter, (x, y), xytext=(5, lift), textcoords="offset points", va="center",
            color=colour, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _shares(axes: Any, series: Sequence[Series]) -> None:
    known = [s for s in series if s.shares]
    greys = ("#5b5b5b", "#8f8f8f", "#b9b9b9", "#dcdcdc")
    left = [0.0] * len(known)
    for name, grey, hatch in zip(CLASSES, greys, HATCHES, strict=True):
        part = [100 * s.shares[name] / sum(s.shares.values()) for s in known]
        axes.barh(
            [s.letter for s in known], part, left=left, color=grey, hatch=hatch, label=name,
            edgecolor=INK, linewidth=0.6, height=0.62,
        )  # fmt: skip
        left = [a + b for a, b in zip(left, part, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_title("What a message's bytes are")
    axes.set_xlabel("% of the bytes said")
    axes.legend(
        ncols=len(CLASSES), loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False,
        fontsize=9, handlelength=1.4, columnspacing=1.0,
    )  # fmt: skip


def _round_size(n: float) -> str:
    number, unit = size(n).split()
    return f"{float(number):g} {unit}"
