r"""Rounds of a group whose workers die, return and join: a round is tried until one try stands.

    quorum -> meet -> those at the same round, local steps done: one_round -> all done? -> take up
                 \-> the others: wait, then take the state of one of them

Read `rounds` and `_in_quorum`; they are talks like every round, so that a simulation which breaks
them at each of their yields runs this code.

A try stands where somebody has taken it up, and nobody takes it up before all that took part
have said that they are done with it. So whoever spoke in a try that stands knows what it said.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from thinwire import host
from thinwire.elastic.history import Generation, History, Standing, Told
from thinwire.elastic.meet import (
    DONE_PART,
    Decision,
    Record,
    decide,
    introduced,
)
from thinwire.elastic.regroup import Place, Regroup, Talk, among
from thinwire.errors import ConfigError, DivergedError, FrameError, TransportError
from thinwire.exchange import Server
from thinwire.ledger import fold
from thinwire.outer import Outer, OuterState
from thinwire.round import RoundState
from thinwire.shell import LocalSGD, Tried
from thinwire.transport import base
from thinwire.transport.base import Post, Take, turn
from thinwire.value import of_kind, one_of, whole
from thinwire.wire.frame import HEADER, Address, Kind, seal, unseal

LOG = logging.getLogger("thinwire")
Mean = Literal["quorum", "configured"]
ALONE = 0, 1, 0
"""Where a worker sits between rounds."""
FRAMES_REFUSED = 5
"""Broken frames in a row after which it is no accident."""


class Elastic(ABC):
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
        """Runs `joining`, or has it run."""

    @abstractmethod
    def sync(self, worker: LocalSGD, called: bool) -> None:
        """Runs `rounds`, or has it run."""

    def check(self, worker: LocalSGD) -> None:
        """Raises a ConfigError unless this worker's exchange can lose and gain workers."""
        exchange = worker.exchange
        why = None
        if not exchange.replicates:
            why = "its workers hold models of their own, and nobody could tell one to who returns"
        elif exchange.pace != "common":
            why = "its workers speak at times of their own, and no quorum could meet"
        elif isinstance(exchange, Server) and exchange.downlink is not None:
            why = "its master's residual would be lost with the master"
        elif isinstance(exchange, Server) and exchange.root:
            why = "the rank of its master may be gone; use root=0, the first of each quorum"
        if why:
            raise ConfigError(
                f"{exchange!r} cannot be elastic: {why}. Use Gather(), Ring() or Server()"
            )

    def joining(self, worker: LocalSGD) -> Talk[None]:
        """Takes a worker in: it then holds what the quorum holds, and counts in the next round."""
        self.check(worker)
        yield from self._until_done(worker, ready=False, called=False)

    def rounds(self, worker: LocalSGD, called: bool = False) -> Talk[None]:
        """Tries the worker's round until it stands, or until others' rounds have overtaken it.

        Args:
            worker: its local steps are done.
            called: whether all were called together, whatever their local steps.

        Raises:
            NonFiniteError: some worker's message holds a NaN or an infinity; nothing is applied.
            ConfigError: this worker cannot be one of this quorum.
            DivergedError: workers that stand on the same rounds hold other bits.
        """
        yield from self._until_done(worker, ready=True, called=called)

    def _until_done(self, worker: LocalSGD, ready: bool, called: bool) -> Talk[None]:
        failed, self.broken = self.broken, None
        waiting, refused, done = False, 0, False
        while not done:
            place = yield Regroup(failed, waiting)
            assert isinstance(place, Place)
            try:
                done = yield from self._in_quorum(worker, place, ready, called)
                failed, waiting = None, not done
            except (TransportError, FrameError) as error:
                refused = refused + 1 if isinstance(error, FrameError) else 0
                if refused >= FRAMES_REFUSED:
                    raise
                LOG.warning("%s: round %d again: %s", self.name, worker.round, error)
                failed, waiting = error, False
            except BaseException as error:
                # Whatever it is, the others may be in the middle of something with this worker.
                self.broken = error if isinstance(error, Exception) else None
                raise

    def _in_quorum(self, worker: LocalSGD, place: Place, ready: bool, called: bool) -> Talk[bool]:
        if place.size < self.min_replicas:
            LOG.warning(
                "%s: no quorum: %d of %d workers are here, and a round needs %d; waiting",
                self.name, place.size, self.N, self.min_replicas,
            )  # fmt: skip
            return False
        everyone = tuple(range(place.size))
        members, leader = everyone, 0
        behind: tuple[int, ...] = ()
        if place.fresh or not self._met:
            self._met = False
            decision = yield from self._meet(worker, place, ready)
            if decision.problems:
                return False
            members, leader = decision.members, decision.leader
            behind = tuple(r for r in everyone if r not in decision.based)
        if len(members) < self.min_replicas:
            # Too few are ready: whoever is behind catches up now, and is ready the next time.
            if place.rank in behind:
                yield from self._learn(worker, leader, ready)
            elif place.rank == leader:
                yield from self._tell(worker, place.rank, behind)
            return place.rank not in members
        if place.rank in members:
            yield from self._try(worker, members, place.rank, called)
            try:
                if place.rank == members[0]:
                    rest = tuple(r for r in everyone if r not in members)
                    yield from self._tell(worker, place.rank, rest)
            except TransportError as error:
                # This worker's round is done; the next quorum puts the others right.
                self.broken = error
        else:
            yield from self._learn(worker, members[0], ready)
        self._met = True
        return True

    def _meet(self, worker: LocalSGD, place: Place, ready: bool) -> Talk[Decision]:
        history = self.standing.history
        own = worker.introduce()
        settings = {**own.get("settings", {}), "elastic": self.settings()}
        own = {
            **own, "settings": settings, "name": self.name, "ready": ready,
            "round": history.round, "stamp": history.stamp, "last": _listed(history.last),
        }  # fmt: skip
        everyone = range(place.size)
        hellos, fingerprint = yield from among(introduced(own, place.rank, place.size), everyone)
        decision = decide(hellos, fingerprint, self.N)
        if place.rank in decision.problems:
            raise ConfigError(decision.problems[place.rank])
        for rank, why in decision.problems.items():
            LOG.warning("%s: %s is left out: %s", self.name, decision.names[rank], why)
        if decision.diverged:
            raise DivergedError(list(decision.diverged), "the anchor", history.round)
        self._generation, self._names = decision.generation, decision.names
        if place.rank in decision.based and not decision.problems:
            self.standing = replace(
                self.standing, history=replace(history, stamp=decision.generation[0])
            )
        return decision

    def _try(
        self, worker: LocalSGD, members: tuple[int, ...], rank: int, called: bool
    ) -> Talk[None]:
        n, run = len(members), self._generation[1]
        outer = worker.outer
        if self.mean == "configured" and n < self.N:
            outer = Scaled(outer, n / self.N)
        worker.sit(members.index(rank), n, run)
        try:
            state, _ = worker.hold()
            delta = state.anchor - worker.progress(state.anchor)
            tried = yield from among(worker.try_round(called, outer), members)
            self.standing = self.standing.tell(self._told(worker, delta, tried))
            yield from among(_all_done(run, worker.round, worker.place), members)
            # All that took part know what they said: from here on this try stands.
            names = tuple(self._names[r] for r in members)
            self.standing = self.standing.commit(self._generation, names)
            worker.take_up(tried)
        finally:
            worker.sit(*ALONE)

    def _told(self, worker: LocalSGD, delta: Tensor, tried: Tried) -> Told:
        mem, said = worker.hold()[0].mem, None
        if "residual" in mem:
            if tried.cleared:
                mem = {**mem, "residual": mem["residual"] * 0}
            owed, _ = fold(worker.exchange, delta, mem)
            said = owed["residual"] - tried.state.mem["residual"]
        return Told(worker.round, self._generation, said, tried.entry)

    def _tell(self, worker: LocalSGD, rank: int, behind: tuple[int, ...]) -> Talk[None]:
        if behind:
            record = self._record(worker)
            frame = record.seal(self._generation[1], rank)
            posts = tuple(Post(other, frame, record.bound) for other in behind)
            yield from among(turn(posts), range(max(behind) + 1))

    def _learn(self, worker: LocalSGD, giver: int, ready: bool) -> Talk[None]:
        like = self._record(worker)
        takes = (Take(giver, like.bound),)
        (frame,) = yield from among(turn((), takes), range(giver + 1))
        self._adopt(worker, like.unseal(frame, self._generation[1], giver), ready)

    def _record(self, worker: LocalSGD) -> Record:
        state, buffers = worker.hold()
        return Record(self.standing.history, state.anchor, state.outer, buffers)

    def _adopt(self, worker: LocalSGD, record: Record, ready: bool) -> None:
        """Goes on where others are: what was not said is owed, what was said and counts is not."""
        state, _ = worker.hold()
        mem, books = state.mem, worker.ledger
        if ready:
            delta = state.anchor - worker.progress(state.anchor)
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
        if worker.ledger is not None and "residual" in taken.mem:
            worker.ledger.start = host.bring(taken.mem["residual"]).double()
        return taken

    def settings(self) -> dict[str, Any]:
        """Returns what all workers of the group must agree on, as plain data."""
        return {"N": self.N, "min_replicas": self.min_replicas, "mean": self.mean}


def _all_done(
    run: int, round: int, seat: tuple[int, int]
) -> Generator[base.Ask, base.Answer, None]:
    """Waits until every worker of a try has said that it has all of it."""
    rank, n = seat
    others = [other for other in range(n) if other != rank]
    said = seal(Kind.SILENCE, Address(run, round, rank, DONE_PART), b"")
    posts = tuple(Post(other, said, HEADER) for other in others)
    frames = yield from turn(posts, tuple(Take(other, HEADER) for other in others))
    for other, frame in zip(others, frames, strict=True):
        unseal(frame, Address(run, round, other, DONE_PART), Kind.SILENCE)


def _listed(generation: Generation | None) -> list[int] | None:
    return None if generation is None else list(generation)


@dataclass(frozen=True, repr=False)
class Scaled(Outer):
    """The agreed outer step along a share of the direction.

    Args:
        outer: the agreed one.
        share: of the configured workers, those that took part.
    """

    outer: Outer
    share: float

    def init(self, anchor: Tensor) -> OuterState:
        return self.outer.init(anchor)

    def step(
        self, anchor: Tensor, direction: Tensor, state: OuterState
    ) -> tuple[Tensor, OuterState]:
        return self.outer.step(anchor, direction * host.float_(self.share), state)
