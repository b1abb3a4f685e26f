"""What befalls a run: a story is drawn from its seed and number, and is the same every time."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

KINDS = ("sync", "elastic", "ring", "gossip")
N = 4
ROUNDS = 50
DEADLINE = 3.0
"""Seconds after which a silent worker is given up."""
FIRST, LAST = 4, ROUNDS - 8
"""Rounds in which something may happen."""
FOR_GOOD = 0.5
"""How likely it is that an elastic worker that dies does not come back."""
SPOILS = 14
"""From which on snapshots may be altered."""


@dataclass(frozen=True)
class Event:
    """One thing that happens to one worker, in its own process or beside it.

    Args:
        what: "kill" (SIGKILL), "exit" (it ends itself), "stop" (SIGSTOP, and SIGCONT after some
            seconds), "slow" (every message is late for a few rounds), "cut" (its connections
            break), "lose" (a message never comes), "term" (SIGTERM), "full" (its disk is full),
            "flip" or "short" (killed, and its newest snapshot then altered, or cut short).
        who: its number.
        round: in or after which round it happens.
        turn: at which of the round's messages.
        seconds: how long it lasts; for a "kill" of an elastic worker, after how long it returns, 0
            for never.
    """

    what: str
    who: int
    round: int
    turn: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Story:
    """A run and what befalls it.

    Args:
        number: of the story.
        seed: of model, order and compressors.
        kind: of exchange: one of `KINDS`.
        form: which exchange of that kind.
        events: in the order of their rounds.
        hosts: whether each worker is a host of its own, whose link is slowed and cut outside of it.
    """

    number: int
    seed: int
    kind: str
    form: str
    events: tuple[Event, ...]
    hosts: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Returns the story as plain data."""
        return asdict(self)

    @staticmethod
    def of(data: dict[str, Any]) -> Story:
        """Returns what `as_dict` wrote."""
        return Story(**{**data, "events": tuple(Event(**e) for e in data["events"])})


FORMS = {
    "sync": ("server", "gather"),
    "elastic": ("gather", "server", "ring"),
    "ring": ("ring", "two-phase", "gather"),
    "gossip": ("gossip", "choco"),
}
LINK = ("slow", "cut")
"""What befalls a link rather than a worker."""
HARM = {
    "sync": ("kill", "exit", "stop", "slow", "cut", "term", "full", "flip", "short"),
    "ring": ("kill", "exit", "stop", "slow", "cut", "term", "full", "flip", "short"),
    "gossip": ("kill", "exit", "stop", "slow", "lose", "term", "full", "flip", "short"),
    "elastic": ("kill", "exit", "stop", "slow", "cut", "flip"),
}


def plan(seed: int, number: int, kinds: tuple[str, ...] = KINDS, hosts: bool = False) -> Story:
    """Returns one story.

    Args:
        seed: of all stories.
        number: from 0; kinds take turns.
        kinds: to choose from.
        hosts: whether each worker is a host of its own.

    Example:
        >>> plan(0, 1) == plan(0, 1), plan(0, 1) == plan(1, 1)
        (True, False)
        >>> Story.of(plan(0, 1).as_dict()) == plan(0, 1)
        True
    """
    draw = random.Random(seed * 1_000_003 + number)
    kind = kinds[number % len(kinds)]
    form = draw.choice(FORMS[kind])
    rounds = sorted(draw.sample(range(FIRST, LAST), draw.randint(1, 3)))
    events, gone = [], False
    for round in rounds:
        # There must be a whole snapshot before the one that is spoilt.
        harm = [h for h in HARM[kind] if round >= SPOILS or h not in ("flip", "short")]
        what = draw.choice(harm)
        seconds = _lasts(what, kind, hosts, draw)
        if kind == "elastic" and what in ("kill", "exit"):
            # One of four may stay away for good; a second would leave no majority that could.
            stays_away = not gone and draw.random() < FOR_GOOD
            seconds = 0.0 if stays_away else seconds
            gone = gone or stays_away
        events.append(Event(what, draw.randrange(N), round, draw.randrange(6), seconds))
    return Story(number, draw.randrange(1 << 20), kind, form, _spared(events), hosts)


def _lasts(what: str, kind: str, hosts: bool, draw: random.Random) -> float:
    if what == "stop":
        return round(draw.choice((draw.uniform(0.2, 1.0), DEADLINE + draw.uniform(0.5, 1.0))), 2)
    if what in LINK and hosts:
        return round(draw.uniform(0.5, 1.5) + (DEADLINE if what == "cut" else 0.0), 2)
    if what == "slow":
        return round(draw.uniform(0.005, 0.02), 3)
    if kind == "elastic" and what in ("kill", "exit", "flip"):
        return round(draw.uniform(0.2, 1.5), 2)
    return 0.0


def _spared(events: list[Event]) -> tuple[Event, ...]:
    """Returns the events without those of a worker after it is gone for good."""
    gone: set[int] = set()
    left = []
    for event in events:
        if event.who not in gone:
            left.append(event)
        if event.what in ("kill", "exit") and not event.seconds:
            gone.add(event.who)
    return tuple(left)
