"""Where gossip comes to rest on a quadratic: what is quantized, when it mixes, what is corrected.

f_i(x) = 1/2 sum lambda (x - c_i)^2, d = 256, lambda in [.5, 1], N = 8 on a ring graph, H = 5 exact
steps of 0.1 a round, mixing after them; x0 = 0 and x* = mean c_i, |x*| about 16. Either all c_i are
equal, or they lie N(0, I) around x*. After 150 rounds of descent the error is the root mean square
over 50 more: of the mean model, and of the workers, both relative to |x*|.

Mixing before or after the local steps, and with the correction: the same, 8 bits, but each worker's
curvatures are its own, uniform in [.1, 1], x* the common minimum, on four graphs and with three
step sizes. There the mean model itself is off, by as much as the workers are apart.

    python bench/gossip_floor.py

The table is written to `--out` with date, machine, versions and seeds; it takes some minutes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean

import torch
from published import publish
from torch import Tensor

from thinwire.compress import QSGD, Compressor, Identity
from thinwire.errors import NonFiniteError
from thinwire.exchange import DPSGD, Exchange, Gossip, Here
from thinwire.exchange.driver import lockstep
from thinwire.flat import Spans
from thinwire.keys import Key
from thinwire.runs import ran_on
from thinwire.topology import Graph, Hypercube, RingGraph, Star, Topology
from thinwire.transport.base import Answer, Ask

D, N, H, STEP_SIZE, BEFORE, AFTER = 256, 8, 5, 0.1, 150, 50
OPERATORS: dict[str, Compressor] = {
    "exact": Identity(),
    **{
        f"{bits} bits": QSGD(bits=bits, norm="max", scale="none", bucket=1024, coding="fixed")
        for bits in (8, 4, 3, 2)
    },
}
GRAPHS: dict[str, Topology] = {
    "hypercube": Hypercube(),
    "ring graph": RingGraph(),
    "chain": Graph(tuple((i, i + 1) for i in range(N - 1))),
    "star": Star(),
}
STEP_SIZES = (0.05, 0.1, 0.3)
EIGHT = OPERATORS["8 bits"]
EXCHANGES: dict[str, Exchange] = {"differences (Gossip)": Gossip(), "models (DPSGD)": DPSGD()}


class Quiet:
    """Watches nothing."""

    def asked(self, ask: Ask, rank: int) -> None:
        """Does nothing."""

    def answered(self, ask: Ask, answer: Answer, rank: int) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class Rest:
    """Relative root-mean-square errors at rest; infinite where a run diverged."""

    mean_model: float
    workers: float


@dataclass(frozen=True)
class Problem:
    """f_i(x) = 1/2 sum_k lam[i, k] (x_k - centres[i, k])^2, and the minimum of their mean."""

    lam: Tensor
    centres: Tensor
    goal: Tensor
    seed: int


def quadratic(apart: bool, seed: int) -> Problem:
    draws = torch.Generator().manual_seed(seed)
    goal = torch.randn(D, generator=draws)
    around = torch.randn(N, D, generator=draws)
    lam = torch.linspace(0.5, 1.0, D).expand(N, D)
    return Problem(lam, goal + (around - around.mean(0)) * apart, goal, seed)


def uneven(seed: int) -> Problem:
    draws = torch.Generator().manual_seed(seed)
    lam = 0.1 + 0.9 * torch.rand(N, D, generator=draws)
    centres = torch.randn(N, D, generator=draws)
    return Problem(lam, centres, (lam * centres).sum(0) / lam.sum(0), seed)


def come_to_rest(
    exchange: Exchange, C: Compressor, problem: Problem, step_size: float = STEP_SIZE
) -> Rest:
    lam, centres, goal, seed = problem.lam, problem.centres, problem.goal, problem.seed
    spans, x = Spans.of(D), torch.zeros(N, D)

    def here(rank: int, round: int) -> Here:
        return Here(rank, N, round, Key(seed, round, rank), C, spans, 0)

    def error(of: Tensor) -> float:
        return float((of - goal).double().square().sum(-1).mean())

    mems = [exchange.init(here(rank, 0)) for rank in range(N)]
    middle, workers = 0.0, 0.0
    for round in range(BEFORE + AFTER):
        moved = x
        for _ in range(H):
            moved = moved - step_size * lam * (moved - centres)
        talks = [
            exchange.round(x[rank], x[rank] - moved[rank], mems[rank], here(rank, round))
            for rank in range(N)
        ]
        try:
            said = lockstep(talks, [Quiet()] * N)
        except NonFiniteError:
            return Rest(float("inf"), float("inf"))
        x = x - torch.stack([direction for direction, _ in said])
        mems = [mem for _, mem in said]
        if round >= BEFORE:
            middle += error(x.mean(0)) / AFTER
            workers += error(x) / AFTER
    size = float(goal.double().square().sum())
    return Rest((middle / size) ** 0.5, (workers / size) ** 0.5)


def table(apart: bool, seeds: int) -> tuple[list[str], dict[tuple[str, str], Rest]]:
    rests: dict[tuple[str, str], Rest] = {}
    lines = [
        "| what is quantized | " + " | ".join(OPERATORS) + " |",
        "|---|" + "---|" * len(OPERATORS),
    ]
    for name, exchange in EXCHANGES.items():
        cells = []
        for operator, C in OPERATORS.items():
            all_seeds = [come_to_rest(exchange, C, quadratic(apart, seed)) for seed in range(seeds)]
            rest = Rest(mean(r.mean_model for r in all_seeds), mean(r.workers for r in all_seeds))
            rests[name, operator] = rest
            cells.append(
                f"{rest.mean_model:.1e} / {rest.workers:.1e}"
                if rest.workers < 10
                else f"diverged ({rest.workers:.0e})"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines, rests


def found(rests: dict[tuple[str, str], Rest], what: str) -> list[str]:
    lines = []
    for operator in list(OPERATORS)[1:]:
        differences, models = (rests[name, operator].mean_model for name in EXCHANGES)
        floor = f"{differences:.1e}" if differences < 10 else "diverged"
        lines.append(
            f"| {what} | {operator} | {floor} | {models:.1e} | {models / differences:.0f} |"
        )
    return lines


def mixing_table(seeds: int) -> list[str]:
    lines = [
        "| graph | step | after | before | after, corrected | mean model, before / after |",
        "|---|---|---|---|---|---|",
    ]
    for name, graph in GRAPHS.items():
        ways = (Gossip(graph), Gossip(graph, "before"), Gossip(graph, correction=0.5))
        for eta in STEP_SIZES:
            rests = [[come_to_rest(w, EIGHT, uneven(s), eta) for s in range(seeds)] for w in ways]
            ratios = [b.mean_model / a.mean_model for a, b in zip(rests[0], rests[1], strict=True)]
            least = f"{min(ratios):.2f} to {max(ratios):.2f}" if max(ratios) < 1e3 else "diverged"
            lines.append(
                f"| {name} | {eta:g} | "
                + " | ".join(shown(some) for some in rests)
                + f" | {least} |"
            )
    return lines


def shown(rests: list[Rest]) -> str:
    if max(r.workers for r in rests) > 1e3:
        return "diverged"
    return f"{mean(r.mean_model for r in rests):.3f} / {mean(r.workers for r in rests):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/RESULTS-gossip_floor.md"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    equal, equal_rests = table(False, chosen.seeds)
    apart, apart_rests = table(True, chosen.seeds)
    mixings = mixing_table(chosen.seeds)
    about = ran_on()
    text = "\n".join(
        [
            "# Where gossip comes to rest: quantized differences against quantized models",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, `python bench/gossip_floor.py`, seeds 0 to "
            f"{chosen.seeds - 1}, means. {about}.",
            "",
            f"f_i(x) = 1/2 sum lambda (x - c_i)^2, d = {D}, lambda in [.5, 1], N = {N}, ring "
            f"graph, H = {H} exact steps of {STEP_SIZE} a round, mixing after them. Errors at rest "
            f"(root mean square over {AFTER} rounds after {BEFORE}), relative to |x*|: of the mean "
            "model / of the workers. Max norm, buckets of 1024, unbiased.",
            "",
            "## All workers have the same minimum",
            "",
            *equal,
            "",
            "## Minima N(0, I) apart",
            "",
            *apart,
            "",
            "The exact column's second figure is the disagreement that a constant step leaves, "
            "whatever is said.",
            "",
            "## Found",
            "",
            "| minima | operator | mean model, differences | mean model, models | ratio |",
            "|---|---|---|---|---|",
            *found(equal_rests, "the same"),
            *found(apart_rests, "apart"),
            "",
            "## Mixing before or after the local steps, and the correction",
            "",
            "Curvatures and minima differ between workers; 8 bits. The mean model / the workers. "
            "The last column is before over after, from the least to the most over seeds.",
            "",
            *mixings,
            "",
        ]
    )
    publish(text, chosen.out)


if __name__ == "__main__":
    main()
