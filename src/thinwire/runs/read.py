"""Reading logs back: every run that can be read, and a sentence about each that cannot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Line = dict[str, Any]


@dataclass(eq=False)
class Run:
    """One method's run, as its log tells it.

    Args:
        file: of the log.
        task: what was learned.
        method: how.
        head: the log's first line.
        rounds: its round lines.
        evaluations: its evaluation lines.
        result: what its result line says, or nothing.
        status: "done", "interrupted", "failed", or "unfinished" where the log has no end.
    """

    file: Path
    task: str
    method: str
    head: Line
    rounds: list[Line] = field(default_factory=list)
    evaluations: list[Line] = field(default_factory=list)
    result: Line = field(default_factory=dict)
    status: str = "unfinished"

    @property
    def settings(self) -> Line:
        """What was asked for."""
        return dict(self.head.get("settings") or {})

    @property
    def seed(self) -> int | None:
        """The run's seed, where it has one."""
        return self.head.get("seed")

    @property
    def drawable(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.rounds or self.evaluations)


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Returns the runs of these logs, and one sentence about each that was not read whole.

    Args:
        paths: logs, or folders whose `*.jsonl` are logs.
    """
    runs, notes = [], []
    for path in paths:
        files = sorted(path.glob("**/*.jsonl")) if path.is_dir() else [path]
        if not files:
            notes.append(f"{path}: there is no .jsonl log in this folder.")
        for file in files:
            found, note = _read(file)
            runs += found
            notes += [f"{file.name}: {note}"] if note else []
    return runs, notes


def _read(file: Path) -> tuple[list[Run], str]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return [], f"it could not be read: {error.strerror}."
    rows = text.splitlines()
    if not rows:
        return [], "the log is empty."
    lines: list[Line] = []
    for row in rows:
        line = _line(row)
        if line is None:
            break
        lines.append(line)
    note = ""
    if len(lines) < len(rows):
        note = (
            f"line {len(lines) + 1} is cut short or no JSON; the {len(lines)} before it are read."
        )
    if not lines or lines[0]["event"] != "start":
        return [], "it does not begin with the start line of a run log."
    runs = [run for run in _runs(file, lines) if run.drawable]
    if not runs:
        note = note or "it holds no round and no evaluation yet."
    return runs, note


def _line(row: str) -> Line | None:
    try:
        line = json.loads(row)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("event"), str) else None


def _runs(file: Path, lines: list[Line]) -> list[Run]:
    """One run a method: a log of `thinwire demo` holds several."""
    head, runs = lines[0], dict[str, Run]()
    task = str(head.get("task") or head.get("command") or "unnamed")
    own = str(head.get("method") or task)
    status = next((str(line["status"]) for line in lines if "status" in line), "unfinished")
    for line in lines[1:]:
        method = str(line.get("method") or own)
        run = runs.setdefault(method, Run(file, task, method, head, status=status))
        if line["event"] == "round":
            run.rounds.append(line)
        elif line["event"] == "evaluation":
            run.evaluations.append(line)
        elif line["event"] == "result":
            run.result = line
    return list(runs.values())
