"""How a training run is watched: step, round, loss, bytes, ratio, link rate, time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from thinwire.cli.output import size

LINES = 10
"""Lines a run writes where there is no terminal."""


class Watched:
    """One run on a `Board`.

    Args:
        name: of the run.
        steps: local steps it will take.
        d: parameters; a dense gradient has 4 d bytes.
        console: where to say a line now and then, if there is no bar.
        bar: what draws it on a terminal.
    """

    def __init__(
        self, name: str, steps: int, d: int, console: Console, bar: Progress | None
    ) -> None:
        self._name, self._steps, self._dense = name, steps, 4 * d
        self._console, self._bar = console, bar
        self._task: TaskID | None = None
        if bar is not None:
            self._task = bar.add_task(name, total=steps, note="")
        self._began: tuple[float, int, int] | None = None
        self._line = 0

    def tell(self, step: int, round: int, loss: float, said: int, sent: int) -> None:
        """Shows where the run stands.

        Args:
            step: local steps done.
            round: rounds done.
            loss: the newest.
            said: bytes of a worker's own messages, which the ratio is of.
            sent: bytes that left it.
        """
        now = time.monotonic()
        since, first, before = self._began = self._began or (now, step, sent)
        seconds = max(now - since, 1e-9)
        ratio = f"{self._dense * step / said:.0f}x" if said else "-"
        note = (
            f"round {round}, loss {loss:.3f}, {size(sent)} sent, {ratio}, "
            f"{size((sent - before) / seconds if step > first else 0)}/s"
        )
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif step * LINES // self._steps > self._line:
            self._line = step * LINES // self._steps
            left = seconds * (self._steps - step) / max(1, step - first)
            self._console.print(
                f"{self._name}: step {step} of {self._steps}, {note}, {left:.0f} s left",
                highlight=False,
            )

    def end(self) -> None:
        """Takes the run's bar away: it is done."""
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)


class Board:
    """Where runs are watched: bars on a terminal, elsewhere a line of each now and then."""

    def __init__(self, console: Console, bar: Progress | None) -> None:
        self._console, self._bar = console, bar

    def add(self, name: str, steps: int, d: int) -> Watched:
        """Returns what to tell of a run of so many steps, of a model of d parameters."""
        return Watched(name, steps, d, self._console, self._bar)

    def say(self, text: str) -> None:
        """Says a line above the bars."""
        (self._console if self._bar is None else self._bar.console).print(text, highlight=False)


@contextmanager
def board() -> Iterator[Board]:
    """Yields a board on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Board(console, None)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}, {task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        yield Board(console, bar)
