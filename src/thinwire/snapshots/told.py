"""Being told to stop, by a signal or by the program."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

LOG = logging.getLogger("thinwire")


class Told:
    """Remembers that this rank was told to stop; a signal handler does no more than that.

    Args:
        signals: that tell it.
    """

    def __init__(self, signals: Sequence[signal.Signals]) -> None:
        self._signals = tuple(signals)
        self._before: dict[signal.Signals, Any] = {}
        self._told = threading.Event()

    def __bool__(self) -> bool:
        return self._told.is_set()

    def stop(self, *_: int | FrameType | None) -> None:
        """Tells it."""
        self._told.set()

    def heed(self) -> None:
        """Heeds the signals from now on, where this is the program's main thread."""
        if self._signals and threading.current_thread() is not threading.main_thread():
            LOG.warning("Snapshots: not in the main thread, so no signal will be heeded")
            return
        self._before = {number: signal.signal(number, self.stop) for number in self._signals}

    def unheed(self) -> None:
        """Lets whoever heeded them before heed them again."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
