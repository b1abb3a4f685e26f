"""The simulator's seconds a round beside netlab's, and the planner's beside a published grid.

    python bench/netlab/predict.py                 # every method and rate; needs root
    python bench/netlab/predict.py --published     # only the published grid; needs nothing

A round is predicted in virtual time: its frames over lines of that rate, and what the ranks compute
between their turns, on as many cores as this machine has. How long local steps and turns take on a
core, and a small frame's way, are measured in the same run, for a shared machine is not as fast in
the next; when what is said leaves, waits, arrives and is waited for is the simulator's. What was
measured of a method at a rate stays in --runs and is not measured again. Writes predict.md there,
which `peers.py --all` takes into RESULTS.md.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import sys
from pathlib import Path
from typing import Any

from lines import in_lab
from rounds import METHODS

from thinwire import units
from thinwire.cli.output import write_atomically
from thinwire.cli.signals import ended
from thinwire.flat import Spans
from thinwire.link import Link
from thinwire.plan import Cost, Job, Option, cost
from thinwire.virtual import Busy, Place, Program, Sizes, VirtualTime, sized_round

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


class Cores:
    """The cores of a machine, which its ranks share: who comes first is served first.

    Args:
        n: how many.
    """

    def __init__(self, n: int) -> None:
        self._free = [0.0] * n

    def busy(self, now: float, seconds: float) -> Busy:
        """Returns how long a rank that asks now is busy with that, waiting for a core in it."""
        ends = max(now, heapq.heappop(self._free)) + seconds
        heapq.heappush(self._free, ends)
        return Busy(ends - now)


def modelled(method: str, params: int, link: Link, work: list[list[float]]) -> float:
    """Returns the seconds of one round in virtual time.

    Args:
        method: what it says.
        params: entries.
        link: of each rank.
        work: seconds on a core of each rank: up to the end of each turn, after the last, and of
            the engine's own threads.
    """
    preset, cores = METHODS[method], Cores(os.cpu_count() or 1)
    sizes = Sizes(preset["compressor"], params if params > 1 << 21 else Spans.of(params))
    clock: list[VirtualTime[None]] = []

    def program(rank: int) -> Program[None]:
        # In the first round some say what they do not say again.
        talk = sized_round(preset["exchange"], Place(rank, HOSTS, 1, 0, sizes))
        *turns, last, engine = work[rank]
        answer = None
        for seconds in turns:
            ask = talk.send(answer)
            yield cores.busy(clock[0].now, seconds)
            # The engine's threads take a core, but nobody waits for them.
            cores.busy(clock[0].now, engine / len(turns))
            answer = yield ask
        yield cores.busy(clock[0].now, last)

    clock.append(VirtualTime([program(rank) for rank in range(HOSTS)], link))
    clock[0].run()
    return clock[0].now


def published() -> str:
    """Returns the published grid beside the planner's, for local SGD by all-reduce.

    Neither the model's size nor its step is published: for any model the step is chosen that has
    the cell of H = 1 at 1 Gbit/s. All others follow.
    """
    option = Option("local SGD, all-reduce", "", METHODS["delegate"], "")

    def planned(bits: float, step: float) -> Cost:
        return cost(option, Job(1_000_000_000, step, HOSTS, Link(bits)))

    first = PUBLISHED["1 Gbit/s"][1] / 100
    step = planned(1e9, 1.0).talk * first / (1 - first)
    lines = ["| rate | H | published | planner's |", "|---|---|---|---|"]
    for bits, (rate, grid) in zip((1e9, 5e7), PUBLISHED.items(), strict=True):
        found = planned(bits, step)
        for H, share in grid.items():
            note = " (fitted)" if (bits, H) == (1e9, 1) else ""
            ours = 100 * found.utilisation(H, step)
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
    rows, near = [], 0
    for method in said.methods:
        for rate in said.rates:
            there = measured(said, rate)[method]
            work, link = there["work"], Link(units.rate(rate), there["latency"])
            line = modelled(method, said.params, link, [[0.0] * len(r) for r in work])
            round = modelled(method, said.params, link, work)
            computed = max(sum(own[:-1]) for own in work)
            for H in HS:
                steps, sync = there["times"][str(H)].values()
                off = (steps + round) / (steps + sync) - 1
                near += abs(off) <= NEAR
                rows.append(
                    f"| {method} | {rate} | {H} | {steps:.3f} | {computed:.3f} "
                    f"| {line:.3f} | {round:.3f} | {steps + round:.3f} | {steps + sync:.3f} "
                    f"| {off:+.0%} | {'held' if abs(off) <= NEAR else '**MISSED**'} |"
                )
    return "\n".join(
        [
            f"## Predictions: seconds of a round, {said.params / 1e6:g} M parameters, {HOSTS} "
            "hosts",
            "",
            f"Goal: each within {NEAR:.0%}. {near} of {len(rows)} are. Predicted: steps + round. "
            "Computed: the seconds on a core that the busiest rank's round takes. Talk: the frames "
            "of a round in virtual time over lines of that rate. Round: both together, with what "
            f"each rank computes up to the end of each turn, on {os.cpu_count()} cores. Steps, "
            "what is computed and the latency of a small frame are measured in the same run, "
            "the latter as `plan --measure` does. All ranks begin each round together, which the "
            "planner's do not: its rounds follow each other freely, and it is not compared here. "
            "Medians of 5 to 40 rounds.",
            "",
            "| exchange | rate | H | steps | computed | talk | round | predicted s | measured s "
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


def measured(said: argparse.Namespace, rate: str) -> dict[str, dict[str, Any]]:
    """Returns what rounds.py says of each method at a rate; runs those of which nothing is kept."""
    file = said.runs / f"predict-{said.params}-{rate}.json"
    found = json.loads(file.read_text()) if file.exists() else []
    kept = {result["method"] for result in found}
    lacking = [method for method in said.methods if method not in kept]
    if lacking:
        print(f"{rate}: {', '.join(lacking)} ...", flush=True)
        hs = ["--hs", *map(str, HS), "--apart", "--latency"]
        hs += ["--rounds", str(said.rounds), "--seconds", str(said.seconds)]
        common = ["--params", str(said.params), *hs, "--methods", *lacking]
        found += in_lab(common, rate)
        write_atomically(file, json.dumps(found).encode())
    return {result["method"]: result for result in found}


if __name__ == "__main__":
    sys.exit(main())
