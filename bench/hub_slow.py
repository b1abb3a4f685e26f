"""A worker ten times slower than the rest does not slow the others' updates per second.

Three workers learn the digits through a hub; two sleep 50 ms at each step. The third sleeps as
long as they do, or ten times as long, in turn; the others' rates are compared.

    python bench/hub_slow.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean

from published import publish

from thinwire.cli.demo_hub import demo_settings
from thinwire.cli.demo_train import save_digits
from thinwire.cli.hub_gang import HubGang
from thinwire.cli.hub_worker import HubJob, WorkerJob
from thinwire.hub.dial import Dial
from thinwire.runs import ran_on

PAUSE, H, GOAL = 0.05, 4, 0.95


def counts(gang: HubGang) -> dict[str, int]:
    return {w["name"]: w["sequence"] for w in Dial(gang.address).status()["workers"]}


def rates(seed: int, factor: float, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="thinwire-slow-") as folder:
        data = f"{folder}/digits.npz"
        save_digits(data, seed)
        settings = replace(demo_settings(seed), H=H).as_dict()
        job = HubJob(settings, f"{folder}/state", "127.0.0.1:0", f"{folder}/log", seed)
        jobs = [
            WorkerJob(f"w{r}", "", data, r, 3, seed, 0.1, PAUSE * (factor if r == 2 else 1.0))
            for r in range(3)
        ]
        with HubGang(job, jobs) as gang:
            gang.start_hub()
            for worker in jobs:
                gang.start_worker(worker.name)
            while len(before := counts(gang)) < 3 or min(before.values()) < 2:
                time.sleep(0.1)
            began = time.monotonic()
            time.sleep(seconds)
            after, took = counts(gang), time.monotonic() - began
            gang.stop_workers()
            gang.stop_hub()
    return {name: (after[name] - before[name]) / took for name in after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("bench/RESULTS-hub_slow.md"))
    chosen = parser.parse_args()
    rows, ratios = [], []
    for turn in range(chosen.turns):
        # In turns, so that what else the machine does weighs on both alike.
        order = (1.0, 10.0) if turn % 2 == 0 else (10.0, 1.0)
        found = {factor: rates(turn, factor, chosen.seconds) for factor in order}
        equal, slowed = found[1.0], found[10.0]
        others = [mean(r[name] for name in ("w0", "w1")) for r in (equal, slowed)]
        ratios.append(others[1] / others[0])
        figures = (*others, slowed["w2"], ratios[-1])
        rows.append(f"| {turn} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |")
        print(rows[-1], flush=True)
    met = "met" if mean(ratios) >= GOAL else "MISSED"
    about = ran_on()
    text = "\n".join(
        [
            "# One slow worker among three",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, `python bench/hub_slow.py`, seeds 0 to "
            f"{chosen.turns - 1}, {chosen.seconds:g} s each, H = {H}. {about}.",
            "",
            "| seed | others, third as fast: updates/s each | others, third ten times slower | "
            "the third | ratio |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Mean ratio {mean(ratios):.3f}; goal at least {GOAL}: {met}.",
            "",
        ]
    )
    publish(text, chosen.out)


if __name__ == "__main__":
    main()
