"""A member of a group whose members come and go: what it is told, and what it goes on from."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from thinwire import host
from thinwire.company import Tried
from thinwire.elastic.history import Generation, History, Standing, Told
from thinwire.elastic.meet import Record
from thinwire.errors import ConfigError, TransportError
from thinwire.exchange import AllReduce, Server
from thinwire.ledger import fold
from thinwire.outer import Outer, OuterState
from thinwire.round import RoundState
from thinwire.shell import LocalSGD
from thinwire.value import of_kind, one_of, whole

LOG = logging.getLogger("thinwire")
Mean = Literal["quorum", "configured"]


class Member(ABC):
    """One worker's part in a group whose members come and go.

    Args:
        N: the most workers there are, as configured.
        min_replicas: the fewest that run a round: more than half of N, so that two halves of a
            split never both go on; by default the least such number.
        mean: over those that took part in a round ("quorum", the default: each has the weight
            1/n of the n that did), or over the N that are configured ("configured": each keeps
            the weight 1/N, and a round of few moves the anchor less).
        name: of this worker; its own among all, and the same when it returns.

    Raises:
        ConfigError: a split could go on in two halves.
    """

    def __init__(
        self,
        N: int,
        name: str,
        min_replicas: int | None = None,
        mean: Mean = "quorum",
    ) -> None:
        whole(self, "N", N, 1, 65535)
        of_kind(self, "name", name, str)
        one_of(self, "mean", mean, ("quorum", "configured"))
        majority = N // 2 + 1
        if min_replicas is not None and not majority <= min_replicas <= N:
            raise ConfigError(
                f"min_replicas={min_replicas!r} of N={N}: it must lie in [{majority}, {N}]; with "
                "half of the workers or fewer, both halves of a split network would go on"
            )
        self.N, self.name, self.mean = N, name, mean
        self.min_replicas = majority if min_replicas is None else min_replicas
        self.standing = Standing()
        self._generation: Generation = (0, 0)
        self._names: tuple[str, ...] = ()
        self._met = False
        self.broken: Exception | None = None

    @abstractmethod
    def join(self, worker: LocalSGD) -> None:
        """Runs its talk to join, or has it run."""

    @abstractmethod
    def sync(self, worker: LocalSGD, called: bool) -> None:
        """Runs the talk of its round, or has it run."""

    @abstractmethod
    def leave(self, worker: LocalSGD) -> None:
        """Runs its last talk, or has it run."""

    def check(self, worker: LocalSGD) -> None:
        """Raises a ConfigError unless this worker's exchange can lose and gain workers."""
        exchange = worker.exchange
        why = None
        if not exchange.replicates:
            why = "its workers hold models of their own, and nobody could tell one to who returns"
        elif exchange.pace != "common":
            why = "its workers speak at times of their own, and no quorum could meet"
        elif isinstance(exchange, AllReduce):
            why = "the engine sums over all that are there, and who has just come sits a round out"
        elif isinstance(exchange, Server) and exchange.downlink is not None:
            why = "its master's residual would be lost with the master"
        elif isinstance(exchange, Server) and exchange.root:
            why = "the rank of its master may be gone; use root=0, the first of each quorum"
        if worker.watch.nonfinite != "raise":
            raise ConfigError(
                f"nonfinite={worker.watch.nonfinite!r}: what an elastic group skips or drops could "
                "not be taken back where the try does not stand; use 'raise'"
            )
        if why:
            raise ConfigError(
                f"{exchange!r} cannot be elastic: {why}. Use Gather(), Ring() or Server()"
            )

    def record(self, worker: LocalSGD) -> Record:
        """Returns all that one who is behind must be told."""
        state, buffers = worker.hold()
        return Record(self.standing.history, state.anchor, state.outer, buffers)

    def adopt(self, worker: LocalSGD, record: Record, ready: bool) -> None:
        """Goes on where others are: what was not said is owed, what was said and counts is not."""
        state, _ = worker.hold()
        mem, books = state.mem, worker.ledger
        if ready:
            delta = worker.delta(state.anchor)
            mem, entry = fold(worker.exchange, delta, mem)
            if books is not None:
                books.book(entry)
        if self._is_stale(record.history) and "residual" in mem:
            LOG.warning("%s: its residual is of an older round and is dropped", self.name)
            if books is not None:
                books.forget(mem["residual"])
            mem = {**mem, "residual": mem["residual"] * 0}
        self.standing, mem = self.standing.move(record.history, mem, books)
        LOG.info("%s: goes on in round %d, told by others", self.name, record.history.round)
        after = RoundState(record.anchor, mem, record.outer, record.history.round)
        worker.stand(after, record.buffers)

    def _is_stale(self, history: History) -> bool:
        # Another life of this worker has spoken since the residual was kept: part of it is said.
        last = history.last_of(self.name)
        known = [t for t in self.standing.told if t.round == last]
        spoke = any(t.generation == history.decided(last) for t in known)
        return last >= self.standing.history.round and not spoke

    def told(self, worker: LocalSGD, delta: Tensor, tried: Tried) -> Told:
        """Returns what this worker has said in a try of a round.

        Args:
            worker: before it takes the try up.
            delta: (d,) float32, its pseudo-gradient.
            tried: what the try came to.
        """
        mem, said = worker.hold()[0].mem, None
        if "residual" in mem:
            if tried.cleared:
                mem = {**mem, "residual": mem["residual"] * 0}
            owed, _ = fold(worker.exchange, delta, mem)
            said = owed["residual"] - tried.state.mem["residual"]
        return Told(worker.round, self._generation, said, tried.entry)

    def save(self) -> dict[str, Any]:
        """Returns where this worker stands, as plain data."""
        return {"name": self.name, **self.standing.history.to_json()}

    def resume(self, worker: LocalSGD, state: RoundState, saved: dict[str, Any]) -> RoundState:
        """Returns what a worker that has just joined goes on from, of what it once saved.

        Where the group is as far, that is where the group is, and of the saved state the residual
        alone, if this worker has not spoken since. Where the group is not, its next meeting goes
        on from whoever is furthest.

        Args:
            worker: has done no local step since it joined.
            state: that it saved.
            saved: what `save` returned then.
        """
        was, now = History.from_json(saved), self.standing.history
        if was.round > now.round:
            self.standing = Standing(was)
            self.broken = TransportError("it goes on from a snapshot")
            taken = state
        else:
            taken, _ = worker.hold()
            unspoken = saved["name"] == self.name and now.last_of(self.name) < was.round
            same = now.decided(was.round - 1) == was.last
            if "residual" in taken.mem and unspoken and same:
                mem = {**taken.mem, "residual": state.mem["residual"]}
                taken = replace(taken, mem=mem)
            elif "residual" in taken.mem:
                LOG.warning("%s: the residual it saved is of an older round: dropped", self.name)
        if worker.ledger is not None and "residual" in taken.mem:
            worker.ledger.start = host.bring(taken.mem["residual"]).double()
        return taken

    def settings(self) -> dict[str, Any]:
        """Returns what all workers of the group must agree on, as plain data."""
        return {"N": self.N, "min_replicas": self.min_replicas, "mean": self.mean}


class Scaled:
    """The agreed outer step along a share of the direction; no setting, since nobody chooses it.

    Args:
        outer: the agreed one.
        share: of the configured workers, those that took part.
    """

    def __init__(self, outer: Outer, share: float) -> None:
        self._outer, self._share = outer, host.float_(share)

    def step(
        self, anchor: Tensor, direction: Tensor, state: OuterState
    ) -> tuple[Tensor, OuterState]:
        """Returns the new anchor and the new state."""
        return self._outer.step(anchor, direction * self._share, state)
