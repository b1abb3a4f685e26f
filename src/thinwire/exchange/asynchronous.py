"""Asynchronous: each worker speaks at times of its own; the master answers those who spoke."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire import host
from thinwire.compress import Compressor
from thinwire.errors import ConfigError, FrameError, NonFiniteError
from thinwire.exchange.anchors import (
    Form,
    Head,
    anchor_bound,
    changed,
    decode_values,
    encode_values,
)
from thinwire.exchange.base import Exchange, Here, Memory, Talk
from thinwire.exchange.feedback import (
    Feedback,
    NoFeedback,
    check_feedback,
    first_residual,
    keep,
    said_bound,
    say,
)
from thinwire.exchange.hear import divided, listen
from thinwire.exchange.refusal import REFUSAL_BODY, encode_refusal, refusal
from thinwire.flat import Spans, Vector
from thinwire.host import Bytes
from thinwire.outer import Average, Outer, OuterState
from thinwire.schedule import H_at
from thinwire.transport.base import Answer, Ask, Post, Take, turn
from thinwire.value import of_kind, whole
from thinwire.wire.body import unpack
from thinwire.wire.frame import HEADER, Kind, seal, unseal


@dataclass(frozen=True, repr=False)
class Asynchronous(Exchange):
    """The master hears, at each tick of one clock, the workers whose gap ends there.

    Worker, at the end of its gap: u = delta + m, delta against the copy that it last received;
    say C(u); m = u - said; its anchor is the reply.
    Master: x = outer(x, (sum of said by those who spoke, in rank order) / N); reply x to them.

    The clock is the local step: all ranks take them together, as `LockStep` and a process group
    do. Who speaks follows from the seed (`RandomGaps`), so a tick at which nobody does costs
    nothing. A NaN is told to those who spoke with it; others lose the master when they next speak.

    Price: 2 steps; a worker sends |C| and receives at most the new values of the entries that
    changed since it last did, or the whole model where that is smaller. Memory: the residual, one
    d-vector; the master its model, and when each entry last changed: two more.

    Args:
        feedback: of the workers, `Feedback()` or `NoFeedback()`.
        outer: how the master's model moves along what it heard.
        root: the rank that is also the master.

    Source: Qsparse-local-SGD (arXiv 1906.02367), Algorithm 2.
    Differs: the reply is exact and in the fewest bytes, and is counted.
    """

    replicates: ClassVar[bool] = False
    on_device: ClassVar[bool] = False
    pace: ClassVar[Literal["common", "own", "free"]] = "own"
    hands_anchor: ClassVar[bool] = True
    feedback: Feedback | NoFeedback = field(default_factory=Feedback)
    outer: Outer = field(default_factory=Average)
    root: int = 0

    def __post_init__(self) -> None:
        of_kind(self, "feedback", self.feedback, Feedback, NoFeedback)
        of_kind(self, "outer", self.outer, Outer)
        whole(self, "root", self.root, 0, 65535)

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_feedback(self.feedback, compressor, spans, "Asynchronous")

    def init(self, here: Here) -> Memory:
        if self.root >= here.N:
            raise ConfigError(f"Asynchronous(root={self.root}): ranks are 0 to {here.N - 1}")
        return first_residual(self.feedback, here)

    def agreed(self, anchor: Tensor, mem: Memory) -> Tensor:
        return mem.get("master/x", anchor)

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        saying = say(delta, mem, here, self.feedback)
        yield from turn((Post(self.root, saying.frame, said_bound(here)),))
        residual = saying.residual(here)
        if here.rank == self.root:
            mem = yield from self.attend(anchor, mem, here)
        frames = yield from turn(takes=(Take(self.root, reply_bound(here)),))
        address = here.address(self.root)
        kind, body = unseal(frames[0], address, Kind.ANCHOR, Kind.REFUSAL)
        reader = here.reader(body, self.root)
        if kind is Kind.REFUSAL:
            raise refusal(reader, here)
        x = decode_values(reader, Head.read(reader).form, anchor)
        reader.end()
        return x, keep(mem, residual)

    def attend(self, anchor: Tensor, mem: Memory, here: Here) -> Generator[Ask, Answer, Memory]:
        if here.rank != self.root:
            return mem
        desk = Desk.of(mem, anchor, here, self.outer).tick(here.called)
        at = {rank: desk.place(rank, here) for rank in desk.speakers}
        takes = tuple(Take(rank, said_bound(here)) for rank in at)
        frames = yield from turn(takes=takes)
        heard = dict(zip(at, frames, strict=True))
        try:
            answered = desk.hear(heard, at, self.outer, here)
            replies = answered.replies(at, self.root)
        except (NonFiniteError, FrameError) as error:
            told = encode_refusal(error)
            replies = {r: seal(Kind.REFUSAL, p.address(self.root), told) for r, p in at.items()}
            yield from turn(posts(replies, here))
            if here.rank in at:
                return mem  # Its own worker raises what it hears.
            raise refusal(here.reader(told, self.root), here) from None
        yield from turn(posts(replies, here))
        return {**mem, **answered.after(here).memory()}


def reply_bound(here: Here) -> int:
    """Returns the most bytes a master's answer can have."""
    return max(anchor_bound(here.spans.d), HEADER + REFUSAL_BODY)


