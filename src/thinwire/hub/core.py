"""The hub as a state machine: join, update, leave, tick; no socket, no clock, no file.

The same events in the same order end in the same bits: that is what the journal relies on. The
vectors of the state are changed in place, because a copy of d floats at each update is what a hub
cannot afford.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from torch import Tensor

from thinwire.compress import Compressor
from thinwire.exchange.base import Here
from thinwire.exchange.hub import ENTRY, HUB, Hub, is_plain
from thinwire.exchange.hub_rules import ByWeight, Stream
from thinwire.flat import Spans
from thinwire.hub.journal import Record, gap
from thinwire.hub.judge import awaited, infinite, judge, read_step
from thinwire.hub.members import Members
from thinwire.hub.reach import Reach
from thinwire.hub.records import Joined, Left, Updated, read
from thinwire.hub.refused import Refused, Why
from thinwire.hub.replies import Replies
from thinwire.hub.said import Said, Taken
from thinwire.hub.state import HubState, Member, bucket
from thinwire.hub.steps import Steps, stepped
from thinwire.hub.stream import Speaker
from thinwire.keys import Key
from thinwire.wire.frame import Address

TOGETHER, TOGETHER_BYTES = 64, 1 << 24
"""Updates that are taken together, and about how many bytes of them: what follows a body that is
not fine is judged anew."""
T = TypeVar("T")


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

    def __post_init__(self) -> None:
        self._here = Here(HUB, 0, 0, Key(self.seed), self.compressor, self.spans, self.run)
        self.members = Members(self.state, self.timeout, self.most_live)
        self.heard = self.members.heard
        self._reach = Reach(self.state)
        self._replies = Replies(self.run, self.exchange, self.spans, self.seed)
        self._steps = Steps(self.compressor, self.spans, is_plain(self.exchange.outer))
        self._speaker: Speaker | None = None
        if isinstance(self.exchange.downlink, Stream):
            owed, marked = self.state.owed, self._steps.covers
            assert owed is not None
            self._speaker = Speaker(self.exchange, self.spans, self.seed, owed, marked, self._reach)

    @property
    def is_brief(self) -> bool:
        """Whether neither updates nor answers take a pass over the model, as a rule."""
        return self._steps.covers and self.room == inf

    @property
    def live(self) -> int:
        """Workers that are here."""
        return self.members.live

    @property
    def room(self) -> float:
        """Workers whose residuals are kept at once; infinite where the hub keeps none."""
        return self._replies.room

    def join(self, name: str, weight: float, now: float) -> tuple[Member, Record | None]:
        """Returns the member of that name, live, and the record if that is news.

        Raises:
            Refused: the hub is full.
        """
        return self.members.join(name, weight, now)

    def leave(self, name: str) -> Record | None:
        """Marks a worker as gone and returns the record, if it was here."""
        if (member := self.state.members.get(name)) is not None:
            self._replies.forget(member.number)
        return self.members.leave(name)

    def tick(self, now: float) -> list[str]:
        """Returns the live workers that have been silent for longer than the timeout."""
        return self.members.silent(now)

    def whole(self, number: int) -> bytes:
        """Returns the ANCHOR frame that says all of the model that workers are told."""
        self.state.members[self.members.names[number]].stamp = self.state.stamp
        return self._replies.whole(self.state, number)

    def back(self, number: int) -> None:
        """Is told that a worker comes back with the model it holds."""
        self._replies.back(number)

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
        answers: list[Taken | Refused] = []
        while len(answers) < len(batch):
            ready = self._ready(batch[len(answers) :])
            taken = [self._told(*one) for one in self._together(ready)]
            answers += taken
            if len(taken) < max(1, len(ready)):
                try:
                    answers.append(self._alone(batch[len(answers)]))
                except Refused as refused:
                    # Where it was raised refers to the answers: a circle, kept until it is found.
                    answers.append(refused.with_traceback(None))
        return answers

    def replay(self, record: bytes) -> None:
        """Applies a record of the journal again, as it was applied then.

        Raises:
            ConfigError: one that came before it is missing.
        """
        event = read(record)
        name = self.members.names.get(event.number)
        if isinstance(event, Joined):
            if name is None and event.number > len(self.members.names) + 1:
                raise gap(f"worker number {event.number} joins, number {event.number - 1} did not")
            self.members.enter(event.name, event.number, event.weight)
            return
        if name is None:
            raise gap(f"worker number {event.number} speaks or leaves, and has not joined")
        member = self.state.members[name]
        if isinstance(event, Left):
            self.leave(name)
        elif event.sequence == member.sequence:
            again = [(None, member, event)] if self._steps.covers and event.divisor < inf else []
            if not list(self._together(again)):
                self._take(member, event)
            member.stamp = self.state.stamp
        elif event.sequence > member.sequence:
            missing, there = member.sequence, event.sequence
            raise gap(f"update {there} of worker {name!r} is there, update {missing} is not")

    def _ready(self, batch: Sequence[Said]) -> list[tuple[Said, Member, Updated]]:
        """Returns those at the batch's start that are taken together, if their bodies are fine.

        Each of them is answered as if those after it had not come.
        """
        ready: list[tuple[Said, Member, Updated]] = []
        s, numbers, more = self.state, set[int](), 0
        left = TOGETHER if self._speaker is None else self._speaker.left(s.unsaid, self.live)
        for said in batch[: min(left, TOGETHER)] if self._steps.covers else ():
            member = s.members.get(said.name)
            if member is None or not member.live or member.number in numbers:
                break
            self.heard[said.name] = said.now
            check = awaited(said, member, self.run, s.version)
            if check is None:
                break
            staleness = s.applied + len(ready) - s.stamp_of(member, said.base)
            divisor = self._divisor(member, staleness)
            if divisor == inf:
                break
            given = member.number, member.sequence, staleness, divisor, said.frame, check
            ready.append((said, member, Updated(*given)))
            numbers.add(member.number)
            more += ENTRY.size + len(said.frame)
            if self._speaker is None and not self._replies.repeats(s, said.base, more):
                break  # Values are told, and those must be of this moment.
            if more > TOGETHER_BYTES:
                break
        return ready

    def _together(
        self, ready: Sequence[tuple[T, Member, Updated]]
    ) -> Iterator[tuple[T, Member, Updated]]:
        """Applies updates of finite divisors up to the first whose body is not fine.

        Yields each as soon as it is counted: those after it are applied then, but not counted.
        """
        if not ready:
            return
        s = self.state
        x = s.anchor if self._speaker is None else self._speaker.owed
        frames, divisors = zip(*((u.frame, u.divisor) for _, _, u in ready), strict=True)
        given = frames, divisors, self._reach.room(len(ready)), s.touched, s.version + 1
        for one, size in zip(ready, self._steps.take(x, *given), strict=False):
            self._reach.took(size)
            self._count(one[1], one[2])
            yield one

    def _alone(self, said: Said) -> Taken:
        s = self.state
        member = s.members.get(said.name)
        if member is None or not member.live:
            raise Refused(Why.ORDER, f"worker {said.name!r} has not joined")
        self.heard[said.name] = said.now
        sequence, check = judge(said.frame, said.base, member, said.name, self.run, s.version)
        if sequence < member.sequence:
            self._replies.forget(member.number)  # The answer that it asks for again was lost.
            return Taken(self._reply(member, sequence, said.base), None, 0)
        staleness = s.applied - s.stamp_of(member, said.base)
        divisor = self._divisor(member, staleness)
        update = Updated(member.number, sequence, staleness, divisor, said.frame, check)
        self._take(member, update)
        return self._told(said, member, update)

    def _told(self, said: Said, member: Member, update: Updated) -> Taken:
        reply = self._reply(member, update.sequence, said.base)
        return Taken(reply, update.record(), update.staleness)

    def _divisor(self, member: Member, staleness: int) -> float:
        """What an update is divided by; infinite where it is refused as too stale."""
        factor = self.exchange.staleness.factor(staleness)
        counting = self.exchange.counting
        total = self.members.weight() if isinstance(counting, ByWeight) else 0.0
        divisor = counting.divisor(member.weight, self.live, total)
        return divisor / factor if factor else inf

    def _take(self, member: Member, update: Updated) -> None:
        """Applies a member's next update; raises a Refused before anything has changed."""
        s, where = self.state, Address(self.run, member.sequence, member.number)
        index, step, size = read_step(update.frame, where, update.divisor, self._here)
        if not self._reach.takes(size):
            raise infinite(member)
        taken = update.divisor < inf
        news = self._step(member, index, step) if taken else None
        if taken and s.touched is not None:
            s.touched[slice(None) if news is None else news] = s.version + 1
        self._count(member, update)

    def _count(self, member: Member, update: Updated) -> None:
        """Counts a member's next update, applied or refused as too stale."""
        s, taken = self.state, update.divisor < inf
        member.sequence, member.check, member.taken = member.sequence + 1, update.check, taken
        s.histogram[bucket(update.staleness)] += 1
        s.staleness += update.staleness
        if not taken:
            s.refused += 1
            return
        member.applied += 1
        s.applied += 1
        if self._speaker is None:
            s.version += 1
            if s.touched is not None:
                start = ENTRY.pack(update.divisor, len(update.frame))
                s.ring.push(s.applied, start, (update.frame, update.check))
            return
        s.unsaid += 1
        if self._speaker.is_due(s.unsaid, self.live):
            self._speaker.say(s)

    def _reply(self, member: Member, sequence: int, base: int) -> tuple[bytes, ...]:
        member.stamp = self.state.stamp
        return self._replies.reply(self.state, member, sequence, base)

    def _step(self, member: Member, index: Tensor | None, step: Tensor) -> Tensor | None:
        """Moves the model; returns which entries may have changed, None for all."""
        x = self.state.anchor if self.state.owed is None else self.state.owed
        moved = stepped(x, index, step, self.exchange.outer, self.state.outer, self._reach)
        if moved is None:
            raise infinite(member)
        news, self.state.outer = moved
        if self._speaker is not None:
            self._speaker.forget()
        return news
