"""Workers' places on a hub: one stream holds each, the latest, and it may be taken away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from thinwire.hub.refused import Refused, Why


@dataclass(eq=False)
class Place:
    """A worker's place, as one stream holds it.

    Args:
        name: of the worker.
        task: serves the stream.
        busy: whether an answer is owed.
        ends: why it is ended from outside, once it is.
    """

    name: str
    task: asyncio.Task[Any]
    busy: bool = False
    ends: tuple[Why, str] | None = None


class Places:
    """All places that are held, by the names of their workers."""

    def __init__(self) -> None:
        self._held: dict[str, Place] = {}

    @contextmanager
    def held(self, name: str) -> Iterator[Place]:
        """Takes a worker's place for this task's stream, for the body of a `with` statement.

        Raises:
            Refused: the place was taken away; says why.
        """
        task = asyncio.current_task()
        assert task is not None
        # What the stream before has asked of the core comes before all that this one asks, and
        # once it is cancelled it asks nothing more.
        self.end(
            name,
            Why.ORDER,
            f"a later connection of {name!r} has taken this worker's place on the hub; is another "
            "process of that name running?",
        )
        place = self._held[name] = Place(name, task)
        try:
            yield place
        except (asyncio.CancelledError, Refused):
            if place.ends is None:
                raise
            raise Refused(*place.ends) from None
        finally:
            if self._held.get(name) is place:
                del self._held[name]

    def end(self, name: str, why: Why, sentence: str) -> None:
        """Ends the stream that holds a place, if one does, with this refusal."""
        place = self._held.get(name)
        if place is not None:
            place.ends = why, sentence
            place.task.cancel()

    def end_soon(self, loop: asyncio.AbstractEventLoop, name: str, why: Why, sentence: str) -> None:
        """The same from another thread; what the stream is refused meanwhile is refused so, too."""
        place = self._held.get(name)
        if place is not None:
            place.ends = why, sentence
            loop.call_soon_threadsafe(self._cancel, place)

    def close(self, why: Why, sentence: str) -> None:
        """Ends every stream that is owed no answer."""
        for name, place in self._held.items():
            if not place.busy:
                self.end(name, why, sentence)

    def _cancel(self, place: Place) -> None:
        if self._held.get(place.name) is place:
            place.task.cancel()
