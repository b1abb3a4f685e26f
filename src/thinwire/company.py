"""A group whose members come and go, as the shell sees it: a round may be tried more than once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from thinwire.ledger import Entry
from thinwire.round import RoundState


@runtime_checkable
class Company(Protocol):
    """A group whose members come and go, so that a round may be tried more than once.

    Its workers are `LocalSGD`s, which stand above this room.
    """

    def join(self, worker: Any) -> None:
        """Takes this worker in: it then holds the anchor of those that are there."""
        ...

    def sync(self, worker: Any, called: bool) -> None:
        """Has this worker's round done, or what became of it without this worker."""
        ...

    def leave(self, worker: Any) -> None:
        """Ends this worker's part, others that are behind being told of its rounds."""
        ...

    def save(self) -> dict[str, Any]:
        """Returns where this worker stands, as plain data."""
        ...

    def resume(self, worker: Any, state: RoundState, saved: dict[str, Any]) -> RoundState:
        """Returns what a worker goes on from that was in this state when `save` returned that."""
        ...


@dataclass(frozen=True, eq=False)
class Tried:
    """A round that is done and not yet taken up: dropping it changes nothing.

    Args:
        state: after the round.
        shared: (b,) float32, the model's buffers as agreed; None where they could not be.
        before: the counters when it began.
        cleared: whether the residual was dropped before it.
        lr: the learning rate it began with.
        in_place: whether the parameters already hold the new anchor.
        entry: what it adds to the books, where any are kept.
        skipped: whether something was not finite, so that nobody said anything.
        dropped: the ranks without which it was held, since something of theirs was not finite.
    """

    state: RoundState
    shared: Tensor | None
    before: tuple[int, ...]
    cleared: bool
    lr: float
    in_place: bool
    entry: Entry | None
    skipped: bool = False
    dropped: tuple[int, ...] = ()
