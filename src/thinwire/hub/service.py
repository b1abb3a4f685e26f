"""The hub's side of a stream: who it is, what it says, and the answer once it is safe on disk."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc

from thinwire.hub import rpc
from thinwire.hub.entry import Entry
from thinwire.hub.handlers import Methods, lenient
from thinwire.hub.hub_pb2 import (
    Down,
    Hello,
    Piece,
    SettingsReply,
    SettingsRequest,
    StatusReply,
    StatusRequest,
    Up,
    Welcome,
)
from thinwire.hub.journal import Record
from thinwire.hub.meter import Meter
from thinwire.hub.refused import Refused, Why
from thinwire.hub.said import Said
from thinwire.hub.settings import Description, difference, read_description
from thinwire.hub.turns import Turns
from thinwire.version import __version__

LOG = logging.getLogger("thinwire.hub")
FIRST_WORD = 20.0
"""Seconds in which a new stream must say who it is."""
LONGEST_NAME = 128
GOING = "the hub is going down; come back when it is up"
Context = Any
"""A `grpc.aio.ServicerContext`; grpc has no types."""


class Service:
    """Answers streams over one core.

    Args:
        turns: of the core.
        entry: who may enter.
        description: the hub's settings and tensors.
        bound: the most bytes of an update's frame.
        rate: updates a worker may send in a second; None for any number.
    """

    def __init__(
        self,
        turns: Turns,
        entry: Entry,
        description: Description,
        bound: int,
        rate: float | None,
    ) -> None:
        self.turns, self.core, self.entry = turns, turns.core, entry
        self.description, self.bound, self.rate = description, bound, rate
        self.meter = Meter(time.monotonic())
        self.closing = asyncio.Event()
        self._streams: dict[str, asyncio.Task[Any]] = {}
        self._busy: set[asyncio.Task[Any] | None] = set()
        self._settings = json.dumps(description["settings"])

    def handlers(self) -> grpc.GenericRpcHandler:
        """Returns the methods as gRPC wants them."""
        methods = {
            rpc.SETTINGS: grpc.unary_unary_rpc_method_handler(
                self._refusing(self.settings),
                lenient(SettingsRequest),
                SettingsReply.SerializeToString,
            ),
            rpc.TRAIN: grpc.stream_stream_rpc_method_handler(
                self._refusing(self.train), lenient(Up), Down.SerializeToString
            ),
            rpc.STATUS: grpc.unary_unary_rpc_method_handler(
                self._refusing(self.status), lenient(StatusRequest), StatusReply.SerializeToString
            ),
        }
        return Methods(methods)

    async def settings(self, request: SettingsRequest, context: Context) -> SettingsReply:
        """Tells what to adopt."""
        check_protocol(request.protocol)
        return SettingsReply(settings=self._settings)

    async def status(self, request: StatusRequest, context: Context) -> StatusReply:
        """Tells how the hub is."""
        return StatusReply(status=json.dumps(await self.figures()))

    async def figures(self) -> dict[str, Any]:
        """Returns everything that is shown of this hub, as plain data."""
        return await self.turns.do(lambda: (self._figures(), ()))

    def _figures(self) -> dict[str, Any]:
        core, commits = self.core, self.turns.commits
        return {
            "thinwire": __version__,
            **self.meter.status(core.state, time.monotonic(), core.run, core.spans.d),
            "commits": commits.batches,
            "committed": commits.records,
            "closing": self.closing.is_set(),
        }

    async def train(self, requests: AsyncIterator[Up], context: Context) -> None:
        """Serves one worker until it leaves, is lost or refused."""
        words = aiter(requests)
        name = await self._greet(words, context)
        task = asyncio.current_task()
        assert task is not None
        before = self._streams.get(name)
        self._streams[name] = task
        if before is not None:
            before.cancel()
        try:
            await self._serve(name, words, context)
        finally:
            if self._streams.get(name) is task:
                del self._streams[name]

    async def _greet(self, words: AsyncIterator[Up], context: Context) -> str:
        try:
            first = await asyncio.wait_for(anext(words), FIRST_WORD)
        except (asyncio.TimeoutError, StopAsyncIteration):
            raise Refused(Why.ORDER, "a stream begins with a hello; none came") from None
        if first.WhichOneof("said") != "hello":
            raise Refused(Why.ORDER, "a stream begins with a hello; this began otherwise")
        hello, core = first.hello, self.core
        check_protocol(hello.protocol)
        if self.closing.is_set():
            raise Refused(Why.CLOSING, GOING)
        name = hello.worker
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise Refused(
                Why.ORDER, f"a worker has a printable name of 1 to {LONGEST_NAME} letters"
            )
        if not 1e-6 <= hello.weight <= 1e12:
            raise Refused(Why.SETTINGS, f"a weight lies in [1e-6, 1e12]; this is {hello.weight}")
        joins = bool(hello.description)
        if joins:
            self._compare(hello)
        elif hello.run != core.run or name not in core.state.members:
            raise Refused(
                Why.RUN, f"worker {name!r} is of another run than this hub's; join it anew"
            )

        def enter() -> tuple[tuple[int, int, bytes, bool], list[Record]]:
            member, record = core.join(name, hello.weight, time.monotonic())
            model = core.whole(member.number) if joins else b""
            told = member.number, member.sequence, model, record is not None
            return told, [record] if record else []

        # What is told here must not be undone by a crash.
        number, sequence, model, news = await self.turns.do(enter)
        if news:
            LOG.info("worker %r is here, number %d", name, number)
        beat = core.timeout / 4
        welcome = Welcome(number=number, sequence=sequence, run=core.run, beat=beat)
        await context.write(Down(welcome=welcome))
        if joins:
            self.meter.joined(name, len(model))
            await send((model,), context)
        return name

    def _compare(self, hello: Hello) -> None:
        try:
            said = read_description(hello.description)
        except (ValueError, RecursionError) as error:
            raise Refused(
                Why.SETTINGS, f"worker {hello.worker!r} describes itself unreadably: {error}"
            ) from None
        found = difference(self.description, said)
        if found is not None:
            why = Why.SETTINGS if found[0] == "settings" else Why.MODEL
            raise Refused(why, f"worker {hello.worker!r} differs from the hub: {found[1]}")

    async def _serve(self, name: str, words: AsyncIterator[Up], context: Context) -> None:
        parts: list[bytes] = []
        size, allowance, last = 0, self.rate or 0.0, time.monotonic()
        while (up := await self._next(words)) is not None:
            said, now = up.WhichOneof("said"), time.monotonic()
            self.core.heard[name] = now
            if said == "beat":
                continue
            if said == "leave":
                if await self.turns.do(lambda: self._leave([name])):
                    LOG.info("worker %r leaves", name)
                return
            if said != "piece":
                raise Refused(Why.ORDER, f"worker {name!r} says something that does not come now")
            parts.append(up.piece.data)
            size += len(up.piece.data)
            if size > self.bound:
                raise Refused(
                    Why.LIMIT,
                    f"worker {name!r} sends more than the {self.bound} bytes of an update",
                )
            if not up.piece.last:
                continue
            frame, parts, size = b"".join(parts), [], 0
            if self.rate is not None:
                allowance = min(max(1.0, self.rate), allowance + (now - last) * self.rate) - 1.0
                last = now
                if allowance < -1.0:
                    raise Refused(
                        Why.LIMIT, f"worker {name!r} sends more than {self.rate} updates a second"
                    )
            task = asyncio.current_task()
            self._busy.add(task)
            try:
                await self._update(name, up.piece.base, frame, now, context)
            finally:
                self._busy.discard(task)
        if self.closing.is_set():
            raise Refused(Why.CLOSING, GOING)
        LOG.info("worker %r has lost its connection", name)

    def lost(self, now: float) -> tuple[list[str], list[Record]]:
        """Marks the silent as gone; returns who they are, and what the journal must hold."""
        return self._leave(self.core.tick(now))

    def _leave(self, names: list[str]) -> tuple[list[str], list[Record]]:
        records = {name: self.core.leave(name) for name in names}
        left = {name: record for name, record in records.items() if record is not None}
        return list(left), list(left.values())

    async def _next(self, words: AsyncIterator[Up]) -> Up | None:
        """Returns the next word; None where the stream ends or the hub goes down."""
        if self.closing.is_set():
            return None
        try:
            return await anext(words)
        except StopAsyncIteration:
            return None

    async def _update(
        self, name: str, base: int, frame: bytes, now: float, context: Context
    ) -> None:
        taken = await self.turns.update(Said(name, base, frame, now))
        self.meter.repeated += taken.record is None
        size = sum(len(part) for part in taken.reply)
        self.meter.answered(name, len(frame), size, taken.staleness, now)
        await send(taken.reply, context)

    def close_streams(self) -> None:
        """Ends every stream with a word that the hub goes down, after the answer it owes."""
        self.closing.set()
        for task in set(self._streams.values()) - self._busy:
            task.cancel()

    def _refusing(
        self, method: Callable[[Any, Context], Awaitable[Any]]
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        """Turns a `Refused` into its status, after one line in the log; the hub stays up."""

        async def guarded(request: Any, context: Context) -> Any:
            try:
                self.entry.admit(context.invocation_metadata() or (), context.auth_context())
                return await method(request, context)
            except Refused as refused:
                self.meter.refusals[refused.why.value] += 1
                LOG.warning("refused (%s): %s", refused.why.value, refused.sentence)
                code = getattr(grpc.StatusCode, refused.why.value)
                await context.abort(code, refused.sentence)
            except asyncio.CancelledError:
                if self.closing.is_set():
                    code, why = grpc.StatusCode.UNAVAILABLE, GOING
                else:
                    code = grpc.StatusCode.ABORTED
                    why = "another process has taken this worker's place on the hub"
                await context.abort(code, why)

        return guarded


async def send(parts: Sequence[bytes], context: Context) -> None:
    """Writes a frame, given in parts, in pieces."""
    for data, last in rpc.pieces(*parts):
        await context.write(Down(piece=Piece(data=data, last=last)))


def check_protocol(spoken: int) -> None:
    """Raises a Refused unless the caller speaks this version."""
    if spoken != rpc.PROTOCOL:
        older = "an older" if spoken < rpc.PROTOCOL else "a newer"
        raise Refused(
            Why.VERSION,
            f"the caller speaks {older} protocol version, {spoken}; this hub speaks {rpc.PROTOCOL} "
            f"(thinwire {__version__}). Install the same version on both sides",
        )
