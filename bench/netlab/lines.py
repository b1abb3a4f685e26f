"""How much of a line a round uses, and what a round costs where the line is no matter.

    python bench/netlab/lines.py            # 25.6 M parameters, 4 hosts, 100 Mbit/s; and loopback
    python bench/netlab/lines.py --params 1000000 --rounds 1       # does it work here?

Writes lines.md in --runs, which `peers.py --all` takes into RESULTS.md. Needs root.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import jobs
from lab import Lab
from rounds import ALL_REDUCE

from thinwire import units
from thinwire.cli.output import write_atomically
from thinwire.cli.signals import ended

HOSTS = 4
RATE = "100mbit"
SHAPED = ("ring", "ring hops", "server 8 bits", "gather 8 bits")
LOOPBACK = (ALL_REDUCE, "delegate", "exact ring", "vanilla", "exact gather")
GOALS = {"ring": 1.12, "ring hops": 1.12, "server 8 bits": 1.12, "gather 8 bits": 1.12,
         "delegate": 1.25, "exact ring": 3.0}  # fmt: skip
ROUNDS = Path(__file__).with_name("rounds.py")
Results = list[dict[str, Any]]


def in_lab(arguments: list[str], rate: str, burst: float | None = None) -> Results:
    """Returns what rounds.py says of its methods on shaped hosts; see `Lab`."""
    with tempfile.TemporaryDirectory(prefix="rounds-") as folder:
        out = Path(folder) / "out.json"
        bits = None if rate == "unlimited" else units.rate(rate)
        with Lab(HOSTS, bits, burst) as lab:
            lab.job([str(ROUNDS), *arguments, "--out", str(out)], {}, torchrun=False)
        found: Results = json.loads(out.read_text())
        return found


def on_loopback(arguments: list[str]) -> Results:
    """Returns the same of as many processes on this machine's loopback, given what torchrun gives.

    Raises:
        JobFailed: one of them failed.
    """
    with tempfile.TemporaryDirectory(prefix="rounds-") as folder:
        out, port = Path(folder) / "out.json", _free_port()
        command = [sys.executable, str(ROUNDS), *arguments, "--out", str(out)]
        with jobs.together() as running:
            for rank in range(HOSTS):
                given = jobs.variables(rank, HOSTS, "127.0.0.1", port)
                running.append(jobs.start(command, {**given, "GLOO_SOCKET_IFNAME": "lo"}))
            jobs.wait(running)
        found: Results = json.loads(out.read_text())
        return found


def table(shaped: Results, loopback: Results) -> str:
    """Returns both parts in Markdown, goals first."""
    rate = units.rate(RATE)
    lines = [
        f"## Line use: a round of {shaped[0]['params'] / 1e6:g} M parameters, {HOSTS} hosts, "
        f"{RATE}",
        "",
        "Framed is what the busiest line carries in one round, a master's both ways, for it "
        "answers when it has heard all. `ring` is the form that `Ring()` chooses, two-phase, and "
        "`ring hops` the paper's own. Seconds: the slowest rank's, median of "
        f"{shaped[0]['rounds']} rounds.",
        "",
        "| exchange | framed MB | at line rate, s | measured, s | ratio | goal | |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in shaped:
        least, took = 8 * r["busiest"] / rate, r["times"]["1"]["sync"]
        lines.append(
            f"| {r['method']} | {r['busiest'] / 1e6:.2f} | {least:.3f} | {took:.3f} "
            f"| {took / least:.3f} | {_goal(r['method'], took / least)} |"
        )
    base = loopback[0]["times"]["1"]["sync"]
    lines += [
        "",
        f"## Loopback, unshaped: a round of {loopback[0]['params'] / 1e6:g} M parameters, "
        f"{HOSTS} processes, float32",
        "",
        "`delegate` is `vanilla(delegate=True)`: the replicas agree to the last bit, but not with "
        "a simulation, for the engine sums in its own order. The others fold in rank order: "
        "`vanilla` by a master, `exact ring` each rank one part of the vector.",
        "",
        "| round | seconds | x torch's all_reduce | goal | |",
        "|---|---|---|---|---|",
    ]
    for r in loopback:
        took = r["times"]["1"]["sync"]
        goal = _goal(r["method"], took / base)
        lines.append(f"| {r['method']} | {took:.3f} | {took / base:.2f} | {goal} |")
    return "\n".join(lines) + "\n"


def _goal(method: str, ratio: float) -> str:
    goal = GOALS.get(method)
    if goal is None:
        return "- | "
    return f"<= {goal} | {'held' if ratio <= goal else '**MISSED**'}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Line use, and rounds over loopback.")
    parser.add_argument("--params", type=int, default=25_600_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/netlab"))
    said = parser.parse_args()
    common = ["--params", str(said.params), "--rounds", str(said.rounds), "--apart"]

    def work() -> None:
        shaped = in_lab([*common, "--methods", *SHAPED], RATE)
        loopback = on_loopback([*common, "--methods", *LOOPBACK])
        said.runs.mkdir(parents=True, exist_ok=True)
        text = table(shaped, loopback)
        write_atomically(said.runs / "lines.md", text.encode())
        print(text)

    return ended("lines", work)


if __name__ == "__main__":
    sys.exit(main())