def posts(replies: dict[int, Bytes], here: Here) -> tuple[Post, ...]:
    """Returns a post of each rank's reply."""
    return tuple(Post(rank, frame, reply_bound(here)) for rank, frame in replies.items())


KEPT = ("x", "version", "touched", "clock", "due", "spoken", "heard")
OUTER = "master/outer/"


@dataclass(frozen=True, eq=False)
class Desk:
    """What a master keeps of its model and of its workers.

    Args:
        x: (d,) float32, its model.
        version: (1,) int64, how often it has changed.
        touched: (d,) int64, the version at which an entry last changed.
        clock: (1,) int64, ticks so far.
        due: (N,) int64, the tick at which each rank speaks next.
        spoken: (N,) int64, how often each has spoken, which is the round it is in.
        heard: (N,) int64, the version each rank last received.
        outer: what the outer step remembers.
        called: whether all ranks were called to this tick.
    """

    x: Tensor
    version: Tensor
    touched: Tensor
    clock: Tensor
    due: Tensor
    spoken: Tensor
    heard: Tensor
    outer: OuterState
    called: bool = False

    @staticmethod
    def of(mem: Memory, anchor: Tensor, here: Here, outer: Outer) -> Desk:
        """Returns the desk a memory holds, or a new one: then all hold the first anchor."""
        if "master/x" not in mem:
            first = [H_at(here.H, 0, replace(here.key, rank=r, round=0)) for r in range(here.N)]
            never = host.ints([0] * here.N)
            zeros = torch.zeros(len(anchor), dtype=torch.int64, device=host.CPU)
            none = host.ints([0])
            return Desk(
                anchor, none, zeros, none, host.ints(first), never, never, outer.init(anchor)
            )
        outer_state = {k[len(OUTER) :]: v for k, v in mem.items() if k.startswith(OUTER)}
        x, version, touched, clock, due, spoken, heard = (mem[f"master/{name}"] for name in KEPT)
        return Desk(x, version, touched, clock, due, spoken, heard, outer_state)

    def memory(self) -> Memory:
        """Returns the tensors by name, as `of` reads them."""
        outer = {f"{OUTER}{k}": v for k, v in self.outer.items()}
        return {f"master/{name}": getattr(self, name) for name in KEPT} | outer

    def tick(self, called: bool) -> Desk:
        """Returns the desk one local step later; a call of all ranks is no step."""
        return replace(self, clock=self.clock if called else self.clock + 1, called=called)

    @property
    def speakers(self) -> list[int]:
        """The ranks that speak at this tick, ascending."""
        N = len(self.due)
        return (
            list(range(N)) if self.called else (self.due == self.clock).nonzero().view(-1).tolist()
        )

    def place(self, rank: int, here: Here) -> Here:
        """Returns where that rank stands: in a round of its own."""
        round = int(self.spoken[rank])
        return replace(here, rank=rank, round=round, key=replace(here.key, rank=rank, round=round))

    def hear(self, frames: dict[int, Bytes], at: dict[int, Here], outer: Outer, here: Here) -> Desk:
        """Returns the desk after x = outer(x, (sum of said) / N).

        Raises:
            NonFiniteError, FrameError: nothing of this tick is applied.
        """
        bodies, alarms = {}, []
        for rank, frame in frames.items():
            bodies[rank], broken = listen(frame, rank, at[rank])
            if broken is not None:
                alarms.append((rank, broken))
        if alarms:
            raise NonFiniteError(alarms, here.round)
        if not bodies:
            return self
        C, total = here.compressor, host.zeros(here.spans.d)
        for rank, body in bodies.items():
            reader = at[rank].reader(body, rank)
            C.accumulate(total, unpack(reader, C, here.spans, at[rank].key))
            reader.end()
        x, outer_state = outer.step(self.x, divided(total, here), self.outer)
        version = self.version + 1
        touched = torch.where(changed(self.x, x), version, self.touched)
        return replace(self, x=x, version=version, touched=touched, outer=outer_state)

    def replies(self, at: dict[int, Here], root: int) -> dict[int, Bytes]:
        """Returns the frame that tells each of these ranks the model."""
        frames: dict[int, Bytes] = {}
        for rank, place in at.items():
            since = int(self.heard[rank])
            news = (self.touched > since).nonzero().view(-1)
            head = Head(since, int(self.version), True, Form.WHOLE)
            body = encode_values(self.x, news, head)
            frames[rank] = seal(Kind.ANCHOR, place.address(root), body)
        return frames

    def after(self, here: Here) -> Desk:
        """Returns the desk after its replies: who spoke is in its next round, with a new gap."""
        spoken, heard, due = self.spoken.clone(), self.heard.clone(), self.due.clone()
        for rank in self.speakers:
            spoken[rank] += 1
            heard[rank] = self.version
            round = int(spoken[rank])
            due[rank] = self.clock + H_at(here.H, round, replace(here.key, rank=rank, round=round))
        return replace(self, spoken=spoken, heard=heard, due=due)
