"""How many updates a worker may send in a second, whatever streams it sends them on."""

from __future__ import annotations

from thinwire.hub.refused import Refused, Why


class Rates:
    """What each worker may still send; a new stream brings it no more.

    Args:
        rate: updates in a second; None for any number.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._left: dict[str, tuple[float, float]] = {}

    def spend(self, name: str, now: float) -> None:
        """Counts an update of a worker that has joined; so there are no more names than members.

        Args:
            name: of the worker.
            now: seconds.

        Raises:
            Refused: it comes too soon, and is not counted.
        """
        if self.rate is None:
            return
        left, last = self._left.get(name, (self.rate, now))
        left = min(max(1.0, self.rate), left + (now - last) * self.rate) - 1.0
        if left < -1.0:
            raise Refused(
                Why.LIMIT, f"worker {name!r} sends more than {self.rate} updates a second"
            )
        self._left[name] = left, now
