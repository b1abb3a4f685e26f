"""The simulator's seconds a round beside netlab's, and the planner's beside a published grid.

    python bench/netlab/predict.py                 # every method and rate; needs root
    python bench/netlab/predict.py --published     # only the published grid; needs nothing

predicted = software + talk: software is the same round on the same hosts, unshaped, measured;
talk is one round in virtual time over the rate. Each cell stays in --runs and is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from lab import Lab
from rounds import METHODS

from thinwire import units
from thinwire.cli.output import write_atomically
from thinwire.cli.signals import Interrupted, heeded
from thinwire.errors import ThinwireError
from thinwire.flat import Spans
from thinwire.link import Link
from thinwire.virtual import Compute, Method, Sizes, run_sizes

RATES = ("50mbit", "100mbit", "1gbit")
NEAR = 0.15
PUBLISHED = {
    "1 Gbit/s": {1: 1.7, 8: 12.4, 32: 36.0, 128: 71.5},
    "50 Mbit/s": {1: 0.07, 8: 0.55, 32: 2.4, 128: 11.6},
}
"""Utilisation in percent of torchft with torchtitan, 4 GPUs over TCP, by H."""


def talk(method: str, params: int, hosts: int, rate: str) -> float:
    """Returns the seconds of one round's frames over lines of that rate."""
    preset = METHODS[method]
    sizes = Sizes(preset["compressor"], params if params > 1 << 21 else Spans.of(params))
    what = Method(preset["exchange"], sizes, 1)
    return run_sizes(what, [Link(units.rate(rate))] * hosts, 1, Compute(0.0)).now


def measured(method: str, params: int, hosts: int, rate: str) -> float:
    with tempfile.TemporaryDirectory(prefix="predict-") as folder:
        out = Path(folder) / "out.json"
        rounds = Path(__file__).with_name("rounds.py")
        command = [str(rounds), "--method", method, "--params", str(params), "--out", str(out)]
        with Lab(hosts, None if rate == "unlimited" else units.rate(rate)) as lab:
            lab.job(command, {}, torchrun=False)
        return float(json.loads(out.read_text())["seconds"])


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
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", nargs="*", default=RATES)
    parser.add_argument("--params", type=int, default=2_000_000)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--runs", type=Path, default=Path("bench/netlab/runs"))
    said = parser.parse_args()
    if said.published:
        print(published())
        return 0
    said.runs.mkdir(parents=True, exist_ok=True)
    lines = ["| method | rate | software s | talk s | predicted s | measured s | off by | |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    try:
        with heeded():
            for method in said.methods:
                found = {}
                for rate in ("unlimited", *said.rates):
                    stem = f"round-{method.replace(' ', '_')}-{said.params}-{said.hosts}-{rate}"
                    file = said.runs / f"{stem}.json"
                    if not file.exists():
                        seconds = measured(method, said.params, said.hosts, rate)
                        write_atomically(file, json.dumps({"seconds": seconds}).encode())
                    found[rate] = float(json.loads(file.read_text())["seconds"])
                for rate in said.rates:
                    software = found["unlimited"]
                    line = talk(method, said.params, said.hosts, rate)
                    off = (software + line) / found[rate] - 1
                    seconds = (software, line, software + line, found[rate])
                    columns = [method, rate, *(f"{t:.3f}" for t in seconds), f"{off:+.0%}"]
                    columns.append("met" if abs(off) <= NEAR else "missed")
                    lines.append(f"| {' | '.join(columns)} |")
    except Interrupted as stop:
        print(f"predict: {'; '.join(stop.notes)}; the cells so far are kept", file=sys.stderr)
        return stop.code
    except ThinwireError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
