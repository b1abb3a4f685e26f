"""A thousand workers with real frames, ten thousand with sizes: seconds, memory, bytes a worker.

    python bench/netlab/scale.py            # about three minutes; needs no root

Runs `thinwire simulate` as anyone would, and reads its JSON. Writes scale.md in --runs, which
`peers.py --all` takes into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from thinwire.cli.output import write_atomically
from thinwire.cli.signals import ended
from thinwire.errors import ThinwireError
from thinwire.runs import ran_on

GIB = 1 << 30
GOSSIP = ("--preset", "qprsgd_gossip", "--topology", "exponential")
REAL = ("--workers", "1000", *GOSSIP, "--rounds", "50")
SIZES = ("--workers", "10000", *GOSSIP, "--rounds", "50", "--params", "7850")
FLAT = {
    "gossip on a ring": ("--preset", "qprsgd_gossip", "--params", "7850"),
    "gossip, exponential graph": (*GOSSIP, "--params", "7850"),
    "8-bit ring all-reduce": ("--preset", "qprsgd_ring", "--params", "10000000"),
}
"""Methods whose bytes are laid side by side."""
COUNTS = (8, 64, 256)


def simulated(*options: str) -> dict[str, Any]:
    """Returns what `thinwire simulate` says it came to.

    Raises:
        ThinwireError: it ended with an error.
    """
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        out, log = Path(folder) / "out.json", Path(folder) / "log.jsonl"
        command = [sys.executable, "-m", "thinwire.cli", "simulate", *options]
        command += ["--json", str(out), "--log", str(log)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ThinwireError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
        (result,) = json.loads(out.read_text())["results"]
        found: dict[str, Any] = result
        return found


def large(name: str, options: tuple[str, ...], seconds: float) -> str:
    """Returns one line of the first table."""
    found = simulated(*options)
    took, peak = found["seconds_here"], found["peak_memory_bytes"]
    held = took <= seconds and peak <= GIB
    print(f"{name}: {took:.0f} s, {peak / GIB:.2f} GiB", flush=True)
    return (
        f"| {name} | {found['frames']:,} | {took:.1f} | {peak / GIB:.2f} "
        f"| <= {seconds:g} s, 1 GiB | {'held' if held else '**MISSED**'} |"
    )


def table() -> str:
    """Returns both tables in Markdown."""
    lines = [
        "## Many workers on one machine",
        "",
        f"`thinwire simulate`, 50 rounds of 8-bit gossip on an exponential graph, d = 7850, H as "
        f"the preset has it, start of Python in. {ran_on()}.",
        "",
        "| workers | frames | seconds here | peak memory, GiB | goal | |",
        "|---|---|---|---|---|---|",
        large("1,000, training, real frames", REAL, 180.0),
        large("10,000, sizes only", SIZES, 120.0),
        "",
        "Bytes that the busiest worker sends a round, by N. On a ring a worker speaks to two "
        "neighbours, whatever N, and on an exponential graph to nearly 2 log2 N; in a ring "
        "all-reduce it says 2 (N - 1) / N of the vector, and a header a frame.",
        "",
        "| method | d | " + " | ".join(f"N = {N}" for N in COUNTS) + " |",
        "|---|---|" + "---|" * len(COUNTS),
    ]
    for name, options in FLAT.items():
        each = [simulated(*options, "--workers", str(N), "--rounds", "1") for N in COUNTS]
        sent = " | ".join(f"{e['sent_by_the_busiest_and_round']:,.0f}" for e in each)
        lines.append(f"| {name} | {each[0]['params']:,} | {sent} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Many workers on one machine.")
    parser.add_argument("--runs", type=Path, default=Path("runs/netlab"))
    said = parser.parse_args()

    def work() -> None:
        said.runs.mkdir(parents=True, exist_ok=True)
        text = table()
        write_atomically(said.runs / "scale.md", text.encode())
        print(text)

    return ended("scale", work)


if __name__ == "__main__":
    sys.exit(main())
