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
from collections.abc import Generator
from dataclasses import replace
from typing import cast

from thinwire.elastic.history import Generation
from thinwire.elastic.meet import (
    DONE_PART,
    Decision,
    decide,
    introduced,
)
from thinwire.elastic.member import Member, Scaled
from thinwire.elastic.regroup import Place, Regroup, Talk, among
from thinwire.errors import ConfigError, DivergedError, FrameError, TransportError
from thinwire.outer import Outer
from thinwire.shell import LocalSGD
from thinwire.transport import base
from thinwire.transport.base import Post, Take, turn
from thinwire.wire.frame import HEADER, Address, Kind, seal, unseal

LOG = logging.getLogger("thinwire")
ALONE = 0, 1, 0
"""Where a worker sits between rounds."""
FRAMES_REFUSED = 5
"""Broken frames in a row after which it is no accident."""


class Elastic(Member):
    """A member and the talks of its rounds; who answers them is for a subclass to say."""

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

    def leaving(self, worker: LocalSGD) -> Talk[None]:
        """Meets the others once more, so that whoever is behind is told how it ended."""
        # The others must not take it for ready, as they may in a quorum that has met.
        self.broken = self.broken or TransportError("it is leaving")
        yield from self._until_done(worker, ready=False, called=False, leaving=True)

    def _until_done(
        self, worker: LocalSGD, ready: bool, called: bool, leaving: bool = False
    ) -> Talk[None]:
        failed, self.broken = self.broken, None
        waiting, refused, done = False, 0, False
        while not done:
            place = yield Regroup(failed, waiting, leaving)
            assert isinstance(place, Place)
            if leaving and place.size < self.min_replicas:
                return
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
            outer = cast(Outer, Scaled(outer, n / self.N))
        worker.sit(members.index(rank), n, run)
        try:
            every = worker.watch.compare
            if every and worker.round and worker.round % every == 0:
                yield from among(worker.compare_talk(), members)
            state, _ = worker.hold()
            delta = worker.delta(state.anchor)
            tried = yield from among(worker.try_round(called, outer), members)
            self.standing = self.standing.tell(self.told(worker, delta, tried))
            yield from among(_all_done(run, worker.round, worker.place), members)
            # All that took part know what they said: from here on this try stands.
            names = tuple(self._names[r] for r in members)
            self.standing = self.standing.commit(self._generation, names)
            worker.report(worker.take_up(tried))
        finally:
            worker.sit(*ALONE)

    def _tell(self, worker: LocalSGD, rank: int, behind: tuple[int, ...]) -> Talk[None]:
        if behind:
            record = self.record(worker)
            frame = record.seal(self._generation[1], rank)
            posts = tuple(Post(other, frame, record.bound) for other in behind)
            yield from among(turn(posts), range(max(behind) + 1))

    def _learn(self, worker: LocalSGD, giver: int, ready: bool) -> Talk[None]:
        like = self.record(worker)
        takes = (Take(giver, like.bound),)
        (frame,) = yield from among(turn((), takes), range(giver + 1))
        self.adopt(worker, like.unseal(frame, self._generation[1], giver), ready)


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
