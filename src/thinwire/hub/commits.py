"""Group commit: one thread writes and syncs all that waits; what waited goes on when it is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from thinwire.hub.journal import Journal


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
        self._waiting: list[bytes | int] = []
        self._next: asyncio.Future[None] | None = None
        self._current: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def add(self, item: bytes | int) -> None:
        """Takes a record; or a number, from which on records go to that generation's file."""
        self._waiting.append(item)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def durable(self) -> None:
        """Returns when everything taken so far is on the disk."""
        last = self._next or self._current
        if last is not None:
            await asyncio.shield(last)

    async def close(self) -> None:
        """Returns when the last record is on the disk; takes none after it."""
        await self.durable()
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
                await self._write(batch, loop)
            except BaseException as error:
                done.set_exception(error)
                done.exception()
                self.failed(error)
                raise
            self.batches += 1
            self.records += len(batch)
            done.set_result(None)
        self._current = None

    async def _write(self, batch: list[bytes | int], loop: asyncio.AbstractEventLoop) -> None:
        # Writing is quick and syncing is not: the thread does one system call, so that it asks
        # for the interpreter's lock once a batch.
        cuts = [at for at, item in enumerate(batch) if isinstance(item, int)]
        for start, end in zip((0, *(cut + 1 for cut in cuts)), (*cuts, len(batch)), strict=True):
            records = [item for item in batch[start:end] if isinstance(item, bytes)]
            if records:
                self.journal.write(records)
                await loop.run_in_executor(self._thread, self.journal.sync)
            if end < len(batch):
                generation = batch[end]
                assert isinstance(generation, int)
                await loop.run_in_executor(self._thread, self.journal.begin, generation)
