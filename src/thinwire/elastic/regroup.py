"""What an elastic round may ask besides: a quorum to run in. Who answers is not its business."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from thinwire.transport import base
from thinwire.transport.base import Take, Turn

R = TypeVar("R")


@dataclass(frozen=True)
class Regroup:
    """Give me a quorum: the workers that are there now, and my place among them.

    Args:
        failed: why the last quorum broke, so that the next one talks over new connections.
        waiting: whether nothing can be done before somebody else comes.
        leaving: whether nobody need be waited for longer than a deadline.
    """

    failed: Exception | None = None
    waiting: bool = False
    leaving: bool = False


@dataclass(frozen=True)
class Place:
    """A worker's place in a quorum.

    Args:
        rank: this worker, in an order that all of the quorum share.
        size: how many they are; 0 where one is leaving and the others are gone.
        fresh: whether this is another quorum than the last, talking over connections of its own.
    """

    rank: int
    size: int
    fresh: bool


Ask = base.Ask | Regroup
Answer = base.Answer | Place
Talk = Generator[Ask, Answer, R]


def among(talk: Generator[base.Ask, base.Answer, R], members: Sequence[int]) -> Talk[R]:
    """Runs a talk among some of a quorum, who count themselves from 0, in the quorum's order.

    Args:
        talk: of a round.
        members: their ranks in the quorum, ascending.

    Example:
        >>> from thinwire.transport.base import Post, turn
        >>> ask = next(among(turn((Post(1, b"frame", 9),), (Take(0, 9),)), [1, 3]))
        >>> ask.posts[0].to, ask.takes[0].source
        (3, 1)
    """

    def onward(take: Take) -> int | None:
        return None if take.onward is None else members[take.onward]

    try:
        ask = next(talk)
        while True:
            if isinstance(ask, Turn):
                posts = tuple(replace(p, to=members[p.to]) for p in ask.posts)
                takes, coming = (
                    tuple(replace(t, source=members[t.source], onward=onward(t)) for t in some)
                    for some in (ask.takes, ask.coming)
                )
                ask = Turn(posts, takes, coming)
            answer = yield ask
            assert not isinstance(answer, Place)
            ask = talk.send(answer)
    except StopIteration as stop:
        result: R = stop.value
        return result
    finally:
        talk.close()
