"""What the tests of serverless exchanges share: runs to every rank's own end, and inputs."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import thinwire as tw
from thinwire import Key
from thinwire.compress import Compressor
from thinwire.exchange import Here, Memory
from thinwire.exchange.driver import check_bounds
from thinwire.flat import Spans
from thinwire.transport.base import Turn
from thinwire.wire.body import Reader, unpack
from thinwire.wire.frame import HEADER, REPAIR_PART, Kind

RUN, SEED = 0xFEED, 41
SPOKEN = (Kind.SAID, Kind.PLEA, Kind.SILENCE)


class Waits(Exception):
    """This rank waits for a frame that will never come."""


@dataclass(eq=False)
class End:
    """How one rank ended, and every frame it posted and heard on the way."""

    value: Any = None
    error: BaseException | None = None
    turns: list[tuple[int, int]] = field(default_factory=list)
    posted: list[tuple[int, bytes]] = field(default_factory=list)
    heard: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Bytes posted."""
        return sum(len(frame) for _, frame in self.posted)


Tamper = Callable[[int, int, bytes], bytes]
"""(hearer, number of the frame it hears, frame) -> the frame it hears instead."""


def to_their_ends(talks: Sequence[Generator], tamper: Tamper | None = None) -> list[End]:
    """Runs every talk as far as it comes: to a value, an error, or a wait that never ends."""
    ends, mail = [End() for _ in talks], defaultdict(deque)
    asks: dict[int, Turn] = {}

    def resume(rank: int, answer: list[bytes] | None) -> None:
        asks.pop(rank, None)
        try:
            ask = talks[rank].send(answer)
        except StopIteration as stop:
            ends[rank].value = stop.value
            return
        except Exception as error:
            ends[rank].error = error
            return
        asks[rank] = ask
        ends[rank].turns.append((len(ask.posts), len(ask.takes)))
        for post in ask.posts:
            assert len(post.frame) <= post.bound
            ends[rank].posted.append((post.to, post.frame))
            mail[rank, post.to].append(post.frame)

    for rank in range(len(talks)):
        resume(rank, None)
    while True:
        ready = [r for r, ask in asks.items() if all(mail[t.source, r] for t in ask.takes)]
        if not ready:
            break
        for rank in ready:
            frames = []
            for take in asks[rank].takes:
                frame = mail[take.source, rank].popleft()
                if tamper is not None:
                    frame = tamper(rank, len(ends[rank].heard), frame)
                ends[rank].heard.append((take.source, frame))
                frames.append(frame)
            try:
                check_bounds(asks[rank], frames)
            except tw.FrameError as error:  # The transport's own; the talk never hears of it.
                ends[rank].error = error
                del asks[rank]
                continue
            resume(rank, frames)
    for rank, ask in asks.items():
        ends[rank].error = Waits(f"rank {rank} waits for {ask.takes}")
    for (_, to), frames in mail.items():
        # A refusal that is passed on is for a next round, which these talks do not have.
        left = [frame for frame in frames if frame[3] != Kind.REFUSAL]
        assert not left or ends[to].error is not None, "a frame was posted and never taken"
    return ends


def heres(C: Compressor, d: int | Spans, N: int, round: int = 0, seed: int = SEED) -> list[Here]:
    spans = Spans.of(d) if isinstance(d, int) else d
    return [Here(r, N, round, Key(seed, round, r), C, spans, RUN) for r in range(N)]


def round_of(
    exchange: tw.Exchange,
    at: Sequence[Here],
    deltas: Sequence[Tensor],
    mems: Sequence[Memory] | None = None,
    anchors: Sequence[Tensor] | None = None,
    tamper: Tamper | None = None,
) -> list[End]:
    """Runs one round of every rank; a value is (direction, memory)."""
    if mems is None:
        mems = [exchange.init(here) for here in at]
    if anchors is None:
        anchors = [torch.zeros(at[0].spans.d) for _ in at]
    each = zip(anchors, deltas, mems, at, strict=True)
    return to_their_ends([exchange.round(a, d, m, h) for a, d, m, h in each], tamper)


def fine(ends: Sequence[End]) -> list[End]:
    """Returns the ends of a round that no rank refused."""
    for end in ends:
        if end.error is not None:
            raise AssertionError("a rank refused") from end.error
    return list(ends)


