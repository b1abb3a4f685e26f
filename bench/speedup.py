"""Linear speed-up of QPRSGD: rounds to a target against workers N and local steps H.

f(x) = 1/2 sum lambda_i x_i^2, d = 256, lambda in [.5, 1], x0 = 1; each worker's gradient has noise
N(0, 3200/d I); step size m * 9.2e-4 N; the target is .01 f(x0), at the mean model, after a round.
The rounds are the library's own, in lock-step, with real frames of 8-bit codes.

(a) the grid of N and H, at m = 1 for all: ring, and gossip over a ring graph;
(b) N = 2, every H with its own best m: a rate of 1/sqrt(rounds H^2 N) would make the rounds fall
    with H squared, at a step size that grows with H.

    python bench/speedup.py

Each run is one line of `--log`; a second call goes on where the first was stopped. The table is
written to `--out` with date, machine, versions and seeds, the plot beside it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev

import matplotlib as mpl
import numpy as np
import torch
from published import publish
from torch import Tensor

from thinwire.compress import QSGD
from thinwire.exchange import Exchange, Gossip, Here, Ring
from thinwire.exchange.driver import lockstep
from thinwire.flat import Spans
from thinwire.keys import Key
from thinwire.runs import ran_on
from thinwire.transport.base import Answer, Ask

mpl.use("Agg")
import matplotlib.pyplot as plt

D, NOISE, STEP_SIZE, TARGET = 256, 3200.0, 9.2e-4, 0.01
NS, HS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8)
STEPS = 4620
"""Steps that N = 1 takes at m = 1, about: a run gives up at 1.6 times its share of them."""

TUNED_N = 2
MULTIPLES = (0.7, 1.0, 1.2, 1.4, 2.0, 4.0, 8.0)
OPERATOR = QSGD(bits=8, norm="max", scale="none", bucket=1024, coding="fixed")
EXCHANGES: dict[str, Exchange] = {
    "ring": Ring(form="ring"),
    "gossip": Gossip(),
}


@dataclass(frozen=True)
class Run:
    """One run: what is exchanged, by how many, how often, at which step size."""

    exchange: str
    N: int
    H: int
    m: float = 1.0
    seed: int = 0


class Quiet:
    """Watches nothing."""

    def asked(self, ask: Ask, rank: int) -> None:
        """Does nothing."""

    def answered(self, ask: Ask, answer: Answer, rank: int) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class Arrival:
    """The rounds until the mean model is at the target, or None if it never is.

    Args:
        rounds: so many.
        apart: the mean of the workers' f over f of the mean model, there: 1 where all are equal.
    """

    rounds: int | None
    apart: float = 1.0


def travel(run: Run) -> Arrival:
    """Runs rounds until the mean model is at the target."""
    exchange, spans, N = EXCHANGES[run.exchange], Spans.of(D), run.N
    lam, x = torch.linspace(0.5, 1.0, D), torch.ones(N, D)
    draws = torch.Generator().manual_seed(
        100_000 * (run.exchange == "gossip") + 1000 * run.seed + 10 * N + run.H
    )
    eta, std = run.m * STEP_SIZE * N, math.sqrt(NOISE / D)

    def here(rank: int, round: int) -> Here:
        return Here(rank, N, round, Key(run.seed, round, rank), OPERATOR, spans, 0)

    def f(point: Tensor) -> float:
        return float((lam * point.double().square()).sum()) / 2

    goal, most = TARGET * f(x[0]), math.ceil(1.6 * STEPS / (N * run.H))
    mems = [exchange.init(here(rank, 0)) for rank in range(N)]
    for round in range(most):
        moved = x
        for _ in range(run.H):
            noise = std * torch.randn(N, D, generator=draws)
            moved = moved - eta * (lam * moved + noise)
        talks = [
            exchange.round(x[rank], x[rank] - moved[rank], mems[rank], here(rank, round))
            for rank in range(N)
        ]
        said = lockstep(talks, [Quiet()] * N)
        x = x - torch.stack([direction for direction, _ in said])
        mems = [mem for _, mem in said]
        if not bool(torch.isfinite(x).all()):
            break
        if f(x.mean(0)) <= goal:
            return Arrival(round + 1, mean(f(one) for one in x) / f(x.mean(0)))
    return Arrival(None)


def all_runs(seeds: int) -> Iterator[Run]:
    for seed in range(seeds):
        for name in EXCHANGES:
            for N in NS:
                for H in HS:
                    yield Run(name, N, H, 1.0, seed)
        for H in HS:
            for m in MULTIPLES:
                yield Run("ring", TUNED_N, H, m, seed)


def measure(seeds: int, log: Path) -> dict[Run, Arrival]:
    log.parent.mkdir(parents=True, exist_ok=True)
    done: dict[Run, Arrival] = {}
    if log.exists():
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            done[Run(**entry["run"])] = Arrival(entry["rounds"], entry["apart"])
    todo = [run for run in dict.fromkeys(all_runs(seeds)) if run not in done]
    with log.open("a") as out:
        for count, run in enumerate(todo):
            done[run] = travel(run)
            out.write(json.dumps({"run": asdict(run), **asdict(done[run])}) + "\n")
            out.flush()
            print(f"{count + 1}/{len(todo)} {run} {done[run]}", flush=True)
    return done


@dataclass(frozen=True)
class Grid:
    """Rounds of one exchange: mean and spread over seeds, for each N and H; the two slopes.

    A slope is (that of the means, the standard deviation of the slopes of each seed by itself).
    """

    mean: dict[tuple[int, int], float]
    spread: dict[tuple[int, int], float]
    slope_N: tuple[float, float]
    slope_H: tuple[float, float]


def slopes(rounds: dict[tuple[int, int], float]) -> tuple[float, float]:
    """Fits log rounds = c + a log N + b log H, by least squares over all cells; returns a, b."""
    reached = [c for c in rounds if math.isfinite(rounds[c])]
    design = np.array([[1.0, math.log(N), math.log(H)] for N, H in reached])
    fitted, *_ = np.linalg.lstsq(design, np.log([rounds[c] for c in reached]), rcond=None)
    return float(fitted[1]), float(fitted[2])


def grid(name: str, done: dict[Run, Arrival], seeds: int) -> Grid:
    means, spreads = {}, {}
    each: list[dict[tuple[int, int], float]] = [{} for _ in range(seeds)]
    for N in NS:
        for H in HS:
            rounds = [done[Run(name, N, H, 1.0, seed)].rounds for seed in range(seeds)]
            reached = [math.inf if r is None else float(r) for r in rounds]
            means[N, H] = mean(reached)
            spreads[N, H] = stdev(reached) if seeds > 1 and None not in rounds else math.nan
            for of_seed, one in zip(each, reached, strict=True):
                of_seed[N, H] = one
    spread = [stdev(some) if seeds > 1 else 0.0 for some in zip(*map(slopes, each), strict=True)]
    in_N, in_H = slopes(means)
    return Grid(means, spreads, (in_N, spread[0]), (in_H, spread[1]))


def grid_table(g: Grid) -> list[str]:
    lines = [
        "| N | " + " | ".join(f"H = {H}" for H in HS) + " | slope in H at this N |",
        "|---|" + "---|" * (len(HS) + 1),
    ]
    for N in NS:
        cells = [cell(g.mean[N, H], g.spread[N, H]) for H in HS]
        lines.append(
            f"| {N} | " + " | ".join(cells) + f" | {slope(HS, [g.mean[N, H] for H in HS])} |"
        )
    cells = [slope(NS, [g.mean[N, H] for N in NS]) for H in HS]
    return [*lines, "| slope in N at this H | " + " | ".join(cells) + " | |"]


def cell(average: float, spread: float) -> str:
    if not math.isfinite(average):
        return "never"
    return f"{average:.1f}" + ("" if math.isnan(spread) else f" +- {spread:.1f}")


def apart_table(done: dict[Run, Arrival], seeds: int) -> list[str]:
    lines = ["| N | " + " | ".join(f"H = {H}" for H in HS) + " |", "|---|" + "---|" * len(HS)]
    for N in NS:
        each = [[done[Run("gossip", N, H, 1.0, seed)].apart for seed in range(seeds)] for H in HS]
        lines.append(f"| {N} | " + " | ".join(f"{mean(a):.2f}" for a in each) + " |")
    return lines


def slope(at: tuple[int, ...], rounds: list[float]) -> str:
    if not all(math.isfinite(r) for r in rounds):
        return "-"
    return f"{np.polyfit(np.log(at), np.log(rounds), 1)[0]:.3f}"


def tuned(done: dict[Run, Arrival], seeds: int) -> dict[int, dict[float, float]]:
    """Returns the mean rounds of part (b) by H and m; infinite where some seed never arrived."""
    table: dict[int, dict[float, float]] = {}
    for H in HS:
        table[H] = {}
        for m in MULTIPLES:
            rounds = [done[Run("ring", TUNED_N, H, m, seed)].rounds for seed in range(seeds)]
            table[H][m] = mean(math.inf if r is None else float(r) for r in rounds)
    return table


def tuned_table(table: dict[int, dict[float, float]]) -> list[str]:
    lines = [
        "| H | " + " | ".join(f"m = {m:g}" for m in MULTIPLES) + " | best |",
        "|---|" + "---|" * (len(MULTIPLES) + 1),
    ]
    for H, row in table.items():
        cells = [f"{r:.0f}" if math.isfinite(r) else "never" for r in row.values()]
        best = min(row, key=lambda m: row[m])
        lines.append(f"| {H} | " + " | ".join(cells) + f" | {row[best]:.1f} at m = {best:g} |")
    return lines


def verdict(grids: dict[str, Grid], table: dict[int, dict[float, float]]) -> list[str]:
    lines = ["| claim | goal | measured | |", "|---|---|---|---|"]
    for name, g in grids.items():
        goal = "-1 +- 0.1, as the paper claims" if name == "gossip" else "-1 +- 0.1"
        for letter, fitted in (("N", g.slope_N), ("H", g.slope_H)):
            ok = "met" if abs(fitted[0] + 1) <= 0.1 else "MISSED"
            lines.append(f"| {name}: log-slope in {letter} | {goal} | {told(fitted)} | {ok} |")
    best = [min(row.values()) for row in table.values()]
    lines.append(
        f"| O(1/sqrt(rounds H^2 N)): slope in H, every H at its best m | -2 | {slope(HS, best)} | "
        "not seen |"
        if float(slope(HS, best)) > -1.5
        else f"| slope in H, every H at its best m | -2 | {slope(HS, best)} | seen |"
    )
    with_H = [table[H].get(float(H), math.nan) for H in HS]
    shown = ", ".join(
        f"H = {H}: {r:.0f}" if math.isfinite(r) else f"H = {H}: never"
        for H, r in zip(HS, with_H, strict=True)
        if not math.isnan(r)
    )
    lines.append(f"| rounds where the step size grows with H (m = H) | fall as 1/H^2 | {shown} | |")
    return lines


def told(fitted: tuple[float, float]) -> str:
    return f"{fitted[0]:.3f} +- {fitted[1]:.3f}"


MARKS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))


def plot(grids: dict[str, Grid], file: Path) -> None:
    """Draws rounds against N and against H; marks, dashes and labels tell the lines apart."""
    fig, axes = plt.subplots(2, 2, figsize=(10, 8.6), sharey=True, layout="constrained")
    shown = {"ring": "8-bit ring", "gossip": "8-bit gossip, ring graph"}
    for row, (name, what) in zip(axes, shown.items(), strict=True):
        g = grids[name]
        for ax, xs, others, swap, letter, other, fitted in (
            (row[0], NS, HS, False, "workers N", "H", g.slope_N),
            (row[1], HS, NS, True, "local steps H", "N", g.slope_H),
        ):
            for i, o in enumerate(others):
                ys = [g.mean[(o, x) if swap else (x, o)] for x in xs]
                ax.plot(xs, ys, marker=MARKS[i], ls=LINES[i], color="black", lw=1.1, ms=5, mfc="w")
                ax.annotate(
                    f"{other} = {o}", (xs[-1], ys[-1]), (7, -3), textcoords="offset points", size=8
                )
            start = 1.6 * g.mean[1, 1]
            ax.plot(xs, [start / x for x in xs], color="0.6", lw=3, zorder=0)
            mid = xs[len(xs) // 2]
            ax.annotate("slope -1", (mid, start / mid), (6, 6), textcoords="offset points", size=8)
            ax.set(xscale="log", yscale="log", xlabel=letter, xlim=(xs[0] * 0.9, xs[-1] * 1.55))
            ax.set_xticks(xs, [str(x) for x in xs])
            ax.minorticks_off()
            ax.grid(alpha=0.3)
            ax.set_title(f"{what}: fitted log-slope {fitted[0]:.2f}", size=10)
        row[0].set_ylabel("rounds to 1 % of f(x0)")
    fig.savefig(file, dpi=110)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--log", type=Path, default=Path("runs/speedup.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("bench/RESULTS-speedup.md"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    done = measure(chosen.seeds, chosen.log)
    grids = {name: grid(name, done, chosen.seeds) for name in EXCHANGES}
    table = tuned(done, chosen.seeds)
    picture = chosen.out.with_name(chosen.out.stem.removeprefix("RESULTS-") + ".png")
    plot(grids, picture)
    about = ran_on()
    about_seeds = f"seeds 0 to {chosen.seeds - 1}, mean +- standard deviation"
    more = "" if chosen.seeds == 3 else f" --seeds {chosen.seeds}"
    lines = [
        "# Linear speed-up: rounds to the target against N and H",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, `python bench/speedup.py{more}`, "
        f"{about_seeds}. {about}.",
        "",
        f"Quadratic, d = {D}, lambda in [.5, 1], x0 = 1, gradient noise N(0, {NOISE:g}/d I) a "
        f"worker, step size m * {STEP_SIZE:g} N, target {TARGET:g} f(x0) at the mean model; "
        f"{OPERATOR!r}, feedback off. The rounds run the library's exchanges in lock-step, frames "
        "and all. "
        "Slopes are least squares on logarithms, of all cells together where no line is named.",
        "",
        f"![rounds against N and against H]({picture.name})",
        "",
    ]
    for name, g in grids.items():
        lines += [
            f"## (a) {name}, m = 1",
            "",
            *grid_table(g),
            "",
            f"All cells together: slope {told(g.slope_N)} in N, {told(g.slope_H)} in H (+-: the "
            "standard deviation over seeds, each fitted by itself).",
            "",
        ]
    lines += [
        "The mean over workers of f(x_i), in terms of f at the mean model, on arrival:",
        "",
        *apart_table(done, chosen.seeds),
        "",
        f"## (b) ring, N = {TUNED_N}: the step size, m * {STEP_SIZE:g} N, tuned for each H",
        "",
        "Rounds, mean over seeds; never: some seed had not arrived after 1.6 times the rounds of "
        "m = 1.",
        "",
        *tuned_table(table),
        "",
        "## Goals",
        "",
        *verdict(grids, table),
        "",
    ]
    text = "\n".join(lines)
    publish(text, chosen.out)


if __name__ == "__main__":
    main()
