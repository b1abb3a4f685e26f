"""Snapshots: three lines in a training loop, and a run that stops anywhere goes on from there."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from thinwire.errors import ConfigError, SnapshotError
from thinwire.shell import LocalSGD
from thinwire.snapshots.accord import Talk, choose, one_job, together, weigh
from thinwire.snapshots.content import filler
from thinwire.snapshots.shelf import Shelf
from thinwire.snapshots.taking_up import Whole
from thinwire.snapshots.told import Told
from thinwire.snapshots.writing import Writing
from thinwire.value import whole

LOG = logging.getLogger("thinwire")


@dataclass(frozen=True)
class Resumed:
    """What a run was taken up from.

    Args:
        step: local steps done.
        round: rounds done.
        N: workers that it was written by.
    """

    step: int
    round: int
    N: int


class Snapshots:
    """Keeps a run's newest snapshots in a folder, and takes up the newest that is complete.

    Each rank writes one file, in the background, from copies: whole or not at all, checksummed,
    plain data and tensors only. A set is complete when all ranks have told each other that theirs
    is on the disk; only then are older ones removed. On a preemption signal, to whichever rank, all
    ranks write a snapshot after the same round and `after_step` returns True.

    Args:
        folder: of this machine, mounted, or any URL that fsspec knows. One folder that all ranks
            see, or one of each machine's own; to go on with another N it must be one that all see.
        every: rounds from one snapshot to the next; local steps where each worker speaks at its
            own times (`Asynchronous`).
        keep: complete sets that are kept. The disk must hold one more.
        heed: rounds from one question to the next whether any rank was told to stop, or failed to
            write: 2 steps of about a hundred bytes between every worker and rank 0.
        signals: upon which to stop; only a program's main thread can heed them.

    Example:
        >>> import tempfile, torch, thinwire as tw
        >>> def train(folder, steps):
        ...     torch.manual_seed(0)
        ...     model = torch.nn.Linear(4, 1)
        ...     inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        ...     optimizer = tw.LocalSGD(model, inner, **tw.qsparse_local_sgd(H=2))
        ...     with tw.Snapshots(folder, every=2) as snapshots:
        ...         _ = snapshots.resume(model, optimizer, draws=tw.Draws())
        ...         while snapshots.step < steps:
        ...             optimizer.zero_grad()
        ...             model(torch.randn(8, 4)).square().mean().backward()
        ...             optimizer.step()
        ...             if snapshots.after_step():
        ...                 break
        ...     return optimizer.anchor
        >>> with tempfile.TemporaryDirectory() as once, tempfile.TemporaryDirectory() as twice:
        ...     never_stopped = train(once, 12)
        ...     _ = train(twice, 9)
        ...     torch.equal(train(twice, 12), never_stopped)
        True
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int = 50,
        keep: int = 2,
        heed: int = 1,
        signals: Sequence[signal.Signals] = (signal.SIGTERM,),
    ) -> None:
        for name, value in (("every", every), ("keep", keep), ("heed", heed)):
            whole(self, name, value, 1, 1 << 40)
        self.every, self.keep, self.heed = every, keep, heed
        self.step = 0
        self.stopped = False
        self._where = folder
        self._told = Told(signals)
        self._writing = Writing()
        self._number = 0
        self._shelf: Shelf
        self._run: Whole | None = None

    def resume(self, model: nn.Module, optimizer: LocalSGD, **parts: Any) -> Resumed | None:
        """Takes up the newest complete snapshot; where there is none yet, the run starts here.

        Every rank must call it, once, before the first step, and `after_step` after every step.

        Args:
            model: whose parameters and buffers go on.
            optimizer: over them.
            parts: whatever else the run is made of, by name: a scheduler, a sampler, a scaler,
                anything with state_dict and load_state_dict of plain data and tensors; a
                `torch.Generator`; `Draws()` for the global ones.

        Returns:
            Where the run goes on from, or None where it starts.

        Raises:
            ConfigError: another job has the folder; a snapshot is of another model, of other
                settings or of another version; a part cannot be saved. On every rank, nothing
                changed in the folder.
            SnapshotError: there are snapshots, and none is complete.
        """
        return optimizer.drive(self.resume_talk(model, optimizer, **parts))

    def after_step(self) -> bool:
        """Does what is due after a step; returns whether to stop, the snapshot being complete.

        Raises:
            SnapshotError: a rank could not write its file; on every rank. What was complete before
                still is, and one may go on.
            DivergedError: the replicas have parted; nothing is written.
        """
        return self._known().drive(self.after_step_talk())

    def take(self) -> None:
        """Takes a snapshot now; returns when it is complete. Every rank must call it.

        Raises:
            SnapshotError, DivergedError: as `after_step`.
        """
        self._known().drive(self.take_talk())

    def stop(self) -> None:
        """Lets all ranks stop, after a snapshot, at a next round; one rank's call is enough."""
        self._told.stop()

    def close(self) -> None:
        """Waits for the last file, lets go of the folder and of the signals.

        Raises:
            SnapshotError: this rank's last file could not be written.
        """
        self._writing.wait()
        self._told.unheed()
        if self._run is not None:
            self._shelf.free()
            self._run = None
        if (trouble := self._writing.trouble()) is not None:
            raise SnapshotError(
                f"the last snapshot could not be written to {self._where}: {trouble}"
            )

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except SnapshotError as trouble:
            if error is None:
                raise
            LOG.error("%s", trouble)

    def resume_talk(
        self, model: nn.Module, optimizer: LocalSGD, **parts: Any
    ) -> Talk[Resumed | None]:
        """The same as `resume`, as a talk for whoever drives it."""
        run = Whole(model, optimizer, parts)
        shelf, dead_job = yield from together(optimizer, lambda: self._shelf_of(run))
        known = {"job": os.urandom(16).hex(), "dead": dead_job}
        agreed = yield from optimizer.consult(known, one_job, 0, long=True)
        try:
            job, dead = agreed["job"], set(agreed["dead"])
            yield from together(optimizer, lambda: shelf.claim(job, dead))
            resumed = yield from self._take_up(run, shelf)
            yield from together(optimizer, lambda: shelf.forget_newer(self.step))
        except BaseException:
            shelf.free()
            raise
        self._run, self._shelf = run, shelf
        self._number = self._count()
        self._told.heed()
        return resumed

    def _shelf_of(self, run: Whole) -> tuple[Shelf, str | None]:
        run.check()
        shelf = Shelf(self._where, *run.optimizer.place, self.keep)
        return shelf, shelf.dead()

    def _take_up(self, run: Whole, shelf: Shelf) -> Talk[Resumed | None]:
        optimizer = run.optimizer
        seen, broken = yield from together(optimizer, shelf.look)
        said = {"seen": [astuple(f) for f in seen], "broken": [f.name for f in broken]}
        verdict = yield from optimizer.consult(said, choose, 0, long=True)
        if verdict["error"]:
            raise SnapshotError(f"{shelf}: {verdict['error']}")
        if optimizer.place[0] == 0 and verdict["note"]:
            LOG.warning("%s: %s", shelf, verdict["note"])
        shelf.complete = verdict["complete"]
        if verdict["take"] is None:
            return None
        step, old = verdict["take"]
        state = yield from together(optimizer, lambda: run.read(shelf, step, old))
        yield from together(optimizer, lambda: run.take_up(state))
        self.step = step
        if optimizer.place[0] == 0:
            LOG.info("%s: resumed at step %d, round %d", shelf, step, optimizer.round)
        return Resumed(step, optimizer.round, old)

    def after_step_talk(self) -> Talk[bool]:
        """The same as `after_step`, as a talk for whoever drives it."""
        self._known()
        self.step += 1
        before, self._number = self._number, self._count()

        def passed(period: int) -> bool:
            return self._number // period > before // period

        if not passed(self.every) and not passed(self.heed):
            return False
        stop = yield from self._meet()
        if stop:
            yield from self.take_talk()
            self.stopped = True
        elif passed(self.every):
            yield from self._write()
        return stop

    def take_talk(self) -> Talk[None]:
        """The same as `take`, as a talk for whoever drives it."""
        self._known()
        yield from self._write()
        self._writing.wait()
        yield from self._meet()

    def _known(self) -> LocalSGD:
        if self._run is None:
            raise ConfigError(
                "Snapshots: call resume(model, optimizer) once before the first step; where there "
                "is no snapshot yet it starts the run"
            )
        return self._run.optimizer

    def _count(self) -> int:
        optimizer = self._known()
        return self.step if optimizer.exchange.pace == "own" else optimizer.round

    def _meet(self) -> Talk[bool]:
        shelf, trouble = self._shelf, self._writing.trouble()
        said = {
            "stop": bool(self._told),
            "durable": self._writing.durable,
            "trouble": None if trouble is None else f"{shelf}: {trouble}"[:500],
        }
        verdict = yield from self._known().consult(said, weigh, self.step)
        if verdict["durable"] >= 0:
            shelf.completed(verdict["durable"])
        if verdict["trouble"]:
            raise SnapshotError(
                f"{verdict['trouble']}. The snapshots that were complete before still are"
            )
        return bool(verdict["stop"])

    def _write(self) -> Talk[None]:
        assert self._run is not None
        yield from self._known().compare_talk()
        # What may wait for the disk comes before the copies, so that there is one set of them.
        self._writing.wait()
        step, shelf = self.step, self._shelf
        try:
            fill = filler(self._run.head(step), self._run.state())
        except ConfigError as error:
            # The other ranks must hear of it, too, and they do when they next meet.
            self._writing.fail(error)
            return
        self._writing.start(step, lambda: shelf.write(step, fill))
