"""The core's turns: what it is asked is done in order, all that waits at a time.

Updates in a row are applied together. An answer is had when the disk has what it tells of. A thread
of its own serves more where there are cores for it; where there are few, it and the loop would wait
for each other's hold on the interpreter, and the turns are taken on the loop.

An error that is no refusal may leave the core with what the journal will never hold. Told again,
it would be known as applied, and a restart would lose it. So such an error ends all, as a failing
disk does: nothing of its turn or after it is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from thinwire.hub.commits import Commits, Item
from thinwire.hub.core import TOGETHER, Core
from thinwire.hub.refused import Refused
from thinwire.hub.said import Said, Taken
from thinwire.hub.threads import OnLoop, Thread

T = TypeVar("T")
Call = Callable[[], tuple[T, Sequence[Item]]]
"""Returns its answer, and what the journal must hold before that is told."""
Ask = Said | Call[Any]


class Turns:
    """All that is asked of one core; nobody else may touch it meanwhile.

    Args:
        core: the state machine.
        commits: the way to the disk.
        aside: whether they are taken on a thread of their own, or on the loop.
    """

    def __init__(self, core: Core, commits: Commits, aside: bool) -> None:
        self.core, self.commits = core, commits
        self._taker: Thread[Any] | OnLoop[Any] = OnLoop(self._turn, TOGETHER // 2)
        if aside:
            self._taker = Thread("thinwire-core", self._turn)
        self._broken = False

    async def update(self, said: Said) -> Taken:
        """Returns what became of an update.

        Raises:
            Refused: it has changed nothing.
        """
        taken: Taken = await self._asked(said)
        return taken

    async def do(self, call: Call[T], changes: bool = True) -> T:
        """Returns the answer of a call in its turn.

        Args:
            call: what is to be done; a `Refused` of its changes nothing.
            changes: whether it changes the core: if not, an error of its own is its caller's
                alone.
        """
        answer: T = await self._asked(call if changes else partial(_looked, call))
        return answer

    async def close(self) -> None:
        """Returns when all that was asked is done and on the disk; takes nothing after it."""
        await self._taker.close()
        await self.commits.close()

    def _asked(self, ask: Ask) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self.commits.loop.create_future()
        self._taker.hand((ask, answer))
        return answer

    def _turn(self, turn: list[tuple[Ask, asyncio.Future[Any]]]) -> None:
        answers: list[Any] = [None] * len(turn)
        items: list[Item] = []
        if not self._broken:
            try:
                answers, items = self._work([ask for ask, _ in turn])
            except BaseException as error:
                items = self._failed(error)
        # Not by way of the loop: what waits there would be waited for.
        self.commits.add(items, partial(_tell, [future for _, future in turn], answers))

    def _failed(self, error: BaseException) -> list[Item]:
        self._broken = True
        return [error]

    def _work(self, asks: list[Ask]) -> tuple[list[Any], list[Item]]:
        answers: list[Any] = []
        items: list[Item] = []
        at = 0
        while at < len(asks):
            ask, upto = asks[at], at + 1
            if isinstance(ask, Said):
                while upto < len(asks) and isinstance(asks[upto], Said):
                    upto += 1
                taken = self.core.updates(asks[at:upto])  # type: ignore[arg-type]
                answers += taken
                items += [t.record for t in taken if isinstance(t, Taken) and t.record]
            else:
                try:
                    answer, more = ask()
                    answers.append(answer)
                    items += more
                except Refused as refused:
                    answers.append(refused.with_traceback(None))
            at = upto
        return answers, items


def _looked(call: Call[Any]) -> tuple[Any, Sequence[Item]]:
    """Returns what a call that changes nothing answers; the error that it met is an answer too."""
    try:
        return call()
    except Exception as error:
        return error, ()


def _tell(
    futures: list[asyncio.Future[Any]], answers: list[Any], broken: BaseException | None
) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():
            continue  # Its stream is gone.
        if broken is not None or isinstance(answer, Exception):
            future.set_exception(broken or answer)
        else:
            future.set_result(answer)
