"""Group commit: one thread writes and syncs all that waits; what waited goes on when it is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from thinwire.hub.journal import Journal, Record
from thinwire.hub.threads import Thread

Item = Record | int | BaseException
"""A record; or a number, from which on records go to that generation's file; or an error, from
which on nothing is written, as if the disk had failed with it."""
Then = Callable[[BaseException | None], None]
"""Is told on the loop that the disk has it, or why it does not."""


class Commits:
    """Records on their way to the disk, in order; made where a loop runs.

    Args:
        journal: where they go.
        linger: seconds to wait for more before each sync: fewer syncs, later answers.
        failed: is called once, on the loop, at the first error; nothing is durable any more.
    """

    def __init__(
        self, journal: Journal, linger: float, failed: Callable[[BaseException], None]
    ) -> None:
        self.journal, self.failed = journal, failed
        self.loop = asyncio.get_running_loop()
        self.batches = self.records = 0
        self._broken: BaseException | None = None
        self._thread = Thread("thinwire-journal", self._commit, linger)

    def add(self, items: Sequence[Item], then: Then) -> None:
        """Takes items, from any thread; `then` follows when they and all before are on the disk."""
        self._thread.hand((items, then))

    async def close(self) -> None:
        """Returns when the last record is on the disk; takes none after it."""
        await self._thread.close()

    def _commit(self, batch: list[tuple[Sequence[Item], Then]]) -> None:
        items = [item for some, _ in batch for item in some]
        if self._broken is None and items:
            try:
                self._write(items)
                self.batches += 1
                self.records += len(items)
            except BaseException as error:
                self._broken = error
                self._tell([self.failed])
        self._tell([then for _, then in batch])

    def _tell(self, those: Sequence[Callable[..., None]]) -> None:
        with suppress(RuntimeError):  # The loop is gone, and who waited with it.
            self.loop.call_soon_threadsafe(_each, those, self._broken)

    def _write(self, batch: list[Item]) -> None:
        records: list[Record] = []
        for item in batch:
            if isinstance(item, Record):
                records.append(item)
                continue
            self.journal.append(records)
            records = []
            if isinstance(item, BaseException):
                raise item
            self.journal.begin(item)
        self.journal.append(records)


def _each(those: Sequence[Callable[..., None]], broken: BaseException | None) -> None:
    for then in those:
        then(broken)
