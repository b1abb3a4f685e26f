"""Virtual time: the asks of all workers, answered when modelled links would have answered them.

A worker is a program: a generator that yields what a round yields, and `Busy` where it computes.
Nothing waits: a heap of what happens next is the clock. What is said in one turn leaves at once
when the sender's uplink is free, and shares it evenly. A frame reaches the receiver a latency
later, and is there when the receiver's downlink has taken it, which serves frames in the order in
which their first bits come.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator, Sequence
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from thinwire.errors import ConfigError, TransportError
from thinwire.exchange.driver import Observer, check_bounds
from thinwire.host import Bytes
from thinwire.keys import Key
from thinwire.link import Link, Port
from thinwire.transport.base import Answer, Ask, Post, Reduce, Turn
from thinwire.virtual.compute import Busy, Cores
from thinwire.virtual.timeline import COMPUTE, SEND, TALK, Timeline

R = TypeVar("R")


Program = Generator[Ask | Busy, Answer | None, R]
"""What one worker does, from the start to the end of a simulation."""


class Flight(NamedTuple):
    """One frame of n bytes on its way: who hears it, and when its first and last bits come."""

    first: float
    last: float
    late: float
    to: int
    n: int
    frame: Bytes


class VirtualTime(Generic[R]):
    """Runs the programs of all workers in one process, in virtual time.

    The same programs over the same links give the same times: what is drawn, is drawn by key.

    Args:
        programs: one of each rank.
        links: of each rank, or one for all.
        observers: are told of each rank's asks and answers, as a `Stats` is; none by default.
        seed: of jitter and loss.
        timeline: takes note of who did what when.
        cores: that all ranks compute on; by default each has its own.

    Attributes:
        now: virtual seconds since the start.
        sent: bytes that left each rank for another.
        received: bytes that came to each rank from another.
        busy: seconds each rank computed.
        frames: frames that left a rank for another.
        lost: frames that never came.

    Raises:
        ConfigError: there is not one link for each worker.

    Example:
        >>> from thinwire.transport.base import Take, turn
        >>> def says():
        ...     yield Busy(2.0)
        ...     yield from turn((Post(1, bytes(86), 86),))
        >>> def hears():
        ...     yield from turn(takes=(Take(0, 86),))
        >>> clock = VirtualTime([says(), hears()], Link(1600.0, 0.5))
        >>> _ = clock.run()
        >>> clock.now, clock.sent
        (3.5, [86, 0])
    """

    def __init__(
        self,
        programs: Sequence[Program[R]],
        links: Link | Sequence[Link],
        observers: Sequence[Observer] | None = None,
        seed: int = 0,
        timeline: Timeline | None = None,
        cores: Cores | None = None,
    ) -> None:
        self.programs, self.N = programs, len(programs)
        self.links = [links] * self.N if isinstance(links, Link) else list(links)
        if len(self.links) != self.N:
            raise ConfigError(f"{len(self.links)} links for {self.N} workers; give one for each")
        self.now = 0.0
        self.sent, self.received, self.busy = [0] * self.N, [0] * self.N, [0.0] * self.N
        self.frames = self.lost = 0
        self._observers, self._seed, self._timeline = observers, seed, timeline
        self._cores = Cores(None) if cores is None else cores
        self._up = [Port() for _ in range(self.N)]
        self._down = [Port() for _ in range(self.N)]
        # How long a frame of n bytes keeps a line busy is asked again and again.
        costs: dict[Link, tuple[dict[int, float], dict[int, float]]] = {}
        self._cost = [costs.setdefault(link, ({}, {})) for link in self.links]
        self._fickle = [bool(k.jitter or k.loss or k.drop) for k in self.links]
        self._flying: list[deque[Flight]] = [deque() for _ in range(self.N)]
        self._mail: list[dict[int, list[tuple[float, Bytes]]]] = [{} for _ in range(self.N)]
        self._ready = [0.0] * self.N
        self._asks: list[Ask | None] = [None] * self.N
        self._since = [0.0] * self.N
        self._missing: list[dict[int, int]] = [{} for _ in range(self.N)]
        self._in_order: dict[tuple[int, int], float] = {}
        self._summing: dict[int, Tensor] = {}
        self._sums: dict[int, Tensor] = {}
        self._heap: list[tuple[float, int]] = []
        self._results: dict[int, R] = {}

    def run(self) -> list[R]:
        """Runs all programs to their end and returns what each returns, in rank order.

        Raises:
            TransportError: the ranks wait for each other in a circle, or a frame is left unread.
            Exception: whatever a program raises first; the others are closed.
        """
        try:
            for rank in range(self.N):
                self._resume(rank, None)
            heap = self._heap
            while heap:
                self.now, event = heap[0]
                rank, arrives = event >> 1, event & 1
                if arrives:
                    flying = self._flying[rank]
                    flight = flying.popleft()
                    if flying:
                        heapq.heapreplace(heap, (flying[0].first, event))
                    else:
                        heapq.heappop(heap)
                    self._arrive(rank, flight)
                else:
                    heapq.heappop(heap)
                    self._answer(rank)
            self._check_over()
            return [self._results[rank] for rank in range(self.N)]
        finally:
            for program in self.programs:
                program.close()

    def _resume(self, rank: int, answer: Answer | None) -> None:
        """Hands a worker its answer, and takes up what it does next."""
        try:
            ask = self.programs[rank].send(answer)
        except StopIteration as stop:
            self._results[rank] = stop.value
            return
        if isinstance(ask, Busy):
            self.busy[rank] += ask.seconds
            done = self._cores.serve(self.now, ask.seconds)
            if self._timeline is not None:
                self._timeline.note(rank, COMPUTE, done - ask.seconds, done)
            heapq.heappush(self._heap, (done, 2 * rank))
            return
        self._asks[rank], self._since[rank] = ask, self.now
        if self._observers is not None:
            self._observers[rank].asked(ask, rank)
        if isinstance(ask, Reduce):
            self._sum(rank, ask)
            return
        self._post(rank, ask.posts)
        self._await(rank, ask)

    def _await(self, rank: int, ask: Turn) -> None:
        """Has the worker resumed when the last frame it takes is there."""
        mail, missing, ready = self._mail[rank], self._missing[rank], self.now
        for take in ask.takes:
            missing[take.source] = missing.get(take.source, 0) + 1
        if mail:
            for source, n in list(missing.items()):
                there = mail.get(source, ())[:n]
                if there:
                    ready = max(ready, there[-1][0])
                    missing[source] -= len(there)
                    if len(there) == n:
                        del missing[source]
        self._ready[rank] = ready
        if not missing:
            heapq.heappush(self._heap, (ready, 2 * rank))

    def _post(self, rank: int, posts: Sequence[Post]) -> None:
        """Has what is said in one turn leave this rank."""
        link, costs, said = self.links[rank], self._cost[rank][0], []
        for post in posts:
            if post.to == rank:
                self._mail[rank].setdefault(rank, []).append((self.now, post.frame))
                continue
            n, frame, late = len(post.frame), post.frame, 0.0
            seconds = costs.get(n)
            if seconds is None:
                seconds = costs[n] = link.seconds(n)
            self.sent[rank] += n
            self.frames += 1
            if self._fickle[rank]:
                luck = link.luck(n, Key(self._seed, self.frames, rank))
                seconds, late = seconds * (1 + luck.again), luck.late
                if luck.lost:
                    frame, n, late, self.lost = b"", 0, link.patience, self.lost + 1
            said.append((seconds, late, post.to, n, frame))
        if not said:
            return
        began, ends = self._up[rank].share(self.now, [seconds for seconds, *_ in said])
        flying, first = self._flying[rank], began + link.latency
        if not flying:
            heapq.heappush(self._heap, (first, 2 * rank + 1))
        for (_, late, to, n, frame), left in zip(said, ends, strict=True):
            flying.append(Flight(first, left + link.latency, late, to, n, frame))
        if self._timeline is not None:
            self._timeline.note(rank, SEND, began, self._up[rank].free)

    def _arrive(self, source: int, flight: Flight) -> None:
        """Takes a frame whose first bit has come through the receiver's downlink."""
        _, there, late, to, n, frame = flight
        if n:
            seconds = self._cost[to][1].get(n)
            if seconds is None:
                seconds = self._cost[to][1][n] = self.links[to].seconds(n, downwards=True)
            there = max(there, self._down[to].serve(self.now, seconds))
            self.received[to] += n
        if self._fickle[source]:
            # What one worker says to another stays in order, as TCP keeps it.
            there = max(there + late, self._in_order.get((source, to), 0.0))
            self._in_order[source, to] = there
        mail = self._mail[to]
        if source in mail:
            mail[source].append((there, frame))
        else:
            mail[source] = [(there, frame)]
        missing = self._missing[to]
        if source in missing:
            self._ready[to] = max(self._ready[to], there)
            if missing[source] > 1:
                missing[source] -= 1
                return
            del missing[source]
            if not missing:
                heapq.heappush(self._heap, (self._ready[to], 2 * to))

    def _answer(self, rank: int) -> None:
        """Resumes a worker that has computed, or whose frames are all there."""
        ask = self._asks[rank]
        if ask is None:
            self._resume(rank, None)
            return
        if isinstance(ask, Reduce):
            self._give(rank, ask, self._sums.pop(rank).clone())
            return
        mail = self._mail[rank]
        frames = []
        for take in ask.takes:
            there = mail[take.source]
            frames.append(there.pop(0)[1])
            if not there:
                del mail[take.source]
        self._give(rank, ask, frames)

    def _give(self, rank: int, ask: Ask, answer: Answer) -> None:
        self._asks[rank] = None
        if self._timeline is not None:
            self._timeline.note(rank, TALK, self._since[rank], self.now)
        check_bounds(ask, answer)
        if self._observers is not None:
            self._observers[rank].answered(ask, answer, rank)
        self._resume(rank, answer)

    def _sum(self, rank: int, ask: Reduce) -> None:
        """Sums over all ranks when the last has come, as a ring of the slowest link does."""
        self._summing[rank] = ask.vector
        if len(self._summing) < self.N:
            return
        total = ask.vector.new_zeros(ask.vector.shape)
        for each in range(self.N):
            total += self._summing[each]
        self._summing.clear()
        n = total.numel() * total.element_size()
        done = self.now + max(link.all_reduce(n, self.N) for link in set(self.links))
        for each in range(self.N):
            self._sums[each] = total
            heapq.heappush(self._heap, (done, 2 * each))

    def _check_over(self) -> None:
        waiting = {r: a for r, a in enumerate(self._asks) if a is not None}
        if waiting:
            few = dict(list(waiting.items())[:5])
            raise TransportError(f"{len(waiting)} of {self.N} ranks wait for ever, such as {few}")
        left = sum(bool(frame) for box in self._mail for q in box.values() for _, frame in q)
        if left:
            raise TransportError(f"{left} frames were posted and never taken")
