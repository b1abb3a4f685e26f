"""A snapshot as it is written and as it is taken up: everything a run is made of."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from thinwire.errors import ConfigError
from thinwire.shell import LocalSGD
from thinwire.snapshots.content import FORMAT, Head, check_head, head_of, state_of
from thinwire.snapshots.draws import Draws
from thinwire.snapshots.plain import Parts, check_parts, plain, states_of, take_up
from thinwire.snapshots.regroup import check_regroup, regroup
from thinwire.snapshots.sets import File
from thinwire.snapshots.shelf import Shelf
from thinwire.version import __version__

LOG = logging.getLogger("thinwire")
State = dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """Everything a worker's run is made of.

    Args:
        model: parameters and buffers.
        optimizer: the rounds, and the inner optimizer.
        parts: whatever else, by name.
    """

    model: nn.Module
    optimizer: LocalSGD
    parts: Parts

    def check(self) -> None:
        """Raises a ConfigError where no snapshot of it can be taken."""
        if self.optimizer.exchange.pace == "free":
            raise ConfigError(
                "a worker of a hub joins again by itself, and the hub keeps its own snapshots "
                "(thinwire hub --state); Snapshots is for ranks that run together"
            )
        check_parts(self.parts)

    def head(self, step: int) -> Head:
        """Returns what a snapshot after so many steps says of its run, as JSON."""
        rank, N = self.optimizer.place
        return {
            "format": FORMAT,
            "thinwire": __version__,
            "torch": str(torch.__version__),
            "step": step,
            "round": self.optimizer.round,
            "rank": rank,
            "N": N,
            "settings": self.optimizer.settings(),
            "tensors": self.optimizer.tensors(),
            "parts": sorted(self.parts),
        }

    def state(self) -> State:
        """Returns copies of everything, on the host."""
        return {
            "optimizer": plain(self.optimizer.state_dict(), "optimizer"),
            "model": plain(self.model.state_dict(), "model"),
            "parts": states_of(self.parts),
        }

    def read(self, shelf: Shelf, step: int, old: int) -> State:
        """Returns what `take_up` takes up; nothing is changed yet.

        Args:
            shelf: where the files are.
            step: of the set.
            old: workers that wrote it.

        Raises:
            ConfigError: it is of another model, of other settings or of another version.
            SnapshotError: a file is not whole.
        """
        rank, N = self.optimizer.place
        file = File(step, old, rank % old)
        first = shelf.read(file)
        saved, own = head_of(first, file, str(shelf)), self.head(step)
        check_head(saved, own, str(shelf))
        if rank == 0 and (saved["thinwire"], saved["torch"]) != (own["thinwire"], own["torch"]):
            LOG.warning(
                "%s was written by thinwire %s and torch %s; with thinwire %s and torch %s the run "
                "goes on, and may end in other bits",
                shelf, saved["thinwire"], saved["torch"], own["thinwire"], own["torch"],
            )  # fmt: skip
        state = state_of(first)
        if old == N:
            return state
        check_regroup(self.optimizer.exchange, old, N)
        others = (state_of(shelf.read(File(step, old, r)))["optimizer"] for r in range(old))
        state["optimizer"] = regroup(others, old, self.optimizer)
        if rank >= old:
            # Two workers must not draw the same: who was not there keeps its program's draws.
            drawn = {n for n, p in self.parts.items() if isinstance(p, (torch.Generator, Draws))}
            state["parts"] = {n: s for n, s in state["parts"].items() if n not in drawn}
        if rank == 0:
            LOG.warning(
                "%s: a snapshot of %d workers goes on with %d. %s; rank r takes the inner "
                "optimizer, the buffers and the parts of old rank r mod %d",
                shelf, old, N, what_is_kept(self.optimizer, old, N), old,
            )  # fmt: skip
        return state

    def take_up(self, state: State) -> None:
        """Goes on from there."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, part in state["parts"].items():
            take_up(self.parts[name], part)
        self.optimizer.write_anchor()


def what_is_kept(optimizer: LocalSGD, old: int, new: int) -> str:
    """Returns in words what `regroup` keeps."""
    if not optimizer.exchange.replicates:
        return "All start from the mean of the anchors, and owe nothing"
    if optimizer.residual is None:
        return "Nothing is owed"
    return f"Residuals are scaled by {new}/{old} and shared out, so sum(residual)/N is kept"
