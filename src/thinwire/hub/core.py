"""The hub as a state machine: join, update, leave, tick; no socket, no clock, no file.

The same events in the same order end in the same bits: that is what the journal relies on. The
vectors of the state are changed in place, because a copy of d floats at each update is what a hub
cannot afford.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from torch import Tensor

from thinwire.compress import Compressor
from thinwire.exchange.base import Here
from thinwire.exchange.hub import ENTRY, HUB, Hub, is_plain
from thinwire.exchange.hub_rules import ByWeight, Stream
from thinwire.flat import Spans
from thinwire.hub.journal import Record, gap
from thinwire.hub.judge import awaited, infinite, judge, read_step
from thinwire.hub.reach import Reach
from thinwire.hub.records import Joined, Left, Updated, read
from thinwire.hub.refused import Refused, Why
from thinwire.hub.replies import Replies
from thinwire.hub.said import Said, Taken
from thinwire.hub.state import HubState, Member, bucket
from thinwire.hub.steps import ALONE, Steps, divided, stepped
from thinwire.hub.stream import Speaker
from thinwire.keys import Key
from thinwire.wire.frame import Address

MOST_MEMBERS = 65535


@dataclass
class Core:
    """Applies events to a state and answers them.

    Args:
        exchange: the rules.
        compressor: of the workers' messages.
        spans: the tensors.
        seed: of the run.
        run: its fingerprint.
        state: what it starts from.
        timeout: seconds without a word after which a worker is lost.
        most_live: workers that may be live at once.
    """

    exchange: Hub
    compressor: Compressor
    spans: Spans
    seed: int
    run: int
    state: HubState
    timeout: float = 60.0
    most_live: int = 1024
    heard: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._here = Here(HUB, 0, 0, Key(self.seed), self.compressor, self.spans, self.run)
        self._names = {m.number: name for name, m in self.state.members.items()}
        self._live = sum(m.live for m in self.state.members.values())
        self._reach = Reach(self.state, self.land)
        self._replies = Replies(self.run, self.exchange)
        self._steps = Steps(self.compressor, self.spans, is_plain(self.exchange.outer))
        self._speaker: Speaker | None = None
        if isinstance(self.exchange.downlink, Stream):
            owed, marked = self.state.owed, self._steps.covers
            assert owed is not None
            self._speaker = Speaker(self.exchange, self.spans, self.seed, owed, marked, self._reach)

    @property
    def live(self) -> int:
        """Workers that are here."""
        return self._live

    def join(self, name: str, weight: float, now: float) -> tuple[Member, Record | None]:
        """Returns the member of that name, live, and the record if that is news.

        Raises:
            Refused: the hub is full.
        """
        known = self.state.members.get(name)
        self.heard[name] = now
        if known is not None and known.live and known.weight == weight:
            return known, None
        if (known is None or not known.live) and self._live >= self.most_live:
            del self.heard[name]
            raise Refused(Why.LIMIT, f"the hub is full: {self._live} workers are here")
        if known is None and len(self.state.members) >= MOST_MEMBERS:
            del self.heard[name]
            raise Refused(Why.LIMIT, f"the hub has known {MOST_MEMBERS} workers and takes no more")
        number = len(self.state.members) + 1 if known is None else known.number
        self._join(name, number, weight)
        return self.state.members[name], Joined(number, weight, name).record()

    def leave(self, name: str) -> Record | None:
        """Marks a worker as gone and returns the record, if it was here."""
        self.heard.pop(name, None)
        member = self.state.members.get(name)
        if member is None or not member.live:
            return None
        member.live = False
        self._live -= 1
        return Left(member.number).record()

    def tick(self, now: float) -> list[str]:
        """Returns the live workers that have been silent for longer than the timeout."""
        live = (name for name, m in self.state.members.items() if m.live)
        # A worker that was live when the hub went down has a timeout's time to come back.
        return [name for name in live if now - self.heard.setdefault(name, now) > self.timeout]

    def whole(self, number: int) -> bytes:
        """Returns the ANCHOR frame that says all of the model that workers are told."""
        self.state.members[self._names[number]].stamp = self._stamp()
        return self._replies.whole(self.state)

    def update(self, name: str, base: int, frame: bytes, now: float) -> Taken:
        """Applies one update, or repeats the answer to the last one; see `updates`.

        Raises:
            Refused: nothing has changed.
        """
        (answer,) = self.updates([Said(name, base, frame, now)])
        if isinstance(answer, Refused):
            raise answer
        return answer

    def updates(self, batch: Sequence[Said]) -> list[Taken | Refused]:
        """Applies updates in their order, and answers each; a refused one changes nothing.

        The bits, answers and records are those of one after the other.
        """
        answers = self.answers(batch)
        self.land()
        return answers

    def answers(self, batch: Sequence[Said]) -> list[Taken | Refused]:
        """Answers as `updates` does; what is to be applied to the model may wait for `land`."""
        answers: list[Taken | Refused] = []
        for first in range(0, len(batch), self._steps.most):
            self.land()
            part = batch[first : first + self._steps.most]
            self._steps.read([said.frame for said in part])
            for row, said in enumerate(part):
                try:
                    answers.append(self._answer(said, row))
                except Refused as refused:
                    # Where it was raised refers to the answers: a circle, kept until it is found.
                    answers.append(refused.with_traceback(None))
        return answers

    def land(self) -> None:
        """Applies what waits, before anybody looks at the model."""
        x = self.state.anchor if self._speaker is None else self._speaker.owed
        self._steps.land(x, self.state.touched, self.state.version)

    def replay(self, record: bytes) -> None:
        """Applies a record of the journal again, as it was applied then.

        Raises:
            ConfigError: one that came before it is missing.
        """
        event = read(record)
        name = self._names.get(event.number)
        if isinstance(event, Joined):
            if name is None and event.number > len(self._names) + 1:
                raise gap(f"worker number {event.number} joins, number {event.number - 1} did not")
            self._join(event.name, event.number, event.weight)
            return
        if name is None:
            raise gap(f"worker number {event.number} speaks or leaves, and has not joined")
        member = self.state.members[name]
        if isinstance(event, Left):
            self.leave(name)
        elif event.sequence == member.sequence:
            self._steps.read([event.frame])
            self._take(member, event, 0)
            self.land()
            member.stamp = self._stamp()
        elif event.sequence > member.sequence:
            missing, there = member.sequence, event.sequence
            raise gap(f"update {there} of worker {name!r} is there, update {missing} is not")

    def _answer(self, said: Said, row: int) -> Taken:
        s, frame = self.state, said.frame
        member = s.members.get(said.name)
        if member is None or not member.live:
            raise Refused(Why.ORDER, f"worker {said.name!r} has not joined")
        self.heard[said.name] = said.now
        check = awaited(said, member, self.run, s.version)
        if check is None:
            row = ALONE
            sequence, check = judge(frame, said.base, member, said.name, self.run, s.version)
            if sequence < member.sequence:
                return Taken(self._reply(member, sequence, said.base), None, 0)
        sequence, staleness = member.sequence, s.applied - self._stamp_of(member, said.base)
        divisor = self._divisor(member, staleness)
        update = Updated(member.number, sequence, staleness, divisor, frame, check)
        self._take(member, update, row)
        return Taken(self._reply(member, sequence, said.base), update.record(), staleness)

    def _join(self, name: str, number: int, weight: float) -> None:
        known = self.state.members.get(name)
        self._live += known is None or not known.live
        member = known or Member(number, stamp=self._stamp())
        self.state.members[name] = member
        member.live, member.weight = True, weight
        self._names[number] = name

    def _divisor(self, member: Member, staleness: int) -> float:
        """What an update is divided by; infinite where it is refused as too stale."""
        factor = self.exchange.staleness.factor(staleness)
        total = 0.0
        if isinstance(self.exchange.counting, ByWeight):
            total = sum(m.weight for m in self.state.members.values() if m.live)
        divisor = self.exchange.counting.divisor(member.weight, self._live, total)
        return divisor / factor if factor else inf

    def _take(self, member: Member, update: Updated, row: int) -> None:
        """Applies a member's next update; raises a Refused before anything has changed.

        Args:
            member: who sent it.
            update: what it is.
            row: of the steps that were read together, or `ALONE`.
        """
        frame, divisor = update.frame, update.divisor
        s, taken = self.state, divisor < inf
        size = self._steps.size(row)
        if size is None:
            where = Address(self.run, member.sequence, member.number)
            index, step, size = read_step(frame, where, divisor, self._here)
            self._make_room(member, size)
            news = self._step(member, index, step) if taken else None
        else:
            self._make_room(member, divided(size, divisor))
            news = None
            if taken:
                self._steps.wait(row, divisor)
        member.sequence, member.check, member.taken = member.sequence + 1, update.check, taken
        s.histogram[bucket(update.staleness)] += 1
        s.staleness += update.staleness
        if not taken:
            s.refused += 1
            return
        member.applied += 1
        s.applied += 1
        if s.touched is not None:
            s.version += 1
            if not self._steps.waiting:
                s.touched[slice(None) if news is None else news] = s.version
            s.ring.push(s.applied, ENTRY.pack(divisor, len(frame)), (frame, update.check))
            return
        s.unsaid += 1
        assert self._speaker is not None
        if self._speaker.is_due(s.unsaid, self._live):
            self.land()
            self._speaker.say(s)

    def _make_room(self, member: Member, size: float) -> None:
        if not self._reach.takes(size):
            raise infinite(member)

    def _reply(self, member: Member, sequence: int, base: int) -> tuple[bytes, ...]:
        member.stamp = self._stamp()
        return self._replies.reply(self.state, sequence, base, member.taken, self.land)

    def _step(self, member: Member, index: Tensor | None, step: Tensor) -> Tensor | None:
        """Moves the model; returns which entries may have changed, None for all."""
        self.land()
        x = self.state.anchor if self.state.owed is None else self.state.owed
        moved = stepped(x, index, step, self.exchange.outer, self.state.outer, self._reach)
        if moved is None:
            raise infinite(member)
        news, self.state.outer = moved
        if self._speaker is not None:
            self._speaker.forget()
        return news

    def _stamp(self) -> int:
        """Updates applied to the model that workers are told now."""
        s = self.state
        return s.applied if s.owed is None else s.applied - s.unsaid

    def _stamp_of(self, member: Member, base: int) -> int:
        s = self.state
        if base == s.version:
            return self._stamp()
        stamp = s.ring.stamp(base)
        return min(s.applied, member.stamp if stamp is None else stamp)
