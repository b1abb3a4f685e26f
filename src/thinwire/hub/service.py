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
from thinwire.hub.hello import check_hello, check_protocol, first_word
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
from thinwire.hub.places import Place, Places
from thinwire.hub.rates import Rates
from thinwire.hub.refused import Refused, Why, one_line
from thinwire.hub.said import Said
from thinwire.hub.settings import Description
from thinwire.hub.turns import Turns
from thinwire.version import __version__

LOG = logging.getLogger("thinwire.hub")
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
        self.description, self.bound = description, bound
        self.meter = Meter(time.monotonic())
        self.closing = asyncio.Event()
        self._places, self._rates = Places(), Rates(rate)
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
        return await self.turns.do(lambda: (self._figures(), ()), changes=False)

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
        hello = await first_word(words)
        self._check(hello)
        # From here on the worker's stream before this one says nothing more: what this one is told
        # next, number and model, stays true while it hears it.
        with self._places.held(hello.worker) as place:
            await self._enter(hello, context)
            await self._serve(place, words, context)

    def _check(self, hello: Hello) -> None:
        if self.closing.is_set():
            raise Refused(Why.AGAIN, GOING)
        check_hello(hello, self.description)
        known = hello.run == self.core.run and hello.worker in self.core.state.members
        if not hello.description and not known:
            raise Refused(
                Why.RUN,
                f"worker {hello.worker!r} is of another run than this hub's; join it anew",
            )

    async def _enter(self, hello: Hello, context: Context) -> None:
        name, joins, core = hello.worker, bool(hello.description), self.core

        def enter() -> tuple[tuple[int, int, bytes, bool], list[Record]]:
            member, record = core.join(name, hello.weight, time.monotonic())
            model = core.whole(member.number) if joins else b""
            if not joins:
                core.back(member.number)
            told = member.number, member.sequence, model, record is not None
            return told, [record] if record else []

        # What is told here must not be undone by a crash.
        number, sequence, model, news = await self.turns.do(enter)
        if news:
            LOG.info("worker %r is here, number %d", name, number)
        if core.live > core.room:
            LOG.warning(
                "%d workers are here, and there is memory for the residuals of %d: the others "
                "hear the whole model each time; start the hub again with more --memory",
                core.live, core.room,
            )  # fmt: skip
        beat = core.timeout / 4
        welcome = Welcome(number=number, sequence=sequence, run=core.run, beat=beat)
        await context.write(Down(welcome=welcome))
        if joins:
            self.meter.joined(name, len(model))
            await self._send(name, (model,), context)

    async def _serve(self, place: Place, words: AsyncIterator[Up], context: Context) -> None:
        name, size = place.name, 0
        parts: list[bytes] = []
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
            piece = up.piece
            data, last = piece.data, piece.last  # Each look at a message's bytes copies them.
            n = len(data)
            if n < rpc.LEAST_BYTES and not last:
                raise Refused(
                    Why.FRAME,
                    f"worker {name!r} sends a piece of {n} bytes that does not end its frame; such "
                    f"have {rpc.LEAST_BYTES} at least",
                )
            parts.append(data)
            size += n
            if size > self.bound:
                raise Refused(
                    Why.LIMIT,
                    f"worker {name!r} sends more than the {self.bound} bytes of an update",
                )
            if not last:
                continue
            frame, parts, size = b"".join(parts), [], 0
            self._rates.spend(name, now)
            place.busy = True
            await self._update(name, piece.base, frame, now, context)
            place.busy = False
        if self.closing.is_set():
            raise Refused(Why.AGAIN, GOING)
        LOG.info("worker %r has lost its connection", name)

    def lost(self, now: float) -> tuple[list[str], list[Record]]:
        """Marks the silent as gone; returns who they are, and what the journal must hold.

        It is asked in the core's turn. The stream of a silent worker is ended with a word that
        makes it join again by itself, should it still be there.
        """
        names, loop = self.core.tick(now), self.turns.commits.loop
        for name in names:
            why = f"worker {name!r} was silent for {self.core.timeout:g} s; it has to come back"
            self._places.end_soon(loop, name, Why.AGAIN, why)
        return self._leave(names)

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
        await self._send(name, taken.reply, context)

    async def _send(self, name: str, parts: Sequence[bytes], context: Context) -> None:
        # Its beats are not read meanwhile. That it takes what is sent is as good a word.
        def heard() -> None:
            self.core.heard[name] = time.monotonic()

        await send(parts, context, heard)

    def close_streams(self) -> None:
        """Ends every stream with a word that the hub goes down, after the answer it owes."""
        self.closing.set()
        self._places.close(Why.AGAIN, GOING)

    def _refusing(
        self, method: Callable[[Any, Context], Awaitable[Any]]
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        """Turns a `Refused` into its status, after one line in the log; the hub stays up."""

        async def guarded(request: Any, context: Context) -> Any:
            try:
                self.entry.admit(context.invocation_metadata() or (), context.auth_context())
                return await method(request, context)
            except Refused as refused:
                code, sentence = refused.why.value, one_line(refused.sentence)
                self.meter.refusals[code] += 1
                LOG.warning("refused (%s): %s", code, sentence)
                await context.abort(getattr(grpc.StatusCode, code), sentence)

        return guarded


async def send(
    parts: Sequence[bytes], context: Context, taken: Callable[[], None] = lambda: None
) -> None:
    """Writes a frame, given in parts, in pieces.

    Args:
        parts: of the frame.
        context: of the stream.
        taken: is called after each piece, which waits until the peer takes what came before.
    """
    for data, last in rpc.pieces(*parts):
        await context.write(Down(piece=Piece(data=data, last=last)))
        taken()
