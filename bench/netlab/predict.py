"""The simulator's and the planner's seconds a round beside netlab's, and a published grid.

    python bench/netlab/predict.py                 # every method and rate; needs root
    python bench/netlab/predict.py --published     # only the published grid; needs nothing

A round is predicted in virtual time: its frames over lines of that rate, and what the ranks compute
between their turns, on as many cores as this machine has. How long local steps and turns take on a
core, and a small frame's way, are measured in the same run, for a shared machine is not as fast in
the next; when what is said leaves, waits, arrives and is waited for is the simulator's. The planner
is told what `plan --measure` would tell it, and predicts rounds that follow each other freely. What
was measured of a method at a rate stays in --runs and is not measured again. Writes predict.md
there, which `peers.py --all` takes into RESULTS.md.
"""

from __future__ import annotations

import argparse
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
from thinwire.plan import Coding, Cost, Job, Option, cost
from thinwire.virtual import Busy, Cores, Place, Program, Sizes, VirtualTime, sized_round

RATES = ("50mbit", "100mbit", "1gbit")
HS = (1, 8)
HOSTS = 4
NEAR = 0.15
BURST = 0.001
"""Seconds of a line's bytes that pass at once: what a model of its rate knows nothing of."""
MEASURED = ("vanilla", "exact ring", "ring", "ring hops", "gossip", "server", "gather",
            "server 8 bits", "gather 8 bits")  # fmt: skip
PUBLISHED = {
    "1 Gbit/s": {1: 1.7, 8: 12.4, 32: 36.0, 128: 71.5},
    "50 Mbit/s": {1: 0.07, 8: 0.55, 32: 2.4, 128: 11.6},
}
"""Utilisation in percent of torchft with torchtitan, 4 GPUs over TCP, by H."""


def modelled(
    there: dict[str, Any], link: Link, steps: float, work: list[list[float]], rounds: int = 1
) -> float:
    """Returns the seconds of so many rounds in virtual time, which all ranks begin together.

    Args:
        there: what was measured of the method.
        link: of each rank.
        steps: seconds on a core of a round's local steps.
        work: the same of each rank in the round itself: up to the end of each turn, after the last,
            and of the engine's own threads.
        rounds: how many.
    """
    preset, params = METHODS[there["method"]], there["params"]
    sizes = Sizes(preset["compressor"], params if params > 1 << 21 else Spans.of(params))
    clock: list[VirtualTime[None]] = []
    cores = Cores(os.cpu_count())

    def program(rank: int) -> Program[None]:
        *turns, last, engine = work[rank]
        # In the first round some say what they do not say again.
        for round in range(1, 1 + rounds):
            yield Busy(steps)
            talk = sized_round(preset["exchange"], Place(rank, HOSTS, round, 0, sizes))
            answer = None
            for seconds in turns:
                ask = talk.send(answer)
                yield Busy(seconds)
                # The engine's threads take a core, but nobody waits for them.
                cores.serve(clock[0].now, engine / len(turns))
                answer = yield ask
            yield Busy(last)

    clock.append(VirtualTime([program(rank) for rank in range(HOSTS)], link, cores=cores))
    clock[0].run()
    return clock[0].now


def freely(there: dict[str, Any], link: Link, steps: float, work: list[list[float]]) -> float:
    """Returns the seconds of one of many rounds that follow each other; see `modelled`."""
    few, many = (modelled(there, link, steps, work, rounds) for rounds in (2, 10))
    return (many - few) / 8


def planned(there: dict[str, Any], link: Link, H: int) -> tuple[float, float]:
    """Returns the planner's seconds of a round of a method, and those of coding in it.

    Args:
        there: what was measured of it.
        link: of each rank.
        H: local steps of a round.
    """
    method, cores = there["method"], os.cpu_count() or 1
    option = Option(method, "{H}", {**METHODS[method], "H": H}, "")
    coding = {method: Coding(*there["coding"])}
    step = there["step"] * max(1.0, HOSTS / cores)
    found = cost(option, Job(there["params"], step, HOSTS, link, coding=coding, cores=cores))
    return found.seconds(H, step), found.code


