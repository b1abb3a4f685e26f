"""What every command writes: one JSON shape, one log shape, one kind of progress bar."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from thinwire.cli.signals import Interrupted
from thinwire.errors import ConfigError
from thinwire.version import __version__

RUNS = Path("runs")


def machine() -> dict[str, Any]:
    """Returns what a reader of a measurement must know of the machine, and nothing that names it.

    Example:
        >>> sorted(machine())
        ['cores', 'cpu', 'memory_bytes', 'numba', 'platform', 'python', 'torch']
    """
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numba": _version("numba"),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def document(command: str, seed: int | None, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the one shape that every `--json` writes.

    Args:
        command: the subcommand's name.
        seed: of the run; None where nothing is drawn.
        results: one plain record each.
    """
    return {
        "thinwire": __version__,
        "command": command,
        "machine": machine(),
        "seed": seed,
        "results": results,
    }


def check_writable(file: Path | None) -> None:
    """Refuses a file that could not be written, before the work rather than after it.

    Raises:
        ConfigError: its folder is missing or closed, or it is a folder itself.
    """
    if file is None:
        return
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; name a file in it")
    if not file.parent.is_dir():
        raise ConfigError(f"{file}: there is no folder {file.parent}; make it first")
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{file}: the folder {file.parent} cannot be written")


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write_atomically(file, (json.dumps(data, indent=2) + "\n").encode())


def write_atomically(file: Path, content: bytes) -> None:
    """Writes a file whole or not at all: beside it first, then renamed over it.

    Raises:
        ConfigError: the folder is missing, full or closed.
    """
    check_writable(file)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".part-", delete=False) as part:
            temporary = part.name
            part.write(content)
            part.flush()
            os.fsync(part.fileno())
        # A temporary file is private; what a user asked for is as open as their umask says.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, file)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise ConfigError(f"{file} could not be written: {error.strerror}") from error
        raise


class RunLog:
    """Writes JSON lines, each flushed, so that an interrupted run leaves a log that reads.

    The first line is a `start` with versions, machine and settings; the last an `end` whose
    status is "done", "interrupted" or "failed". Every line has `t`, seconds since the start.

    Args:
        command: the subcommand's name.
        seed: of the run; None where nothing is drawn.
        settings: what else was asked for, as plain data.
        file: where to write; None for `runs/<command>-<time>.jsonl`.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(
        self, command: str, seed: int | None, settings: dict[str, Any], file: Path | None = None
    ) -> None:
        self.file = _fresh(command) if file is None else file
        check_writable(self.file)
        try:
            self._lines = self.file.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self.file} could not be written: {error.strerror}") from error
        self._began = time.monotonic()
        start = document(command, seed, [])
        del start["results"]
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.write("start", **start, settings=settings, time=when)

    def write(self, event: str, **record: Any) -> None:
        """Appends one line and hands it to the operating system at once."""
        t = round(time.monotonic() - self._began, 3)
        self._lines.write(json.dumps({"event": event, "t": t, **record}) + "\n")
        self._lines.flush()

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
        elif isinstance(error, (Interrupted, KeyboardInterrupt)):
            self.write("end", status="interrupted")
            if isinstance(error, Interrupted):
                error.notes.append(f"the log so far is {self.file}")
        else:
            self.write("end", status="failed", error=str(error))
        self._lines.close()


class Bars:
    """Draws one bar a task on a terminal; elsewhere says one plain line as each task ends."""

    def __init__(self, console: Console, progress: Progress | None) -> None:
        self._console, self._progress = console, progress
        self._tasks: dict[str, tuple[TaskID | None, int]] = {}
        self._done: dict[str, int] = {}

    def add(self, name: str, total: int) -> None:
        """Announces a task of so many steps; a total of 0 is a task of unknown length."""
        task = None
        if self._progress is not None:
            task = self._progress.add_task(name, total=total or None, note="")
        self._tasks[name], self._done[name] = (task, total), 0

    def advance(self, name: str, note: str = "") -> None:
        """Counts one step done and shows a note beside the bar."""
        task, total = self._tasks[name]
        self._done[name] += 1
        if self._progress is not None and task is not None:
            self._progress.update(task, advance=1, note=note)
        elif self._done[name] == total:
            self._console.print(f"{name}: {note}", highlight=False)

    def finish(self, name: str, note: str = "") -> None:
        """Marks a task of unknown length as done."""
        task, _ = self._tasks[name]
        if self._progress is not None and task is not None:
            self._progress.update(task, total=1, completed=1, note=note)
        else:
            self._console.print(f"{name}: {note or 'done'}", highlight=False)


@contextmanager
def bars() -> Iterator[Bars]:
    """Yields progress bars on standard error, so that standard output stays a clean result."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bars(console, None)
        return
    progress = Progress(
        TextColumn("{task.description:<25}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
    with progress:
        yield Bars(console, progress)


def size(n: float) -> str:
    """Returns bytes as a person reads them, in decimal units.

    Example:
        >>> size(999), size(41_234), size(3_200_000), size(1_000_000_000)
        ('999 B', '41.2 kB', '3.20 MB', '1.00 GB')
    """
    if n < 1000:
        return f"{n:.0f} B"
    unit = next(u for u in ("kB", "MB", "GB", "TB", "PB") if (n := n / 1000) < 999.5 or u == "PB")
    return f"{n:.{2 if n < 9.995 else 1 if n < 99.95 else 0}f} {unit}"


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
