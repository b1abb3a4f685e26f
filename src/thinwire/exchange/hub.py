"""Hub: a worker's side of asynchronous training over the internet; it waits for no other."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import isfinite, isnan, nan
from typing import ClassVar, Literal

from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Compressor
from thinwire.errors import ConfigError, NonFiniteError
from thinwire.exchange.anchors import Form, Head, anchor_bound, decode_values
from thinwire.exchange.base import Exchange, Here, Memory, Talk, tensor_name
from thinwire.exchange.downlink import MASTER_PART
from thinwire.exchange.feedback import (
    ALARM_BODY,
    Feedback,
    NoFeedback,
    check_feedback,
    first_residual,
    keep,
    said_bound,
    say,
)
from thinwire.exchange.hub_rules import (
    Counting,
    Downlink,
    Exact,
    LiveCount,
    PerWorker,
    Staleness,
    Stream,
)
from thinwire.flat import Spans, Vector
from thinwire.host import Bytes
from thinwire.keys import SHARED, Key
from thinwire.outer import Average, Outer
from thinwire.transport.base import Post, Take, turn
from thinwire.value import of_kind
from thinwire.wire.body import Reader, unpack
from thinwire.wire.frame import HEADER, Address, Kind, address_of, unseal

HUB = 0
"""The hub's rank; workers are numbered from 1."""
ENTRY = struct.Struct("<dI")
"""Before each message of an UPDATES body: its divisor and its length."""
PIECE = struct.Struct("<I")
"""Before each frame of a STREAM body: its length."""


@dataclass(frozen=True, repr=False)
class Hub(Exchange):
    """A worker says what it learned to a hub, and hears the hub's model, at its own pace.

    Worker: u = delta + m, delta against the copy that it last received; say C(u); m = u - said;
    its anchor is what the reply makes of it. A refused update stays in m whole.
    Hub: x = outer(x, factor said / divisor), then the reply.

    Price: 2 steps; a worker sends |C| and receives at most the whole model. Memory: the residual,
    one d-vector; the hub its model, and with a `Stream` its own residual, with `Exact` when each
    entry last changed, with `PerWorker` what each worker holds.

    Args:
        feedback: of the workers.
        outer: how the hub's model moves at every update.
        counting: what an update is divided by.
        staleness: what becomes of late updates.
        downlink: how the hub says its model.

    Source: Qsparse-local-SGD (arXiv 1906.02367), Algorithm 2.
    Differs: workers come and go, late updates have a policy, the downlink is compressed.
    """

    replicates: ClassVar[bool] = False
    on_device: ClassVar[bool] = False
    pace: ClassVar[Literal["common", "own", "free"]] = "free"
    hands_anchor: ClassVar[bool] = True
    feedback: Feedback | NoFeedback = field(default_factory=Feedback)
    outer: Outer = field(default_factory=Average)
    counting: Counting = field(default_factory=LiveCount)
    staleness: Staleness = field(default_factory=Staleness)
    downlink: Downlink = field(default_factory=Stream)

    def __post_init__(self) -> None:
        of_kind(self, "feedback", self.feedback, Feedback, NoFeedback)
        of_kind(self, "outer", self.outer, Outer)
        of_kind(self, "counting", self.counting, Counting)
        of_kind(self, "staleness", self.staleness, Staleness)
        of_kind(self, "downlink", self.downlink, Exact, Stream, PerWorker)

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_feedback(self.feedback, compressor, spans, "Hub, uplink")
        if isinstance(self.downlink, Stream | PerWorker):
            check_feedback(Feedback(), self.downlink.compressor, spans, "Hub, downlink")
        if isinstance(self.downlink, PerWorker) and self.downlink.memory < 4 * spans.d:
            raise ConfigError(
                f"{self.downlink!r} has no room for what a single worker holds, 4 bytes for each "
                f"of {spans.d} entries; give it memory={4 * spans.d} for every worker"
            )

    def init(self, here: Here) -> Memory:
        if here.N:
            raise ConfigError(
                f"{self!r} is the exchange of workers that joined a hub; make one with "
                "thinwire.join(address, model, optimizer), or use Asynchronous() in a group"
            )
        return {**first_residual(self.feedback, here), "version": host.ints([0])}

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        saying = say(delta, mem, here, self.feedback)
        post = Post(HUB, saying.frame, said_bound(here))
        if saying.frame[3] == Kind.ALARM:
            yield from turn((post,))
            tensor = int.from_bytes(saying.frame[HEADER : HEADER + ALARM_BODY], "little")
            raise NonFiniteError([(here.rank, tensor_name(here, tensor))], here.round)
        bound = anchor_bound(here.spans.d)
        frames = yield from turn((post,), (Take(HUB, bound),))
        _, body = unseal(frames[0], here.address(HUB), Kind.ANCHOR)
        reader = here.reader(body, HUB)
        head = Head.read(reader)
        if head.form is not Form.WHOLE and head.since != int(mem["version"]):
            reader.fail(f"it starts from version {head.since}; this worker holds {mem['version']}")
        x = self.apply(anchor, head, reader, here)
        # A refused update stays in m whole.
        owed = saying.residual(here) if head.taken else saying.u
        return x, {**keep(mem, owed), "version": host.ints([head.version])}

    def apply(self, anchor: Tensor, head: Head, reader: Reader, here: Here) -> Tensor:
        """Returns the model that a reply makes of the anchor, (d,) float32.

        Args:
            anchor: (d,) float32, what this worker holds.
            head: the reply's.
            reader: stands behind the head.
            here: where this worker stands.
        """
        if head.form in (Form.WHOLE, Form.VALUES):
            x = decode_values(reader, head.form, anchor)
        else:
            x = anchor.clone()
            if head.form is Form.RESIDUAL:
                self._make_up(x, reader, here)
            else:
                self._go_on(x, head, reader, here)
            if kernels.active().first_nonfinite(x, here.spans.starts) >= 0:
                reader.fail("the model it makes is not finite")
        reader.end()
        return x

    def _make_up(self, x: Tensor, reader: Reader, here: Here) -> None:
        if not isinstance(self.downlink, PerWorker):
            reader.fail(f"a residual of one worker does not fit downlink={self.downlink!r}")
        C, key = self.downlink.compressor, reply_key(here.key.seed, here.round, here.rank)
        C.accumulate(x, unpack(reader, C, here.spans, key))

    def _go_on(self, x: Tensor, head: Head, reader: Reader, here: Here) -> None:
        for version in range(head.since, head.version):
            if head.form is Form.UPDATES:
                self._repeat(x, reader, here)
            elif isinstance(self.downlink, Stream):
                next_frame(x, self.downlink.compressor, version, reader, here)
            else:
                reader.fail(f"a stream does not fit downlink={self.downlink!r}")

    def _repeat(self, x: Tensor, reader: Reader, here: Here) -> None:
        if not isinstance(self.downlink, Exact) or self.outer != Average():
            reader.fail(f"repeated messages do not fit {self!r}")
        divisor, length = ENTRY.unpack(reader.take(ENTRY.size, "divisor and length"))
        frame = bytes(reader.take(length, "message"))
        at = address_of(frame)
        index, step = decoded(frame, Address(here.run, at.round, at.rank), divisor, here)
        subtract(x, index, step)


