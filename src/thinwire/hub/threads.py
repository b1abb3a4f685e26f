"""Those that do what they are handed, all that waits at a time, in order: a thread, or the loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Thread(Generic[T]):
    """Starts with the first thing that it is handed.

    Args:
        name: of the thread.
        work: is called there with what waits; raises nothing.
        linger: seconds that it waits for more each time.
    """

    def __init__(self, name: str, work: Callable[[list[T]], None], linger: float = 0.0) -> None:
        self._name, self._work, self._linger = name, work, linger
        self._waiting: SimpleQueue[T | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def hand(self, item: T) -> None:
        """Has this done after all that was handed before; returns at once."""
        self._waiting.put(item)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """Returns when all that was handed is done; nothing may be handed any more."""
        self._waiting.put(None)
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        item = self._waiting.get()
        while item is not None:
            if self._linger:
                time.sleep(self._linger)
            batch = [item]
            item = None
            with suppress(Empty):
                while (item := self._waiting.get_nowait()) is not None:
                    batch.append(item)
                self._waiting.put(None)
            self._work(batch)
            item = self._waiting.get()


class OnLoop(Generic[T]):
    """The same on the loop's own thread, from which alone it is handed things.

    Args:
        work: is called there with what waits; raises nothing.
        enough: things for which it waits, as long as more come each time that the loop goes round.
    """

    def __init__(self, work: Callable[[list[T]], None], enough: int) -> None:
        self._work, self._enough = work, enough
        self._waiting: list[T] = []

    def hand(self, item: T) -> None:
        """Has this done after all that was handed before; returns at once."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._go, 0)
        self._waiting.append(item)

    async def close(self) -> None:
        """Returns when all that was handed is done; nothing may be handed any more."""
        while self._waiting:
            await asyncio.sleep(0)

    def _go(self, had: int) -> None:
        if had < len(self._waiting) < self._enough:
            asyncio.get_running_loop().call_soon(self._go, len(self._waiting))
            return
        batch, self._waiting = self._waiting, []
        self._work(batch)
