"""A plain group of workers in one process, as processes of `torchrun` are, in which one goes wrong.

It answers the very talks that run over a process group, from the first hello on: `LocalSGD.join`
and `LocalSGD.steps`. A frame comes in order or not at all; who waits for a worker that is gone
is told `PeerLost`, and is gone itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD

from thinwire import Exchange, LocalSGD, Seat
from thinwire.compress import Compressor
from thinwire.errors import PeerLost, ThinwireError, TransportError
from thinwire.exchange.driver import check_bounds
from thinwire.ledger import Ledger
from thinwire.transport.base import Ask, Reduce, Turn

D = 9
Bits = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What a group runs.

    Args:
        exchange, compressor, H: as `LocalSGD` takes them.
        lossy: what becomes of a round's message that is lost: "mended" by replicas, "without" it
            for that round, or None: the run ends.
        books: whether its updates are booked.
        least: the fewest workers it is for.
        steps: how many local steps it takes, on from the first meeting.
        relays: whether frames come by way of others, so that a frame is known by whose it is.
    """

    exchange: Exchange
    compressor: Compressor
    H: Any = 1
    lossy: str | None = None
    books: bool = True
    least: int = 1
    steps: int = 2
    relays: bool = False


@dataclass(frozen=True)
class Fault:
    """What befalls one worker at one of its yields.

    Args:
        rank: whose it is.
        at: which of its yields, from 0.
        what: "dies"; or of a frame it takes: "lost", "late", "wrong", "stale", "twice".
        n: of a death, how many posts still leave; in an all-reduce, how many of the others are
            handed the sum, -1 where not even its vector was handed over. Else which take.
        drops: whether what a worker that is gone had posted, and nobody has taken, is gone too.
        told: whether a post to a worker that is gone is an error, as the engine may have it.
    """

    rank: int
    at: int
    what: str
    n: int = 0
    drops: bool = False
    told: bool = False


@dataclass(frozen=True)
class Shape:
    """A yield as a fault sees it: how many posts, whom it takes from, or an all-reduce."""

    posts: int
    takes: tuple[int, ...]
    reduces: bool


def learned(rank: int, step: int) -> Tensor:
    """Returns what a worker moves by in a local step, (D,) float32."""
    return torch.randn(D, generator=torch.Generator().manual_seed(1000 * rank + step))


