"""Who answers a round's asks: one transport, or all rounds of one process in lock-step."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from thinwire.errors import ConfigError, FrameError, NonFiniteError, TransportError
from thinwire.host import Bytes
from thinwire.transport.base import Answer, Ask, Reduce, Transport, Turn

R = TypeVar("R")
AnyTalk = Generator[Ask, Answer, R]


class Observer(Protocol):
    """Is told of everything a worker asks and is answered; counts bytes, never changes them."""

    def asked(self, ask: Ask, rank: int) -> None:
        """Called before the ask is carried out."""
        ...

    def answered(self, ask: Ask, answer: Answer, rank: int) -> None:
        """Called when the answer is there."""
        ...


def drive(talk: AnyTalk[R], transport: Transport, observer: Observer) -> R:
    """Runs one worker's talk over a transport and returns what the talk returns.

    Args:
        talk: yields turns and reduces.
        transport: answers them.
        observer: is told of each.
    """
    try:
        ask = next(talk)
        while True:
            observer.asked(ask, transport.rank)
            answer: Answer = (
                transport.turn(ask) if isinstance(ask, Turn) else transport.reduce(ask.vector)
            )
            observer.answered(ask, answer, transport.rank)
            ask = talk.send(answer)
    except StopIteration as stop:
        transport.flush()
        result: R = stop.value
        return result
    except (ConfigError, FrameError, NonFiniteError):
        # What this rank said of the trouble must still reach the others, if they still listen.
        with suppress(TransportError):
            transport.flush()
        raise
    finally:
        talk.close()


def lockstep(talks: Sequence[AnyTalk[R]], observers: Sequence[Observer]) -> list[R]:
    """Runs the talks of all ranks in one process, each as far as its frames allow, in rank order.

    Args:
        talks: one of each rank.
        observers: one of each rank.

    Returns:
        What each talk returns, in rank order.

    Raises:
        TransportError: the ranks wait for each other in a circle, or a frame is left unread.
        Exception: whatever a talk raises first; the others are closed.
    """
    loop = _LockStep(talks, observers)
    try:
        return loop.run()
    finally:
        for talk in talks:
            talk.close()


class _LockStep(Generic[R]):
    def __init__(self, talks: Sequence[AnyTalk[R]], observers: Sequence[Observer]) -> None:
        self.talks, self.observers, self.N = talks, observers, len(talks)
        self.mail: dict[tuple[int, int], deque[Bytes]] = defaultdict(deque)
        self.asks: list[Ask | None] = [None] * self.N
        self.results: dict[int, R] = {}

    def run(self) -> list[R]:
        for rank in range(self.N):
            self._resume(rank, None)
        while len(self.results) < self.N:
            ready = [rank for rank in range(self.N) if self._can_answer(rank)]
            if not ready:
                waiting = {r: a for r, a in enumerate(self.asks) if a is not None}
                raise TransportError(f"every rank waits: {waiting}")
            if isinstance(self.asks[ready[0]], Reduce):
                self._reduce()
                continue
            for rank in ready:
                turn = self.asks[rank]
                assert isinstance(turn, Turn)
                self._resume(rank, [self.mail[t.source, rank].popleft() for t in turn.takes])
        left = [f"{a} to {b}" for (a, b), frames in self.mail.items() if frames]
        if left:
            raise TransportError(f"frames were posted and never taken: {', '.join(left)}")
        return [self.results[rank] for rank in range(self.N)]

    def _can_answer(self, rank: int) -> bool:
        ask = self.asks[rank]
        if isinstance(ask, Reduce):
            return all(isinstance(a, Reduce) for a in self.asks)
        if ask is None:
            return False
        wanted: dict[int, int] = defaultdict(int)
        for take in ask.takes:
            wanted[take.source] += 1
        return all(len(self.mail[source, rank]) >= n for source, n in wanted.items())

    def _reduce(self) -> None:
        total = torch.zeros_like(self._vector(0))
        for rank in range(self.N):
            total += self._vector(rank)
        for rank in range(self.N):
            self._resume(rank, total.clone())

    def _vector(self, rank: int) -> Tensor:
        ask = self.asks[rank]
        assert isinstance(ask, Reduce)
        return ask.vector

    def _resume(self, rank: int, answer: Answer | None) -> None:
        ask = self.asks[rank]
        if ask is not None and answer is not None:
            check_bounds(ask, answer)
            self.observers[rank].answered(ask, answer, rank)
        try:
            self.asks[rank] = ask = self.talks[rank].send(answer)  # type: ignore[arg-type]
        except StopIteration as stop:
            self.asks[rank] = None
            self.results[rank] = stop.value
            return
        self.observers[rank].asked(ask, rank)
        if isinstance(ask, Turn):
            for post in ask.posts:
                self.mail[rank, post.to].append(post.frame)


def check_bounds(ask: Ask, answer: Answer) -> None:
    """Raises a FrameError where a frame is longer than its take allows, as a transport would."""
    if isinstance(ask, Turn) and isinstance(answer, list):
        for take, frame in zip(ask.takes, answer, strict=True):
            if len(frame) > take.bound:
                raise FrameError(
                    f"frame from rank {take.source}: {len(frame)} bytes; at most {take.bound}"
                )
