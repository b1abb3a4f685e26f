"""The simulator's seconds a round beside netlab's, and the planner's beside a published grid.

    python bench/netlab/predict.py                 # every method and rate; needs root
    python bench/netlab/predict.py --published     # only the published grid; needs nothing

predicted = H steps + max(talk + coding, unshaped). Talk is one round in virtual time over the rate.
Coding is a round of as many workers in one process, over this machine's cores. Unshaped is a round
on the same hosts without a rate, where processes wait for each other and for cores: that passes
while frames are on a line. Each rate's measurement stays in --runs and is not made again. Writes
predict.md there, which `peers.py --all` takes into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from lines import in_lab
from rounds import METHODS, coded

from thinwire import units
from thinwire.cli.output import write_atomically
from thinwire.cli.signals import ended
from thinwire.flat import Spans
from thinwire.link import Link
from thinwire.virtual import Compute, Method, Sizes, run_sizes

RATES = ("50mbit", "100mbit", "1gbit")
HS = (1, 8)
HOSTS = 4
NEAR = 0.15
MEASURED = ("vanilla", "exact ring", "ring", "ring hops", "gossip", "server", "gather",
            "server 8 bits", "gather 8 bits")  # fmt: skip
PUBLISHED = {
    "1 Gbit/s": {1: 1.7, 8: 12.4, 32: 36.0, 128: 71.5},
    "50 Mbit/s": {1: 0.07, 8: 0.55, 32: 2.4, 128: 11.6},
}
"""Utilisation in percent of torchft with torchtitan, 4 GPUs over TCP, by H."""


def talk(method: str, params: int, rate: str) -> float:
    """Returns the seconds of one round's frames over lines of that rate."""
    preset = METHODS[method]
    sizes = Sizes(preset["compressor"], params if params > 1 << 21 else Spans.of(params))
    what = Method(preset["exchange"], sizes, 1)
    return run_sizes(what, [Link(units.rate(rate))] * HOSTS, 1, Compute(0.0)).now


def published() -> str:
    """Returns the published grid beside utilisation = H / (H + pause / step).

    Neither the model's size nor its step is published: pause / step is taken from one cell, H = 1
    at 1 Gbit/s, and is 20 times that at 50 Mbit/s.
    """
    ratio = 100 / PUBLISHED["1 Gbit/s"][1] - 1
    lines = ["| rate | H | published | planner's |", "|---|---|---|---|"]
    for times, (rate, grid) in zip((1, 20), PUBLISHED.items(), strict=True):
        for H, share in grid.items():
            ours = 100 * H / (H + times * ratio)
            note = " (fitted)" if (times, H) == (1, 1) else ""
            lines.append(f"| {rate} | {H} | {share:g} % | {ours:.3g} %{note} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Predictions beside measurements.")
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=MEASURED)
    parser.add_argument("--rates", nargs="*", default=RATES)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="more rounds, to fill them")
    parser.add_argument("--runs", type=Path, default=Path("runs/netlab"))
    said = parser.parse_args()
    if said.published:
        print(published())
        return 0

    def work() -> None:
        said.runs.mkdir(parents=True, exist_ok=True)
        text = table(said)
        write_atomically(said.runs / "predict.md", text.encode())
        print(text)

    return ended("predict", work, "the rates so far are kept")


def table(said: argparse.Namespace) -> str:
    """Measures what is not there yet, and returns predictions beside it, in Markdown."""
    free, codes = measured(said, "unlimited"), coding(said)
    rows, held = [], 0
    for method in said.methods:
        for rate in said.rates:
            line, there = talk(method, said.params, rate), measured(said, rate)[method]
            for H in HS:
                step = free[method][str(H)]["local"] / H
                alone, code = free[method]["1"]["sync"], codes[method] / cores()
                predicted = H * step + max(line + code, alone)
                took = there[str(H)]["local"] + there[str(H)]["sync"]
                off = predicted / took - 1
                held += abs(off) <= NEAR
                rows.append(
                    f"| {method} | {rate} | {H} | {H * step:.3f} | {line:.3f} | {code:.3f} "
                    f"| {alone:.3f} | {predicted:.3f} | {took:.3f} | {off:+.0%} | "
                    f"{'held' if abs(off) <= NEAR else '**MISSED**'} |"
                )
    return "\n".join(
        [
            f"## Predictions: seconds of a round, {said.params / 1e6:g} M parameters, {HOSTS} "
            "hosts",
            "",
            f"Goal: each within {NEAR:.0%}. {held} of {len(rows)} are. Predicted: steps + "
            "max(talk + coding, unshaped). Talk: one round in virtual time over lines of that "
            "rate. Steps and unshaped: measured on the same hosts without a rate. Coding: a round "
            f"of {HOSTS} workers in one process, over {cores()} cores. Medians of 5 to 40 rounds.",
            "",
            "| exchange | rate | H | steps | talk | coding | unshaped | predicted s | measured s "
            "| off | |",
            "|" + "---|" * 11,
            *rows,
            "",
            "A published grid of utilisation (torchft with torchtitan, 4 GPUs over TCP) beside "
            "the planner's:",
            "",
            published(),
            "",
        ]
    )


def cores() -> int:
    """Returns on how many cores the hosts' processes take turns."""
    return min(HOSTS, os.cpu_count() or 1)


def coding(said: argparse.Namespace) -> dict[str, float]:
    """Returns the seconds of a round of all workers in one process, by method."""
    file = said.runs / f"predict-{said.params}-coding.json"
    if not file.exists():
        found = {method: coded(method, said.params, HOSTS) for method in said.methods}
        write_atomically(file, json.dumps(found).encode())
    known: dict[str, float] = json.loads(file.read_text())
    return known


def measured(said: argparse.Namespace, rate: str) -> dict[str, dict[str, dict[str, float]]]:
    """Returns what each method's rounds took at a rate, by H."""
    file = said.runs / f"predict-{said.params}-{rate}.json"
    if not file.exists():
        print(f"{rate} ...", flush=True)
        hs = ["--hs", *map(str, HS), "--apart"]
        hs += ["--rounds", str(said.rounds), "--seconds", str(said.seconds)]
        common = ["--params", str(said.params), *hs, "--methods", *said.methods]
        found = in_lab(common, rate)
        write_atomically(file, json.dumps(found).encode())
    return {result["method"]: result["times"] for result in json.loads(file.read_text())}


if __name__ == "__main__":
    sys.exit(main())
