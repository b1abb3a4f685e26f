"""Writing in the background: training goes on, and what went wrong waits to be asked for."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread


class Writing:
    """Does one thing at a time in a thread of its own.

    Attributes:
        durable: the last number whose act ended well, -1 before the first.
    """

    def __init__(self) -> None:
        self.durable = -1
        self._trouble: str | None = None
        self._thread: Thread | None = None

    def start(self, number: int, act: Callable[[], None]) -> None:
        """Waits for what runs, then starts `act`."""

        def run() -> None:
            try:
                act()
                self.durable = number
            except Exception as error:
                self.fail(error)

        self.wait()
        # No daemon: a program that ends waits for its last snapshot.
        self._thread = Thread(target=run, name="thinwire-snapshot")
        self._thread.start()

    def fail(self, error: Exception) -> None:
        """Keeps this as what went wrong."""
        self._trouble = f"{type(error).__name__}: {error}"

    def wait(self) -> None:
        """Returns when nothing runs."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def trouble(self) -> str | None:
        """Returns what went wrong since this was last asked, or None."""
        trouble, self._trouble = self._trouble, None
        return trouble
