"""Reach: how far from zero a hub's model may have come, so that nothing makes it infinite."""

from __future__ import annotations

from math import inf

from thinwire.exchange.hub import largest
from thinwire.hub.state import HubState

HIGHEST = 1e38
"""No entry of a model may come to more; float32 ends at 3.4e38."""
_UP = 2.0**-23
"""A sum in float32 is above that of the same numbers by less than this part of it."""


class Reach:
    """Bounds of what a hub's vectors hold, raised by what is added to them.

    No entry is above its vector's bound, so while those are low no sum of two can overflow. The
    entries themselves are looked at only where the bounds have come too high: a look costs more
    than a step. What is answered depends on the entries alone, so a replay is answered alike.

    Args:
        state: of the hub.
    """

    def __init__(self, state: HubState) -> None:
        self._state = state
        # With a stream updates move what is owed, and frames what is told; else all is told.
        self._moved, self._told = inf, 0.0 if state.owed is None else inf

    def room(self, n: int) -> float:
        """By how much n updates may move entries without a look."""
        return HIGHEST * (1 - n * _UP) - self._told - self._moved

    def took(self, size: float) -> None:
        """Counts an update for which there was room."""
        self._moved = _raised(self._moved + size)

    def takes(self, size: float) -> bool:
        """Whether an update may move entries by so much; counts it."""
        if not self._told + self._moved + size <= HIGHEST:
            self._look()
        return self._counted(self._moved + size)

    def comes_to(self, size: float) -> bool:
        """Whether what updates move may come to so much; counts it."""
        if not self._told + size <= HIGHEST:
            self._look()
        return self._counted(size)

    def says(self, size: float) -> bool:
        """Whether a frame of the stream may say so much; counts it."""
        # What is told and what is owed are each HIGHEST at most, and not all is owed where it is
        # told: the sum of both would hold back frames that do no harm.
        if not self._told + size <= 2 * HIGHEST:
            self._look()
        if not self._told + size <= 2 * HIGHEST:
            return False
        # More may be said of an entry than is owed of it.
        self._told, self._moved = _raised(self._told + size), _raised(self._moved + size)
        return True

    def _counted(self, size: float) -> bool:
        if not self._told + size <= HIGHEST:
            return False
        self._moved = _raised(size)
        return True

    def _look(self) -> None:
        s = self._state
        if s.owed is None:
            self._moved = largest(s.anchor)
        else:
            self._moved, self._told = largest(s.owed), largest(s.anchor)


def _raised(bound: float) -> float:
    # An entry is rounded to float32 at each step, and a bound of it must stay one.
    return bound * (1 + _UP)
