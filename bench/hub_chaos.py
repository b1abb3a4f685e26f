"""Chaos: 200 random kills of workers and hub; the run ends as the calm one does, ledger equal.

Four workers learn the handwritten digits through a hub, each a process, until each has given as
many updates as asked for. In the chaotic run, every so many updates one of the workers (or, one
time in five, the hub) is killed with SIGKILL and started again at once.

    python bench/hub_chaos.py

Each run is one line of `--log`; a second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean
from typing import Any

from published import publish_goals

from thinwire.cli.demo_hub import accuracy_of, demo_settings, final_model
from thinwire.cli.demo_train import save_digits
from thinwire.cli.hub_gang import HubGang
from thinwire.cli.hub_worker import HubJob, WorkerJob
from thinwire.errors import TransportError
from thinwire.hub.dial import Dial
from thinwire.runs import ran_on

N, SEEDS, KILLS = 4, range(3), 200
HUB_SHARE = 0.2


def applied_of(gang: HubGang) -> int:
    try:
        return int(Dial(gang.address, patience=30.0).status()["applied"])
    except TransportError:
        return -1


def kill_one(gang: HubGang, draw: random.Random) -> str:
    alive = [name for name, process in gang.workers.items() if process.is_alive()]
    if not alive or draw.random() < HUB_SHARE:
        gang.kill_hub()
        gang.start_hub()
        return "hub"
    name = draw.choice(alive)
    gang.kill_worker(name)
    gang.start_worker(name)
    return name


def run(seed: int, kills: int, rounds: int) -> dict[str, Any]:
    draw, killed = random.Random(seed), {"hub": 0, "workers": 0}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="thinwire-chaos-") as folder:
        data = f"{folder}/digits.npz"
        save_digits(data, seed)
        job = HubJob(
            demo_settings(seed).as_dict(), f"{folder}/state", "127.0.0.1:0", f"{folder}/log", seed
        )
        jobs = [
            WorkerJob(
                f"w{rank}", "", data, rank, N, seed, 0.1, 0.003 * (1 + rank % 2),
                f"{folder}/w{rank}.pt", rounds,
            )
            for rank in range(N)
        ]  # fmt: skip
        with HubGang(job, jobs) as gang:
            gang.start_hub()
            for worker in jobs:
                gang.start_worker(worker.name)
            for number in range(1, kills + 1):
                due = number * N * rounds // (kills + 1)
                while applied_of(gang) < due:
                    if not any(process.is_alive() for process in gang.workers.values()):
                        raise SystemExit("the workers are gone before their updates are")
                    time.sleep(0.01)
                killed["hub" if kill_one(gang, draw) == "hub" else "workers"] += 1
            gang.wait_workers(300.0)
            gang.settled()
            status = Dial(gang.address).status()
            gang.stop_hub()
            sent, acknowledged = gang.ledger.counts()
        return {
            "seed": seed,
            "kills": kills,
            "rounds": rounds,
            "killed": killed,
            "sent": sent,
            "acknowledged": acknowledged,
            "applied": status["applied"],
            "accuracy": accuracy_of(final_model(Path(folder) / "state"), data, seed),
            "seconds": round(time.monotonic() - began, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--rounds", type=int, default=500, help="updates of each worker")
    parser.add_argument("--log", type=Path, default=Path("runs/hub_chaos.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("bench/RESULTS-hub_chaos.md"))
    chosen = parser.parse_args()
    chosen.log.parent.mkdir(parents=True, exist_ok=True)
    lines = chosen.log.read_text().splitlines() if chosen.log.exists() else []
    done = {(r["seed"], r["kills"], r["rounds"]): r for r in map(json.loads, lines)}
    for seed in SEEDS:
        for kills in (0, chosen.kills):
            if (seed, kills, chosen.rounds) in done:
                continue
            result = run(seed, kills, chosen.rounds)
            done[seed, kills, chosen.rounds] = result
            with chosen.log.open("a") as out:
                out.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)
    calm = [done[seed, 0, chosen.rounds] for seed in SEEDS]
    wild = [done[seed, chosen.kills, chosen.rounds] for seed in SEEDS]
    spread = max(r["accuracy"] for r in calm) - min(r["accuracy"] for r in calm)
    apart = mean(r["accuracy"] for r in wild) - mean(r["accuracy"] for r in calm)
    equal = all(r["sent"] == r["acknowledged"] == r["applied"] for r in (*calm, *wild))
    about = ran_on()
    rows = [
        f"| {r['seed']} | {r['kills']} | {r['killed']['workers']} / {r['killed']['hub']} | "
        f"{r['sent']} | {r['acknowledged']} | {r['applied']} | {r['accuracy']:.2%} | "
        f"{r['seconds']:.0f} |"
        for pair in zip(calm, wild, strict=True)
        for r in pair
    ]
    text = "\n".join(
        [
            "# 200 kills",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, `python bench/hub_chaos.py`, seeds "
            f"{SEEDS.start} to {SEEDS.stop - 1}. {about}.",
            "",
            f"{N} workers, digits (64-512-10, d = 38,410), SignTopK 2 % up and down, gaps in "
            f"[1, 8], {chosen.rounds} updates each. SIGKILL, then started again at once.",
            "",
            "| seed | kills | workers / hub | sent | acknowledged | applied | accuracy | seconds |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Ledgers {'equal' if equal else 'NOT EQUAL'} in all runs. Mean accuracy after kills "
            f"less that of the calm runs: {apart:+.2%}; the calm seeds' spread is {spread:.2%}: "
            f"{'met' if abs(apart) <= spread and equal else 'MISSED'}.",
            "",
        ]
    )
    publish_goals(text, chosen.out)


if __name__ == "__main__":
    main()
