"""Every kernel beside a copy and plain torch, at four sizes; writes RESULTS-kernels.md.

    python bench/kernels.py [--sizes resnet50] [--threads 1,2] [--repeats 7]

The table is `thinwire bench kernels`, with the goals beside it. Ratios are medians of one run;
quote them from an otherwise idle machine. All sizes together take about six minutes.
"""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from thinwire.cli.bench_kernels import measure
from thinwire.runs import ran_on

SEED = 0
GOALS = {
    "QSGD 4-bit, l2": 1.6,
    "QSGD 4-bit, max": 1.6,
    "unpack and accumulate, 4-bit": 0.8,
    "Sign: norm, quantize, pack": 1.2,
    "top-k, 0.1 %": 1.5,
    "top-k, 1 %": 3.0,
    "top-k, 161 tensors, k = min(d, 1000)": 2.5,
    "top-k, 1 %, all equal": 6.0,
    "whole step: TopK 1 % >> 4-bit, framed": 6.0,
}
"""At most so many copies, at ResNet-50's 25,557,032 entries and one thread."""


def row(r: dict[str, Any], goals: dict[str, float]) -> str:
    peer, least = r["torch_seconds"], r["entropy_bytes"]
    goal = goals.get(r["op"])
    cells = (
        r["op"],
        str(r["threads"]),
        f"{1e3 * r['seconds']:.2f}",
        f"{r['seconds'] / r['copy_seconds']:.2f}",
        "" if goal is None else f"{goal:g}",
        "" if peer is None else f"{peer / r['seconds']:.1f}",
        "" if r["bytes"] is None else f"{r['bytes']:,}",
        "" if least is None else f"{100 * (r['bytes'] / least - 1):+.1f} %",
    )
    return "| " + " | ".join(cells) + " |"


def compared(seconds: dict[tuple[str, str, int], float]) -> list[str]:
    """Returns the table of what more threads gain: times faster than one, at each size."""
    sizes = list(dict.fromkeys(name for name, _, _ in seconds))
    several = sorted({threads for _, _, threads in seconds} - {1})
    columns = [(name, n) for name in sizes for n in several]
    if not columns or not any(threads == 1 for _, _, threads in seconds):
        return []
    lines = ["", "## Several threads beside one: times faster", ""]
    lines += ["| operation | " + " | ".join(f"{name}, {n} threads" for name, n in columns) + " |"]
    lines += ["|---|" + "---|" * len(columns)]
    for op in dict.fromkeys(op for _, op, _ in seconds):
        gains = [
            f"{seconds[name, op, 1] / seconds[name, op, n]:.2f}"
            if {(name, op, 1), (name, op, n)} <= seconds.keys()
            else ""
            for name, n in columns
        ]
        if any(gains):
            lines.append(f"| {op} | " + " | ".join(gains) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1e5,1e6,resnet50,gpt2")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS-kernels.md"))
    options = parser.parse_args()
    about = ran_on()
    lines = [
        "# Every kernel beside a copy and plain torch",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, `python bench/kernels.py --sizes {options.sizes} "
        f"--threads {options.threads} --repeats {options.repeats}`, seed {SEED}. {about}.",
        "",
        "Medians. copies: times a `y.copy_(x)` of the same vector, run in turn with it; torch: how",
        "many times slower plain torch is; above: bytes beside the entropy. Vectors are N(0, 1).",
        "With several threads each timing follows a rest, since torch's own go on looking for work",
        "for some ms after an operation, on a core that would be missing.",
    ]
    seconds: dict[tuple[str, str, int], float] = {}
    for name in options.sizes.split(","):
        first = True
        for threads in map(int, options.threads.split(",")):
            for r in measure(name, threads, options.repeats, SEED):
                if first:
                    lines += ["", f"## {name}, {r['elements']:,} entries", ""]
                    lines += [
                        "| operation | threads | ms | copies | goal | torch | bytes | above |"
                    ]
                    lines += ["|---|---|---|---|---|---|---|---|"]
                    first = False
                seconds[name, r["op"], threads] = r["seconds"]
                lines.append(row(r, GOALS if (name, threads) == ("resnet50", 1) else {}))
                print(lines[-1], flush=True)
    lines += compared(seconds)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
