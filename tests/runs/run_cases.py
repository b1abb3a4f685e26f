"""Logs as runs leave them, made without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thinwire.runs import RunLog


def write_run(
    file: Path, method: str, seed: int = 0, task: str = "digits", **settings: Any
) -> Path:
    """Writes a log of 12 rounds of 4 steps, tested after every third, and returns it."""
    about = {"task": task, "method": method, "parameters": 1000}
    speed = 0.02 + 0.01 * len(method)
    with RunLog("case", seed, {"workers": 4, **settings}, file, **about) as log:
        for round in range(12):
            step, n = 4 * (round + 1), round + 1
            bytes_ = {"header": 26 * n, "index": 50 * n, "scale": 4 * n, "value": 9 * n}
            norms = {"residual_norm": 1 + 0.1 * n, "delta_norm": 2 / n}
            log.write("round", step=step, round=round, uplink=89, **bytes_, **norms)
            if n % 3 == 0:
                error = 0.5 / (1 + speed * step) + 0.01 * seed
                cost = {"uplink": 4 * 89 * n * len(method), "seconds": 0.5 * n}
                log.write(
                    "evaluation", step=step, epoch=n / 3, test_error=error, loss=3 * error, **cost
                )
    return file
