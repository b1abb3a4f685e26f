"""What a report draws: runs by task, seeds of one method together, one letter and style each."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from string import ascii_uppercase
from typing import Any

from thinwire.runs import Run
from thinwire.runs.read import Line

AXES = {
    "epoch": "epochs",
    "step": "local steps",
    "uplink": "bytes said, all workers",
    "sent": "bytes sent, all workers",
    "bits": "bits said in fixed width, all workers",
    "seconds": "seconds",
    "link_seconds": "seconds that the busiest link is busy",
}
"""What a figure may run along, by the key of an evaluation line."""
NORMS = {
    "residual_norm": "Residual's norm: what is not said yet",
    "delta_norm": "Pseudo-gradient's norm",
    "consensus": "How far the workers' models are apart",
    "staleness": "Updates missed when a worker spoke",
}
"""What is drawn along local steps where it was measured."""
NO_METRIC = {*AXES, *NORMS, "t", "event", "method", "round", "rounds", "tokens", "setup"}
PERCENT = ("accuracy", "test_error", "top1", "top5", "error")
FIRST = ("test_error", "accuracy", "top1", "bits_per_byte", "loss")
"""Metrics that a reader asks for first."""
CLASSES = ("header", "index", "scale", "value")


@dataclass(frozen=True)
class Point:
    """A mean over seeds, and the least and the greatest of them."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """One method on one task: its runs differ by their seed alone.

    Args:
        letter: what a figure calls it.
        number: which style it has.
        label: its name, and the settings in which it differs from others of that name.
        runs: one a seed.
    """

    letter: str
    number: int
    label: str
    runs: tuple[Run, ...]

    def curve(self, kind: str, x: str, y: str) -> list[Point]:
        """Returns y along x at the lines that all seeds have.

        Args:
            kind: "rounds" or "evaluations".
            x: key of the axis.
            y: key of the value.
        """
        own = [_points(getattr(run, kind), x, y) for run in self.runs]
        own = [points for points in own if points]
        shared = [key for key in own[0] if all(key in points for points in own)] if own else []
        curve = []
        for key in shared:
            xs, ys = zip(*(points[key] for points in own), strict=True)
            curve.append(Point(_mean(xs), _mean(ys), min(ys), max(ys)))
        return curve

    def last(self, key: str) -> list[float]:
        """Returns the last value of that key in the evaluations of each run that has it."""
        ends = [[e[key] for e in run.evaluations if _number(e.get(key))] for run in self.runs]
        return [values[-1] for values in ends if values]

    @property
    def shares(self) -> dict[str, int]:
        """Bytes of the first worker's messages by class, of all runs; empty where unknown."""
        total = dict.fromkeys(CLASSES, 0)
        for run in self.runs:
            if run.rounds and all(c in run.rounds[-1] for c in CLASSES):
                total = {c: total[c] + run.rounds[-1][c] for c in CLASSES}
        return total if sum(total.values()) else {}

    @property
    def ratio(self) -> float | None:
        """Float32 gradients of every step over what was said; None where d is not known."""
        d, steps, said = self.runs[0].head.get("parameters"), self.last("step"), self.last("uplink")
        N = self.runs[0].settings.get("workers")
        if not (d and N and steps and said and _mean(said)):
            return None
        return 4 * float(d) * float(N) * _mean(steps) / _mean(said)


Tasks = dict[str, list[Series]]
"""Series by task."""


def tasks_of(runs: Sequence[Run]) -> Tasks:
    """Returns the series of each task, letters and styles given in the order of the runs."""
    by_task: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        settings = {k: v for k, v in run.settings.items() if k not in ("seed", "notes")}
        alike = json.dumps([run.method, settings], sort_keys=True, default=str)
        by_task[run.task][alike].append(run)
    return {task: _series(list(groups.values())) for task, groups in by_task.items()}


def metrics_of(series: Sequence[Series]) -> list[str]:
    """Returns what was evaluated, what a reader asks for first coming first."""
    found: dict[str, None] = {}
    for run in (run for s in series for run in s.runs):
        for line in run.evaluations:
            found |= {k: None for k, v in line.items() if k not in NO_METRIC and _number(v)}
    order = {name: number for number, name in enumerate(FIRST)}
    return sorted(found, key=lambda name: order.get(name, len(order)))


def has(series: Sequence[Series], kind: str, *keys: str) -> bool:
    """Whether any line of that kind has all these keys."""
    lines = (line for s in series for run in s.runs for line in getattr(run, kind))
    return any(all(_number(line.get(key)) for key in keys) for line in lines)


def spoken(name: str) -> str:
    """Returns a key as a person says it.

    Example:
        >>> spoken("test_error"), spoken("bits_per_byte")
        ('test error', 'bits per byte')
    """
    return name.replace("_", " ")


def shown(name: str, value: float) -> str:
    """Returns a metric's value as a person reads it.

    Example:
        >>> shown("test_error", 0.1032), shown("loss", 0.4291)
        ('10.3 %', '0.429')
    """
    return f"{100 * value:.3g} %" if name in PERCENT else f"{value:.3g}"


def _series(groups: list[list[Run]]) -> list[Series]:
    labels = _labels(groups)
    return [
        Series(_letter(number), number, label, tuple(group))
        for number, (group, label) in enumerate(zip(groups, labels, strict=True))
    ]


def _labels(groups: list[list[Run]]) -> list[str]:
    """A method's name, and where several have it, the settings in which they differ."""
    named: dict[str, list[list[Run]]] = defaultdict(list)
    for group in groups:
        named[group[0].method].append(group)
    labels = []
    for group in groups:
        first, others = group[0], named[group[0].method]
        every = [g[0].settings for g in others]
        differ = [
            key
            for key in first.settings
            if key not in ("seed", "notes") and any(s.get(key) != every[0].get(key) for s in every)
        ]
        said = ", ".join(f"{spoken(key)} {first.settings[key]}" for key in differ)
        labels.append(f"{first.method} ({said})" if said else first.method)
    return labels


def _letter(number: int) -> str:
    high, low = divmod(number, len(ascii_uppercase))
    return (ascii_uppercase[high - 1] if high else "") + ascii_uppercase[low]


def _points(lines: list[Line], x: str, y: str) -> dict[Any, tuple[float, float]]:
    key: Callable[[Line, int], Any] = lambda line, place: line.get("step", place)  # noqa: E731
    return {
        key(line, place): (float(line[x]), float(line[y]))
        for place, line in enumerate(lines)
        if _number(line.get(x)) and _number(line.get(y))
    }


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
