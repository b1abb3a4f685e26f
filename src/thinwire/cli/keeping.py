"""Snapshots of all workers that run in this process: one under torchrun, N in lock-step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from signal import SIGTERM
from typing import Any

from torch import nn

from thinwire.errors import ConfigError
from thinwire.shell import LocalSGD
from thinwire.snapshots import Snapshots

Run = Callable[[Sequence[Generator[Any, Any, Any]]], list[Any]]
"""Runs one talk of each worker of this process."""


class Keeping:
    """Keeps and takes up the snapshots of several workers.

    Args:
        folder: where they are.
        every: rounds from one to the next.
        workers: model, optimizer and the other parts of each.
        run: drives their talks.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int,
        workers: Sequence[tuple[nn.Module, LocalSGD, dict[str, Any]]],
        run: Run,
    ) -> None:
        self._run = run
        # One process gets one signal.
        signals = [(SIGTERM,) if number == 0 else () for number in range(len(workers))]
        self._all = [Snapshots(folder, every=every, signals=each) for each in signals]
        with ExitStack() as stack:
            for snapshots in self._all:
                stack.enter_context(snapshots)
            each = zip(self._all, workers, strict=True)
            run([s.resume_talk(model, opt, **parts) for s, (model, opt, parts) in each])
            self._stack = stack.pop_all()

    @property
    def step(self) -> int:
        """Local steps done."""
        return self._all[0].step

    def after_step(self) -> bool:
        """Does what is due after a step; returns whether to stop."""
        return bool(self._run([s.after_step_talk() for s in self._all])[0])

    def __enter__(self) -> Keeping:
        return self

    def __exit__(self, *why: Any) -> None:
        self._stack.__exit__(*why)


class Same:
    """A part of a snapshot that refuses to go on under other settings.

    Args:
        settings: of this run, as plain data.
        free: those that may change.
    """

    def __init__(self, settings: dict[str, Any], free: tuple[str, ...]) -> None:
        self._settings = {name: v for name, v in settings.items() if name not in free}

    def state_dict(self) -> dict[str, Any]:
        """Returns the settings."""
        return dict(self._settings)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises a ConfigError where they are others."""
        for name in sorted({*state, *self._settings}):
            theirs, ours = state.get(name), self._settings.get(name)
            if theirs != ours:
                raise ConfigError(
                    f"the snapshot is of a run with {name} {theirs}, this one has {ours}; give the "
                    "same, or another folder"
                )


class Recent:
    """The last errors that decide whether the target is reached."""

    def __init__(self) -> None:
        self.errors = [1.0, 1.0, 1.0]

    def add(self, error: float) -> None:
        """Takes the newest in the oldest's place."""
        self.errors = [*self.errors[1:], error]

    @property
    def mean(self) -> float:
        """Their mean."""
        return sum(self.errors) / len(self.errors)

    def state_dict(self) -> dict[str, Any]:
        """Returns them."""
        return {"errors": list(self.errors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them up."""
        self.errors = list(state["errors"])
