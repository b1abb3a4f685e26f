"""Says in the log which rank a late round waits for; it ends nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from thinwire.watch import WINDOW, Deadline

LOG = logging.getLogger("thinwire")


class Watchdog:
    """Times rounds, and names stragglers while a late one is still on.

    Args:
        rank: this worker.
        deadline: when a round is late.
        awaited: returns the rank that is being waited for, if any.
        clock: returns seconds.

    Attributes:
        past: seconds of the last rounds.
    """

    def __init__(
        self,
        rank: int,
        deadline: Deadline,
        awaited: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rank, self.deadline, self.awaited, self.clock = rank, deadline, awaited, clock
        self.past: deque[float] = deque(maxlen=WINDOW)

    @contextmanager
    def over(self, round: int) -> Iterator[None]:
        """Times the body as that round."""
        began, limit = self.clock(), self.deadline.limit(self.past)
        timer = None if limit is None else self._timer(limit, round, began)
        try:
            yield
            self.past.append(self.clock() - began)
        finally:
            if timer is not None:
                timer.set()

    def complain(self, round: int, began: float, limit: float) -> None:
        """Writes to the log that this round is late, and whom this rank waits for."""
        source = self.awaited()
        whom = "nobody: it computes" if source is None else f"rank {source}"
        LOG.warning(
            "rank %d, round %d is late: %.1f s so far, usually %.1f s, deadline %.1f s; "
            "this rank waits for %s",
            self.rank, round, self.clock() - began, median(self.past), limit, whom,
        )  # fmt: skip

    def _timer(self, limit: float, round: int, began: float) -> threading.Event:
        over = threading.Event()

        def wait() -> None:
            patience = limit
            while not over.wait(patience):
                self.complain(round, began, limit)
                patience *= 2

        threading.Thread(target=wait, name="thinwire-watchdog", daemon=True).start()
        return over
