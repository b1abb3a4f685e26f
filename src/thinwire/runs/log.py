"""RunLog: what a run did, as JSON lines that read whenever and however it stops."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from thinwire.errors import ConfigError
from thinwire.files import check_writable
from thinwire.runs.machine import machine
from thinwire.version import __version__

RUNS = Path("runs")


class Sink(Protocol):
    """Another place for the same lines: `TensorBoard`, `WeightsAndBiases`, or one of your own."""

    def start(self, name: str, head: dict[str, Any]) -> None:
        """Takes the log's name and its first line."""

    def write(self, event: str, record: dict[str, Any]) -> None:
        """Takes one more line."""

    def close(self) -> None:
        """Takes no more."""


class RunLog:
    """Writes JSON lines, each flushed, so that an interrupted run leaves a log that reads.

    The first line is a `start` with versions, machine and settings; the last an `end` whose
    status is "done", "interrupted" or "failed". Every line has `t`, seconds since the start.
    Between them go what `thinwire report` reads (docs/runs.md): a `round` line a round
    (`Measured` makes them) and an `evaluation` line whenever the model was tested.

    Args:
        command: what was run: a subcommand or a recipe.
        seed: of the run; None where nothing is drawn.
        settings: what else was asked for, as plain data.
        file: where to write; None for `runs/<command>-<time>.jsonl`.
        task: what was learned; runs of one task are drawn together.
        method: how, by the name that a reader will see.
        parameters: d; None where several models or none are trained.
        from_step: goes on with the file, whose lines up to that local step are kept.
        also: where else the lines go.

    Raises:
        ConfigError: the file cannot be written.

    Example:
        >>> import tempfile, thinwire as tw
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "run.jsonl"
        ...     with tw.RunLog("mine", 0, {"H": 8}, file, task="sums", method="Qsparse") as log:
        ...         log.write("evaluation", step=8, uplink=240, loss=0.5)
        ...     runs, _ = tw.runs.read_runs([file])
        >>> runs[0].method, runs[0].evaluations[0]["loss"], runs[0].status
        ('Qsparse', 0.5, 'done')
    """

    def __init__(
        self,
        command: str,
        seed: int | None,
        settings: dict[str, Any],
        file: Path | None = None,
        *,
        task: str = "",
        method: str = "",
        parameters: int | None = None,
        from_step: int | None = None,
        also: Sequence[Sink] = (),
    ) -> None:
        self.file = _fresh(command) if file is None else file
        check_writable(self.file)
        kept = [] if from_step is None else _lines_up_to(self.file, from_step)
        try:
            self._lines = self.file.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self.file} could not be written: {error.strerror}") from error
        self._also = list(also)
        self._began = time.monotonic()
        head = {
            "thinwire": __version__,
            "command": command,
            "task": task or command,
            "method": method or command,
            "parameters": parameters,
            "machine": machine(),
            "seed": seed,
            "settings": settings,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        for sink in self._also:
            sink.start(self.file.stem, head)
        if kept:
            self._lines.writelines(kept)
            self.write("resumed", step=from_step, time=head["time"])
        else:
            self.write("start", **head)

    def write(self, event: str, **record: Any) -> None:
        """Appends one line and hands it to the operating system at once."""
        t = round(time.monotonic() - self._began, 3)
        self._lines.write(json.dumps({"event": event, "t": t, **record}) + "\n")
        self._lines.flush()
        if event not in ("start", "end"):
            for sink in self._also:
                sink.write(event, record)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.write("end", status="done")
        elif isinstance(error, Exception):
            self.write("end", status="failed", error=str(error))
        else:
            self.write("end", status="interrupted")
        self._lines.close()
        for sink in self._also:
            sink.close()


def _lines_up_to(file: Path, step: int) -> list[str]:
    """The lines of a log that a run taken up after that step has written, less how it ended."""
    if not file.is_file():
        return []
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break  # Cut short when the run was killed: what follows was written by nobody.
        if record.get("event") == "end" or record.get("step", 0) > step:
            continue
        kept.append(line + "\n")
    return kept


def _fresh(command: str) -> Path:
    try:
        RUNS.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder {RUNS} could not be made here: {error.strerror}; choose with --log FILE"
        ) from error
    name = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (f"{name}{suffix}.jsonl" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(RUNS / n for n in names if not (RUNS / n).exists())