class Group:
    """N workers, each as far as it comes."""

    def __init__(self, setting: Setting, N: int, steps: int, faults: Sequence[Fault] = ()) -> None:
        self.N, self.steps, self.setting = N, steps, setting
        self.faults = {(f.rank, f.at): [] for f in faults}
        for f in faults:
            self.faults[f.rank, f.at].append(f)
        self.drops = any(f.drops for f in faults)
        self.told = any(f.told for f in faults)
        self.left_mail = self.met_gone = False
        self.params = [Parameter(torch.full((D,), 0.5 + (rank > 0))) for rank in range(N)]
        self.workers = [
            LocalSGD(
                [p], SGD([p], lr=1.0), compressor=setting.compressor, exchange=setting.exchange,
                H=setting.H, group=Seat(rank, N), ledger=Ledger() if setting.books else None,
            )
            for rank, p in enumerate(self.params)
        ]  # fmt: skip
        self.held: list[list[Bits]] = [[] for _ in range(N)]
        self.shapes: list[list[Shape]] = [[] for _ in range(N)]
        self.rounds: list[list[int]] = [[] for _ in range(N)]
        self.errors: dict[int, ThinwireError] = {}
        self.dead: set[int] = set()
        self.done: set[int] = set()
        self.mail: dict[tuple[int, int], deque[bytes]] = defaultdict(deque)
        self.past: dict[tuple[int, int], bytes] = {}
        self.asks: dict[int, Ask] = {}
        self.handed: dict[int, Tensor] = {}
        self.sums = N
        self.talks = [self.life(rank) for rank in range(N)]
        for rank in range(N):
            self.resume(rank, None)
        while self.asks:
            self.move()

    def life(self, rank: int) -> Any:
        worker = self.workers[rank]
        yield from worker.join()
        for step in range(self.steps):
            self.params[rank].grad = learned(rank, step)
            yield from worker.steps()
            state, _ = worker.hold()
            self.held[rank].append({"anchor": state.anchor, "agreed": worker.agreed, **state.mem})

    @property
    def gone(self) -> set[int]:
        return self.dead | set(self.errors)

    def move(self) -> None:
        """Lets all that can go on do so; whoever is late only where nobody else can."""
        able = [rank for rank in list(self.asks) if self.ready(rank)]
        soon = [rank for rank in able if not self.struck(rank, "late")] or able
        for rank in soon:
            if rank in self.asks and self.ready(rank):
                self.answer(rank)
        if soon:
            return
        if all(isinstance(ask, Reduce) for ask in self.asks.values()):
            self.reduce()
            return
        lost = {rank: self.missing(rank) for rank in self.asks}
        told = [rank for rank, source in lost.items() if source in self.gone]
        assert told, f"every rank waits for ever: {self.asks}"
        for rank in told:
            self.end(rank, PeerLost(lost[rank], "its connection is closed"))

    def struck(self, rank: int, what: str) -> list[Fault]:
        at = len(self.shapes[rank]) - 1
        return [f for f in self.faults.get((rank, at), ()) if f.what == what]

    def missing(self, rank: int) -> int:
        """Returns whose frame that rank waits for first; -1 where all are there."""
        ask, wanted = self.asks[rank], Counter()
        if isinstance(ask, Reduce):
            return -1
        for take in ask.takes:
            wanted[take.source] += 1
            if len(self.mail[take.source, rank]) < wanted[take.source]:
                return take.source
        return -1

    def ready(self, rank: int) -> bool:
        return isinstance(self.asks[rank], Turn) and self.missing(rank) < 0

    def answer(self, rank: int) -> None:
        ask, frames = self.asks[rank], []
        for n, take in enumerate(ask.takes):
            way = take.source, rank
            frame = self.mail[way].popleft()
            for fault in self.faults.get((rank, len(self.shapes[rank]) - 1), ()):
                if fault.n == n and fault.what != "dies":
                    frame = self.spoil(fault.what, way, frame)
            self.past[way] = frame or self.past.get(way, b"")
            frames.append(frame)
        try:
            check_bounds(ask, frames)
        except ThinwireError as error:  # The transport's own; the talk never hears of it.
            self.end(rank, error)
            return
        self.resume(rank, frames)

    def spoil(self, what: str, way: tuple[int, int], frame: bytes) -> bytes:
        if what == "twice":
            self.mail[way].appendleft(frame)
        if what == "wrong":
            return frame[:-1] + bytes([frame[-1] ^ 16])
        if what == "stale":
            return self.past.get(way, frame[:-1])
        return b"" if what == "lost" else frame

    def reduce(self) -> None:
        """All who are left have come to an all-reduce: it ends well only if all came."""
        vectors = {rank: ask.vector for rank, ask in self.asks.items()} | self.handed
        there = list(self.asks)
        fine = there if len(vectors) == self.N else []
        if self.handed:
            fine, self.handed = fine[: self.sums], {}
        total = torch.stack([vectors[rank] for rank in sorted(vectors)]).sum(0)
        for rank in there:
            if rank in fine:
                self.resume(rank, total.clone())
            else:
                self.end(rank, TransportError(f"all-reduce failed on rank {rank}"))

    def resume(self, rank: int, answer: Any) -> None:
        self.asks.pop(rank, None)
        try:
            ask = self.talks[rank].send(answer)
        except StopIteration:
            self.done.add(rank)
            return
        except ThinwireError as error:
            self.end(rank, error)
            return
        posts, takes = ((), ()) if isinstance(ask, Reduce) else (ask.posts, ask.takes)
        shape = Shape(len(posts), tuple(t.source for t in takes), isinstance(ask, Reduce))
        self.shapes[rank].append(shape)
        self.rounds[rank].append(self.workers[rank].round)
        death = next(iter(self.struck(rank, "dies")), None)
        if isinstance(ask, Reduce) and death is not None and death.n >= 0:
            self.handed, self.sums = {rank: ask.vector}, death.n
        for post in posts if death is None else posts[: death.n]:
            assert len(post.frame) <= post.bound
            self.met_gone |= post.to in self.gone
            if self.told and post.to in self.gone:
                self.end(rank, PeerLost(post.to, "its connection is closed"))
                return
            self.mail[rank, post.to].append(post.frame)
        self.asks[rank] = ask
        if death is not None:
            self.dead.add(rank)
            self.leave(rank)

    def end(self, rank: int, error: ThinwireError) -> None:
        self.errors[rank] = error
        if isinstance(error, TransportError):
            self.leave(rank)
        self.asks.pop(rank, None)
        self.talks[rank].close()

    def leave(self, rank: int) -> None:
        self.asks.pop(rank, None)
        self.talks[rank].close()
        for to in range(self.N):
            self.left_mail |= bool(self.mail[rank, to])
            if self.drops:
                self.mail[rank, to].clear()


SPOILT = ("lost", "wrong", "stale", "twice")


def each_way(setting: Setting, N: int, steps: int, fault: Fault) -> Iterator[Group]:
    """Yields the group with this fault, in each way in which a connection may break.

    What was posted and not yet taken is still there or gone, and a post to who is gone is an error
    or not. Only where a run so far met the difference is there another: up to there they are one.
    """
    ways, seen = [fault], {fault}
    for way in ways:
        group = Group(setting, N, steps, [way])
        yield group
        others = {replace(way, drops=way.drops or group.left_mail)}
        others.add(replace(way, told=way.told or group.met_gone))
        ways += sorted(others - seen, key=repr)
        seen |= others


def every_fault(calm: Group, kinds: Sequence[str] = ("dies", "late", *SPOILT)) -> Iterator[Fault]:
    """Yields each fault of these kinds at each yield of each worker of a calm run."""
    for rank, shapes in enumerate(calm.shapes):
        for at, shape in enumerate(shapes):
            if "dies" in kinds:
                for n in range(-1, calm.N) if shape.reduces else range(shape.posts + 1):
                    yield Fault(rank, at, "dies", n)
            # What a worker says to itself never touches a wire.
            others = [n for n, source in enumerate(shape.takes) if source != rank]
            for n in others:
                yield from (Fault(rank, at, what, n) for what in SPOILT if what in kinds)
            if others and "late" in kinds:
                # Whichever of its frames is late, its answer is.
                yield Fault(rank, at, "late", others[0])
