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
    """Draws one run as a bar on a terminal; elsewhere says a line now and then.

    Args:
        name: of the run.
        steps: local steps it will take.
        d: parameters; a dense gradient has 4 d bytes.
        console: where to.
        bar: on a terminal.
    """

    def __init__(
        self, name: str, steps: int, d: int, console: Console, bar: Progress | None
    ) -> None:
        self._name, self._steps, self._dense = name, steps, 4 * d
        self._console, self._bar = console, bar
        self._task: TaskID | None = (
            None if bar is None else bar.add_task(name, total=steps, note="")
        )
        self._began: tuple[float, int, int] | None = None
        self._line = 0

    def tell(self, step: int, round: int, loss: float, said: int, sent: int) -> None:
        """Shows where the run stands.

        Args:
            step: local steps done.
            round: rounds done.
            loss: the newest.
            said: bytes of this worker's own messages, which the ratio is of.
            sent: bytes that left this worker.
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


@contextmanager
def watched(name: str, steps: int, d: int) -> Iterator[Watched]:
    """Yields what to tell of a run; it is drawn on standard error.

    Args:
        name: of the run.
        steps: local steps it will take.
        d: parameters.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Watched(name, steps, d, console, None)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}, {task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        yield Watched(name, steps, d, console, bar)