def decoded(
    frame: Bytes, address: Address, divisor: float, here: Here
) -> tuple[Tensor | None, Tensor]:
    """Returns (index, said / divisor) of a worker's message, as the hub and its workers step.

    Args:
        frame: a SAID.
        address: whose it must be.
        divisor: what it is divided by.
        here: the agreed operator, tensors and seed.

    Raises:
        FrameError: it is no such frame, or not finite.
    """
    _, body = unseal(frame, address, Kind.SAID)
    reader = Reader(body, f"frame from worker {address.rank}, update {address.round}")
    C, key = here.compressor, Key(here.key.seed, address.round, address.rank)
    payload = unpack(reader, C, here.spans, key)
    reader.end()
    step = C.values(payload) / divisor
    if not isfinite(largest(step)):
        reader.fail("what it says is not finite")
    return payload.index, step


def largest(values: Tensor) -> float:
    """Returns the largest magnitude; NaN or infinity where one is there."""
    if not len(values):
        return 0.0
    low, high = values.aminmax()
    return nan if isnan(low) else max(-float(low), float(high))


def subtract(x: Tensor, index: Tensor | None, step: Tensor) -> None:
    """Takes `step` away from x in place, at `index` or everywhere."""
    kernels.active().accumulate(x, index, step, -1.0)


def next_frame(x: Tensor, C: Compressor, version: int, reader: Reader, here: Here) -> None:
    """Adds the stream's next frame, the one after `version`, to x in place."""
    length = PIECE.unpack(reader.take(PIECE.size, "length"))[0]
    piece = Reader(reader.take(length, "frame of the stream"), reader.where)
    payload = unpack(piece, C, here.spans, stream_key(here.key.seed, version))
    piece.end()
    C.accumulate(x, payload)


def stream_key(seed: int, version: int) -> Key:
    """Returns the key of the hub's draws for the frame after `version`."""
    return Key(seed, version, SHARED, MASTER_PART)


def reply_key(seed: int, sequence: int, number: int) -> Key:
    """Returns the key of the hub's draws for its answer to that update of a worker."""
    return Key(seed, sequence, number, MASTER_PART)


def is_plain(outer: Outer) -> bool:
    """Whether the outer step is x - said / divisor, which touches nothing but what was said."""
    return outer == Average()
