"""A small lock-step that lets each rank come to its own end, and lets a test touch each frame.

The library's `lockstep` stops at the first error, as a program should; a law about what *every*
rank raises needs the others to go on.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import thinwire as tw
from thinwire import Key
from thinwire.compress import Compressor
from thinwire.exchange import Here, Memory
from thinwire.flat import Spans
from thinwire.transport.base import Reduce, Take
from thinwire.wire.frame import HEADER, Kind

RUN = 0xC0FFEE
SEED = 77


@dataclass(eq=False)
class Outcome:
    """How one rank's round ended, and what it said and heard."""

    direction: Tensor | None = None
    mem: Memory | None = None
    error: BaseException | None = None
    turns: list[tuple[int, int]] = field(default_factory=list)
    posted: list[tuple[int, bytes]] = field(default_factory=list)
    heard: list[tuple[int, bytes]] = field(default_factory=list)
    bounds: list[tuple[int, int]] = field(default_factory=list)
    reduced: int = 0


Tamper = Callable[[int, int, bytes], bytes]
"""(hearer, number of the frame it hears, frame) -> the frame it hears instead."""


def untouched(hearer: int, number: int, frame: bytes) -> bytes:
    return frame


def heres(C: Compressor, spans: Spans, N: int, round: int = 0, run: int = RUN) -> list[Here]:
    return [Here(r, N, round, Key(SEED, round, r), C, spans, run) for r in range(N)]


def one_round(
    exchange: tw.Exchange,
    deltas: Sequence[Tensor],
    mems: Sequence[Memory],
    at: Sequence[Here],
    tamper: Tamper = untouched,
) -> list[Outcome]:
    """Runs one round of every rank to its own end and returns how each ended."""
    N = len(at)
    outcomes = [Outcome() for _ in range(N)]
    anchor = torch.zeros(at[0].spans.d)
    talks = [exchange.round(anchor, deltas[r], mems[r], at[r]) for r in range(N)]
    mail: dict[tuple[int, int], deque[bytes]] = defaultdict(deque)
    asks: list[object] = [None] * N

    def resume(rank: int, answer: object) -> None:
        mine = outcomes[rank]
        asks[rank] = None
        try:
            ask = talks[rank].send(answer)  # type: ignore[arg-type]
        except StopIteration as stop:
            mine.direction, mine.mem = stop.value
            return
        except Exception as error:
            mine.error = error
            return
        asks[rank] = ask
        if isinstance(ask, Reduce):
            mine.reduced += 4 * len(ask.vector)
            return
        mine.turns.append((len(ask.posts), len(ask.takes)))
        for post in ask.posts:
            assert len(post.frame) <= post.bound
            mine.posted.append((post.to, post.frame))
            mail[rank, post.to].append(post.frame)

    def hear(rank: int, takes: Sequence[Take]) -> list[bytes]:
        mine, frames = outcomes[rank], []
        for take in takes:
            frame = tamper(rank, len(mine.heard), mail[take.source, rank].popleft())
            mine.heard.append((take.source, frame))
            mine.bounds.append((take.source, take.bound))
            frames.append(frame)
        return frames

    for rank in range(N):
        resume(rank, None)
    while any(ask is not None for ask in asks):
        before = list(asks)
        if all(isinstance(ask, Reduce) for ask in asks):
            total = torch.zeros_like(asks[0].vector)  # type: ignore[union-attr]
            for ask in asks:
                total += ask.vector  # type: ignore[union-attr]
            for rank in range(N):
                resume(rank, total.clone())
            continue
        for rank in range(N):
            ask = asks[rank]
            if ask is None or isinstance(ask, Reduce):
                continue
            if all(mail[take.source, rank] for take in ask.takes):  # type: ignore[attr-defined]
                resume(rank, hear(rank, ask.takes))  # type: ignore[attr-defined]
        assert any(a is not b for a, b in zip(asks, before, strict=True)), "every rank waits"
    assert not any(mail.values()), "a frame was posted and never taken"
    return outcomes


def said_frames(outcomes: Sequence[Outcome]) -> list[bytes]:
    """Returns the one SAID or ALARM frame that each rank made."""
    frames = []
    for mine in outcomes:
        own = {f for _, f in mine.posted if f[3] in (Kind.SAID, Kind.ALARM)}
        assert len(own) == 1
        frames.append(own.pop())
    return frames


def body_of(frame: bytes) -> bytes:
    return frame[HEADER:]
