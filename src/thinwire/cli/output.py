"""What every command writes: one JSON shape, one kind of progress bar."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from thinwire.cli.signals import Interrupted
from thinwire.errors import ConfigError
from thinwire.files import check_writable
from thinwire.runs import RunLog, machine
from thinwire.version import __version__


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


@contextmanager
def logged(
    command: str, seed: int | None, settings: dict[str, Any], file: Path | None = None, **more: Any
) -> Iterator[RunLog]:
    """Yields a command's `RunLog`; where the user stops it, the last words say where it is."""
    with RunLog(command, seed, settings, file, **more) as run:
        try:
            yield run
        except Interrupted as stop:
            stop.notes.append(f"the log so far is {run.file}")
            raise


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
