"""Group commit: one thread writes and syncs all that waits; what waited goes on when it is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from thinwire.hub.journal import Journal, Record

Item = Record | int
"""A record; or a number, from which on records go to that generation's file."""


class Commits:
    """Records on their way to the disk, in order.

    Args:
        journal: where they go.
        linger: seconds to wait for more before each sync: fewer syncs, later answers.
        failed: is called once if the disk fails; nothing is durable any more.
    """

    def __init__(
        self, journal: Journal, linger: float, failed: Callable[[BaseException], None]
    ) -> None:
        self.journal, self.linger, self.failed = journal, linger, failed
        self.batches = self.records = 0
        self._thread = ThreadPoolExecutor(1, "thinwire-journal")
        self._waiting: list[Item] = []
        self._next: asyncio.Future[None] | None = None
        self._current: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def add(self, items: Sequence[Item]) -> asyncio.Future[None]:
        """Takes items; the answer is there when they and all before them are on the disk."""
        loop = asyncio.get_running_loop()
        if not items:
            last = self._next or self._current
            if last is None:
                last = loop.create_future()
                last.set_result(None)
            return last
        self._waiting += items
        if self._next is None:
            self._next = loop.create_future()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        return self._next

    async def close(self) -> None:
        """Returns when the last record is on the disk; takes none after it."""
        await asyncio.shield(self.add(()))
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            if self.linger:
                await asyncio.sleep(self.linger)
            batch, self._waiting = self._waiting, []
            done, self._next = self._next, None
            assert done is not None
            self._current = done
            try:
                await loop.run_in_executor(self._thread, self._write, batch)
            except BaseException as error:
                done.set_exception(error)
                done.exception()
                self.failed(error)
                raise
            self.batches += 1
            self.records += len(batch)
            done.set_result(None)
        self._current = None

    def _write(self, batch: list[Item]) -> None:
        records: list[Record] = []
        for item in batch:
            if isinstance(item, Record):
                records.append(item)
            else:
                self.journal.append(records)
                self.journal.begin(item)
                records = []
        self.journal.append(records)