def published() -> str:
    """Returns the published grid beside the planner's, for local SGD by all-reduce.

    Neither the model's size nor its step is published: for any model the step is chosen that has
    the cell of H = 1 at 1 Gbit/s. All others follow.
    """
    option = Option("local SGD, all-reduce", "", METHODS["delegate"], "")

    def costs(bits: float, step: float) -> Cost:
        return cost(option, Job(1_000_000_000, step, HOSTS, Link(bits)))

    first = PUBLISHED["1 Gbit/s"][1] / 100
    step = costs(1e9, 1.0).talk * first / (1 - first)
    lines = ["| rate | H | published | planner's |", "|---|---|---|---|"]
    for bits, (rate, grid) in zip((1e9, 5e7), PUBLISHED.items(), strict=True):
        found = costs(bits, step)
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
    rows: list[str] = []
    near = {(who, how): 0 for who in ("simulator", "planner") for how in ("round", "freely")}
    for method in said.methods:
        for rate in said.rates:
            there = measured(said, rate)[method]
            work, link = there["work"], Link(units.rate(rate), there["latency"])
            line = modelled(there, link, 0.0, [[0.0] * len(r) for r in work])
            for H in HS:
                times, steps = there["times"][str(H)], H * there["step"]
                by_planner, code = planned(there, link, H)
                found = {
                    ("simulator", "round"): modelled(there, link, steps, work),
                    ("simulator", "freely"): freely(there, link, steps, work),
                    ("planner", "round"): by_planner,
                    ("planner", "freely"): by_planner,
                }
                row = f"| {method} | {rate} | {H} | {steps:.3f} | {line:.3f} | {code:.3f} "
                for how in ("round", "freely"):
                    row += f"| {times[how]:.3f} "
                    for who in ("simulator", "planner"):
                        off = found[who, how] / times[how] - 1
                        near[who, how] += abs(off) <= NEAR
                        row += f"| {found[who, how]:.3f} {_judged(off)} "
                rows.append(f"{row}|")
    return "\n".join(
        [
            f"## Predictions: seconds of a round, {said.params / 1e6:g} M parameters, {HOSTS} "
            "hosts",
            "",
            f"Goal: each within {NEAR:.0%}. Of rounds that all begin together: the simulator's "
            f"{near['simulator', 'round']} of {len(rows)}, the planner's "
            f"{near['planner', 'round']}; of rounds that follow each other freely: "
            f"{near['simulator', 'freely']} and {near['planner', 'freely']}. The planner has one "
            "prediction for both.",
            "",
            f"Measured in the same run: what steps and rounds take on a core, {HOSTS} ranks on "
            f"{os.cpu_count()} cores, and the latency of a small frame, as `plan --measure` "
            "measures them. Predicted in virtual time: when what is said leaves, waits for a line, "
            "arrives, and waits for a core. The simulator is told what each rank computes up to "
            "the end of each turn, the planner what precedes the first answer and what each byte "
            "heard costs. Steps: seconds on a core of a round's local steps. Talk: a round's "
            "frames in virtual time, by themselves. Code: what coding adds to a round, as the "
            "planner has it. "
            f"Medians of 5 to 40 rounds. Buckets of {BURST * 1e3:g} ms at each rate.",
            "",
            "| exchange | rate | H | steps | talk | code | together, measured | simulator | "
            "planner | freely, measured | simulator | planner |",
            "|" + "---|" * 12,
            *rows,
            "",
            "A published grid of utilisation (torchft with torchtitan, 4 GPUs over TCP) beside "
            "the planner's:",
            "",
            published(),
            "",
        ]
    )


def _judged(off: float) -> str:
    return f"{off:+.0%}" if abs(off) <= NEAR else f"**{off:+.0%}**"


def measured(said: argparse.Namespace, rate: str) -> dict[str, dict[str, Any]]:
    """Returns what rounds.py says of each method at a rate; runs those of which nothing is kept."""
    file = said.runs / f"predict-{said.params}-{rate}.json"
    found = json.loads(file.read_text()) if file.exists() else []
    # What was measured by an older form of rounds.py says less.
    found = [result for result in found if "coding" in result]
    kept = {result["method"] for result in found}
    lacking = [method for method in said.methods if method not in kept]
    if lacking:
        print(f"{rate}: {', '.join(lacking)} ...", flush=True)
        hs = ["--hs", *map(str, HS), "--latency", "--freely"]
        hs += ["--rounds", str(said.rounds), "--seconds", str(said.seconds)]
        common = ["--params", str(said.params), *hs, "--methods", *lacking]
        found += in_lab(common, rate, BURST)
        write_atomically(file, json.dumps(found).encode())
    return {result["method"]: result for result in found}


if __name__ == "__main__":
    sys.exit(main())