Learn = Callable[[int, int, Tensor], Tensor]
"""(rank, round, its anchor) -> its delta."""


@dataclass(eq=False)
class Seen:
    """One round of all ranks: what they stood on, learned, remembered, said, and ended with."""

    at: list[Here]
    anchors: list[Tensor]
    deltas: list[Tensor]
    mems: list[Memory]
    ends: list[End]

    @property
    def directions(self) -> list[Tensor]:
        return [end.value[0] for end in self.ends]

    @property
    def after(self) -> list[Memory]:
        return [end.value[1] for end in self.ends]

    @property
    def moved(self) -> list[Tensor]:
        return [a - d for a, d in zip(self.anchors, self.directions, strict=True)]

    def body(self, frame: bytes) -> bytes:
        """Returns a message's body, without the replica that may stand before it."""
        told = int.from_bytes(frame[14:16], "little") == REPAIR_PART
        return frame[HEADER + 4 * told * self.at[0].spans.d :]

    def said(self, rank: int) -> Tensor:
        """Returns what this rank told its neighbours, decoded from its bytes; zeros if silent."""
        here = self.at[rank]
        told = {(f[3], self.body(f)) for _, f in self.ends[rank].posted if f[3] in SPOKEN}
        ((kind, body),) = told
        if kind == Kind.SILENCE:
            assert body == b""
            return torch.zeros(here.spans.d)
        reader = Reader(body, "here")
        said = here.compressor.decompress(unpack(reader, here.compressor, here.spans, here.key))
        reader.end()
        return said


def run(
    exchange: tw.Exchange,
    C: Compressor,
    start: Tensor,
    N: int,
    rounds: int,
    learn: Learn,
    lost: Sequence[tuple[int, int, int]] = (),
) -> list[Seen]:
    """Runs rounds in a row with the plain outer step, x <- x - direction, from equal starts.

    `lost` names frames that come as nothing: (round, hearer, number of the frame it hears).
    """
    anchors = [start.clone() for _ in range(N)]
    mems = [exchange.init(here) for here in heres(C, len(start), N)]
    seen = []
    for round in range(rounds):
        at = heres(C, len(start), N, round)
        deltas = [learn(rank, round, anchors[rank]) for rank in range(N)]

        def tamper(hearer: int, number: int, frame: bytes, round: int = round) -> bytes:
            return b"" if (round, hearer, number) in lost else frame

        ends = fine(round_of(exchange, at, deltas, mems, anchors, tamper))
        seen.append(Seen(at, anchors, deltas, list(mems), ends))
        anchors, mems = seen[-1].moved, seen[-1].after
    return seen


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(N: int, d: int, seed: int = 0) -> list[Tensor]:
    return [torch.randn(d, generator=generator(1000 * seed + r)) for r in range(N)]


def identical(N: int, d: int, seed: int = 0) -> list[Tensor]:
    return [torch.randn(d, generator=generator(1000 * seed)) for _ in range(N)]


def heavy_tailed(N: int, d: int, seed: int = 0) -> list[Tensor]:
    return [v**3 for v in normal(N, d, seed)]


INPUTS = {"independent": normal, "identical": identical, "heavy_tailed": heavy_tailed}


def total(vectors: Sequence[Tensor]) -> Tensor:
    """Returns the float64 sum."""
    return torch.stack([v.double() for v in vectors]).sum(0)


def square(v: Tensor) -> float:
    return float(v.double().square().sum())


def same_bits(a: Tensor, b: Tensor, what: object = "") -> None:
    """Asserts equal dtype, shape and bits, so that -0.0 differs from 0.0."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape), (what, a.dtype, b.dtype, a.shape, b.shape)
    assert torch.equal(a.view(torch.int32), b.view(torch.int32)), (what, a, b)


def near(a: Tensor, b: Tensor, scale: float, what: object = "") -> None:
    """Asserts that no entry differs by more than `scale`."""
    assert a.shape == b.shape, (what, a.shape, b.shape)
    if a.numel():
        worst = float((a.double() - b.double()).abs().max())
        assert worst <= scale, (what, worst, scale)


def within(measured: float, expected: float, share: float, what: object = "") -> None:
    """Asserts that a figure is met to that share of it."""
    assert abs(measured - expected) <= share * abs(expected), (what, measured, expected, share)
