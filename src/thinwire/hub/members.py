"""Who is here: workers join, are heard, fall silent and leave; each keeps its number for good."""

from __future__ import annotations

from dataclasses import dataclass, field

from thinwire.hub.journal import Record
from thinwire.hub.records import Joined, Left
from thinwire.hub.refused import Refused, Why
from thinwire.hub.state import HubState, Member

MOST_MEMBERS = 65535


@dataclass
class Members:
    """The members of a state, and when each that is here last said a word.

    Args:
        state: of the hub; its members are changed.
        timeout: seconds without a word after which a worker is lost.
        most_live: workers that may be live at once.
    """

    state: HubState
    timeout: float
    most_live: int
    heard: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = {m.number: name for name, m in self.state.members.items()}
        self.live = sum(m.live for m in self.state.members.values())

    def join(self, name: str, weight: float, now: float) -> tuple[Member, Record | None]:
        """Returns the member of that name, live, and the record if that is news.

        Raises:
            Refused: the hub is full.
        """
        known = self.state.members.get(name)
        if known is not None and known.live and known.weight == weight:
            self.heard[name] = now
            return known, None
        if (known is None or not known.live) and self.live >= self.most_live:
            raise Refused(Why.LIMIT, f"the hub is full: {self.live} workers are here")
        if known is None and len(self.state.members) >= MOST_MEMBERS:
            raise Refused(Why.LIMIT, f"the hub has known {MOST_MEMBERS} workers and takes no more")
        self.heard[name] = now
        number = len(self.state.members) + 1 if known is None else known.number
        return self.enter(name, number, weight), Joined(number, weight, name).record()

    def enter(self, name: str, number: int, weight: float) -> Member:
        """Returns the member of that name and number, who is live from now on."""
        member = self.state.members.setdefault(
            name, Member(number, stamp=self.state.stamp, live=False)
        )
        self.live += not member.live
        member.live, member.weight = True, weight
        self.names[number] = name
        return member

    def leave(self, name: str) -> Record | None:
        """Marks a worker as gone and returns the record, if it was here."""
        self.heard.pop(name, None)
        member = self.state.members.get(name)
        if member is None or not member.live:
            return None
        member.live = False
        self.live -= 1
        return Left(member.number).record()

    def silent(self, now: float) -> list[str]:
        """Returns the live workers that have been silent for longer than the timeout."""
        live = (name for name, m in self.state.members.items() if m.live)
        # A worker that was live when the hub went down has a timeout's time to come back.
        return [name for name in live if now - self.heard.setdefault(name, now) > self.timeout]

    def weight(self) -> float:
        """Returns the sum of the weights of those who are here."""
        return sum(m.weight for m in self.state.members.values() if m.live)
