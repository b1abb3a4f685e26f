"""LockStep: N workers in one process, the same rounds and the same frames, no wire."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from thinwire.errors import ConfigError
from thinwire.exchange.driver import lockstep
from thinwire.shell import LocalSGD
from thinwire.transport import Answer, Ask
from thinwire.wire.body import decoded_once

R = TypeVar("R")


class LockStep:
    """Runs the shells of all ranks in one process, and ends in the bits a process group would.

    Args:
        workers: one `LocalSGD` of each rank, made with `group=Seat(rank, N)`, in rank order.

    Raises:
        ConfigError: the workers disagree, or are not those of one group.

    Example:
        >>> import torch, thinwire as tw
        >>> models = [torch.nn.Linear(2, 1) for _ in range(3)]
        >>> workers = [
        ...     tw.LocalSGD(m, torch.optim.SGD(m.parameters(), lr=0.1), group=tw.Seat(r, 3))
        ...     for r, m in enumerate(models)
        ... ]
        >>> cluster = tw.LockStep(workers)
        >>> for rank, model in enumerate(models):
        ...     _ = model(torch.full((1, 2), float(rank))).sum().backward()
        >>> _ = cluster.step()
        >>> all(torch.equal(m.weight, models[0].weight) for m in models)
        True
    """

    def __init__(self, workers: Sequence[LocalSGD]) -> None:
        self.workers = list(workers)
        seats = [worker.place for worker in self.workers]
        if not seats or seats != [(rank, len(seats)) for rank in range(len(seats))]:
            raise ConfigError(
                f"LockStep needs one worker on each Seat(rank, {len(seats)}), in rank order; "
                f"these sit on {seats}"
            )
        self._observers = [worker.stats for worker in self.workers]
        self.run([worker.join() for worker in self.workers])

    def step(self, closures: Sequence[Callable[[], Any]] | None = None) -> list[Any]:
        """Steps every worker once, and runs the round when it is due; returns their losses."""
        each = [None] * len(self.workers) if closures is None else closures
        talks = [w.steps(closure) for w, closure in zip(self.workers, each, strict=True)]
        return self.run(talks)

    def sync(self) -> None:
        """Runs a round now, however few local steps are done."""
        self.run([worker.sync_talk() for worker in self.workers])

    def run(self, talks: Sequence[Generator[Ask, Answer, R]]) -> list[R]:
        """Runs one talk of each worker, in rank order, and returns what they return."""
        with decoded_once():
            return lockstep(talks, self._observers)
