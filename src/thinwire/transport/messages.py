"""Frames in messages of a size: a receiver asks for no more at a time than a line can hold.

A sender that may send as it likes fills the queues before a slow line until they drop what comes,
and then stands still for a second and more. So a frame goes in messages, each is sent when it is
asked for, and a window of them is asked for at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cutting:
    """How frames are cut into messages: both sides know it, and the most bytes of a frame.

    Args:
        first: bytes of the first message, which says how long the frame is.
        each: bytes of each that follows.
        unread: so many messages of a frame a receiver may ask for before it has read the first;
            a shorter frame is made up to them, or to what its bound has, with empty ones.

    Example:
        >>> cutting = Cutting(first=4, each=10, unread=3)
        >>> [(cut.start, cut.stop) for cut in cutting.cuts(25, bound=100)]
        [(0, 4), (4, 14), (14, 24), (24, 25)]
        >>> [(cut.start, cut.stop) for cut in cutting.cuts(3, bound=100)]
        [(0, 3), (3, 3), (3, 3)]
    """

    first: int
    each: int
    unread: int

    def count(self, n: int, bound: int) -> int:
        """Returns in how many messages a frame of n bytes goes, of at most `bound`."""
        return max(self._count(n), min(self.unread, self._count(bound)))

    def cuts(self, n: int, bound: int) -> Iterator[slice]:
        """Yields the bytes of each message of a frame of n bytes, of at most `bound`."""
        return (self.cut(number, n) for number in range(self.count(n, bound)))

    def cut(self, number: int, n: int) -> slice:
        """Returns which bytes that message holds, of n or fewer."""
        low = self.first + (number - 1) * self.each if number else 0
        high = self.first + number * self.each
        return slice(min(low, n), min(high, n))

    def _count(self, n: int) -> int:
        return 1 + max(0, -(-(n - self.first) // self.each))


LEAST = 1 << 20
"""The fewest bytes of a window."""
SPAN = 0.08
"""Seconds: a window holds what came in so many, so that a longer way there and back fills it."""


class Window:
    """How many bytes to ask for at a time: as many as come in `SPAN`.

    Args:
        clock: returns seconds.

    Attributes:
        bytes: the window.
        asked: bytes that were asked for and have not come.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.bytes, self.asked = LEAST, 0
        self._clock, self._came, self._since = clock, 0, 0.0

    @property
    def open(self) -> bool:
        """Whether more may be asked for; what is larger than a window is asked for alone."""
        return self.asked < self.bytes

    def ask(self, n: int) -> None:
        """Notes that n bytes were asked for."""
        if not self.asked:
            self._came, self._since = 0, self._clock()
        self.asked += n

    def came(self, n: int) -> None:
        """Notes that what was asked for as n bytes has come."""
        self.asked -= n
        self._came += n
        # What came while nobody looked would make a short stretch seem fast.
        if self._came >= 4 * self.bytes:
            now = self._clock()
            self.bytes = max(LEAST, int(self._came * SPAN / max(now - self._since, 1e-6)))
            self._came, self._since = 0, now
