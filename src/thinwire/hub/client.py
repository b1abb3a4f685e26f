"""A worker's connection to a hub: it dials out, and dials again when the hub comes back."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from torch import Tensor

from thinwire.errors import FrameError, TransportError
from thinwire.exchange.anchors import HEAD, Head
from thinwire.host import Bytes
from thinwire.hub import rpc
from thinwire.hub.dial import Dial, Waits
from thinwire.hub.hub_pb2 import (
    Beat,
    Down,
    Hello,
    Leave,
    Piece,
    Up,
)
from thinwire.hub.settings import Description
from thinwire.transport.base import Turn
from thinwire.wire.body import Reader
from thinwire.wire.frame import HEADER, Address, Kind, address_of, seal


class HubTransport:
    """Answers the turns of a worker's rounds; no frame is lost or applied twice on its way.

    Args:
        dial: where the hub is.
        worker: this worker's name.
        weight: what it counts by.
        description: its settings and tensors.

    Attributes:
        sent: updates sent, each once however often it had to be sent again.
        acknowledged: of those, how many the hub answered.
        told: bytes of the model as it was told when this worker joined.
        reconnected: how often an update was sent again.
        tell: is called with ("sent" or "acknowledged", sequence number).

    Raises:
        HubRefused, TransportError: it may not join, or the hub cannot be reached.
    """

    size = 0  # A worker does not know how many there are.

    def __init__(self, dial: Dial, worker: str, weight: float, description: Description) -> None:
        self.dial, self.worker, self.weight = dial, worker, weight
        self.rank = self.run = self.sequence = 0
        self.sent = self.acknowledged = self.reconnected = 0
        self.tell: Callable[[str, int], None] = lambda what, sequence: None
        self._channel = dial.channel()
        self._call: Any = None
        self._words: queue.SimpleQueue[Up | None] = queue.SimpleQueue()
        self._beat: Beats | None = None
        self._asked: list[Bytes] = []
        self._description = json.dumps(description)
        try:
            self._first = self._through(self._frame)
            self.version = head_of(self._first).version
        except BaseException:
            self.close()
            raise
        # It has joined: from now on a hub that comes back is only told who goes on.
        self._description = ""
        self.told = len(self._first)

    def turn(self, turn: Turn) -> list[Bytes]:
        """Sends the update and returns the hub's answer, through any number of hubs' lives."""
        for post in turn.posts:
            kind = post.frame[3]
            if kind == Kind.HELLO:
                self._asked = self._judged()
            elif kind == Kind.ALARM:
                self._alarm(bytes(post.frame))
            else:
                self._asked = [self._update(bytes(post.frame))]
        return [self._asked.pop(0) for _ in turn.takes]

    def reduce(self, vector: Tensor) -> Tensor:
        """Refuses: a hub sums nothing that is not an update."""
        raise TransportError("a hub has no all-reduce; use exchange=Hub()")

    def flush(self) -> None:
        """Does nothing: an update that was answered has left."""

    def leave(self) -> None:
        """Tells the hub that this worker goes, and closes the connection."""
        if self._call is not None:
            self._words.put(Up(leave=Leave()))
            self._words.put(None)
            try:
                for _ in self._call:
                    pass
            except grpc.RpcError:
                pass  # It is lost after its timeout then.
        self.close()

    def close(self) -> None:
        """Closes the connection without a word, as a crash would."""
        self._hang_up()
        self._channel.close()

    def _judged(self) -> list[Bytes]:
        """The hub compared settings when this worker joined: its verdict, and its model."""
        verdict = json.dumps({"error": None, "run": self.run, "equal": False}).encode()
        model, self._first = self._first[HEADER + HEAD :], b""
        return [
            seal(Kind.VERDICT, Address(0, 0, 0), verdict),
            seal(Kind.VECTOR, Address(self.run, 0, 0), model),
        ]

    def _update(self, frame: bytes) -> bytes:
        sequence, tries = address_of(frame).round, 0

        def said() -> bytes:
            nonlocal tries
            self.reconnected += tries > 0
            tries += 1
            for data, last in rpc.pieces(frame):
                self._words.put(Up(piece=Piece(data=data, last=last, base=self.version)))
            return self._frame()

        self.sent += 1
        self.tell("sent", sequence)
        answer = self._through(said)
        self.acknowledged += 1
        self.sequence = sequence + 1
        self.tell("acknowledged", sequence)
        self.version = head_of(answer).version
        return answer

    def _alarm(self, frame: bytes) -> None:
        """Tells of a NaN, if the hub is there; this worker raises by itself, whoever hears it."""
        try:
            if self._call is None:
                self._connect()
            self._words.put(Up(piece=Piece(data=frame, last=True, base=self.version)))
            self._frame()
        except grpc.RpcError:
            pass
        finally:
            self._hang_up()

    def _through(self, talk: Callable[[], bytes]) -> bytes:
        """Returns what a talk on this worker's stream returns, through any number of hubs' lives.

        Raises:
            HubRefused, TransportError: it is refused, or the hub cannot be reached.
        """
        waits = Waits(self.dial)
        while True:
            try:
                if self._call is None:
                    self._connect()
                    waits.found()
                return talk()
            except grpc.RpcError as error:
                self._hang_up()
                waits.after(error)

    def _connect(self) -> None:
        """Opens a stream and says who this is, once."""
        self._words = queue.SimpleQueue()
        hello = Hello(
            protocol=rpc.PROTOCOL, worker=self.worker, weight=self.weight,
            description=self._description, run=self.run,
        )  # fmt: skip
        self._words.put(Up(hello=hello))
        train = self._channel.stream_stream(rpc.TRAIN, Up.SerializeToString, Down.FromString)
        self._call = train(words_of(self._words), metadata=self.dial.metadata)
        welcome = self._word().welcome
        self.rank, self.run, self.sequence = welcome.number, welcome.run, welcome.sequence
        self._beat = Beats(self._words, welcome.beat)

    def _frame(self) -> bytes:
        parts = []
        while True:
            piece = self._word().piece
            parts.append(piece.data)
            if piece.last:
                return b"".join(parts)

    def _word(self) -> Down:
        try:
            word: Down = next(self._call)
        except StopIteration:
            raise _Ended from None
        return word

    def _hang_up(self) -> None:
        if self._beat is not None:
            self._beat.stop()
            self._beat = None
        if self._call is not None:
            self._words.put(None)
            self._call.cancel()
            self._call = None


class _Ended(grpc.RpcError):  # type: ignore[misc]
    """The hub ended the stream without an answer."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the hub ended the stream"


class Beats:
    """Says "still here" every so often, while the worker computes.

    Args:
        words: what the stream sends.
        every: seconds.
    """

    def __init__(self, words: queue.SimpleQueue[Up | None], every: float) -> None:
        self._words, self._every, self._stopped = words, max(0.05, every), threading.Event()
        threading.Thread(target=self._run, daemon=True, name="thinwire-beat").start()

    def stop(self) -> None:
        """Ends it."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._every):
            self._words.put(Up(beat=Beat()))


def words_of(words: queue.SimpleQueue[Up | None]) -> Iterator[Up]:
    """Yields what is put into the queue, until None."""
    while (word := words.get()) is not None:
        yield word


def head_of(frame: Bytes) -> Head:
    """Returns the head of an ANCHOR frame.

    Raises:
        FrameError: it is none.
    """
    if len(frame) < HEADER + HEAD or frame[3] != Kind.ANCHOR:
        raise FrameError("the hub's answer is no model")
    return Head.read(Reader(frame[HEADER:], "frame from the hub"))
