"""Frames over a `torch.distributed` process group: Gloo between hosts, NCCL by the same code."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from thinwire import host
from thinwire.errors import ConfigError, FrameError, PeerLost, RoundTimeout, TransportError
from thinwire.host import Bytes
from thinwire.memory import LINE
from thinwire.transport.base import Post, Take, Turn
from thinwire.transport.messages import Cutting, Window

R = TypeVar("R")

MESSAGE = Cutting(first=1 << 18, each=1 << 18, unread=4)
"""Of Gloo, which aborts the process that receives more than it asked for, and does not say when it
got less: who receives asks for what the bound allows until it has read how long the frame is."""

HELD_BACK = 3
"""Frames of speakers that hold back for which is asked however much is outstanding. On a connection
that is full the other way a question waits behind what is said there, and the line stands still."""


@dataclass(eq=False)
class _Coming:
    """A frame on its way here.

    Args:
        take: what was asked for.
        room: where its bytes come to lie.
        n: its length, as far as is known.
        asked: messages asked for, of which `on_way` have not come.
        whole: whether all have been asked for.
        passed: messages passed on.
    """

    take: Take
    room: Tensor
    n: int | None = None
    asked: int = 0
    whole: bool = False
    passed: int = 0
    on_way: deque[tuple[Any, Tensor]] = field(default_factory=deque)


class DistributedTransport:
    """Moves frames over a process group, sends on their way while the round goes on.

    Args:
        group: the process group, registered or not; None for the default one.
        header: bytes that start every frame.
        length: the whole frame's length from those bytes; raises FrameError on others.
        hard: seconds after which a wait ends with a RoundTimeout; None for the group's own.

    Attributes:
        awaited: the rank that is being waited for, None while none is.

    Raises:
        ConfigError: there is no process group.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        header: int,
        length: Callable[[Bytes], int],
        hard: float | None = None,
    ) -> None:
        given = dist.group.WORLD if group is None else group
        if given is None:
            raise ConfigError("there is no process group; call dist.init_process_group first")
        self.group = given
        self.rank, self.size = self.group.rank(), self.group.size()
        self._header, self._length = header, length
        nccl = self.group.name() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else None
        # NCCL matches sizes exactly: there, every frame is a header and then the rest.
        self._cutting = Cutting(header, sys.maxsize, 1) if nccl else MESSAGE
        self._window = Window(time.monotonic)
        self.awaited: int | None = None
        self._hard = None if hard is None else timedelta(seconds=hard)
        self._own: deque[Bytes] = deque()
        self._leaving: deque[tuple[Any, Tensor, int]] = deque()
        self._coming: defaultdict[int, deque[_Coming]] = defaultdict(deque)
        self._passed: Counter[int] = Counter()

    def turn(self, turn: Turn) -> list[Bytes]:
        """Starts every post, waits for every take, and returns the frames in the takes' order."""
        try:
            return self._turn(turn)
        except TransportError:
            self._own.clear()
            self._coming.clear()
            self._passed.clear()
            self._window = Window(time.monotonic)
            raise

    def _turn(self, turn: Turn) -> list[Bytes]:
        takes = [t for t in turn.takes if t.source != self.rank]
        ahead = deque([*takes, *(t for t in turn.coming if t.source != self.rank)])
        # A question that leaves after a post waits behind it where the line is slow.
        self._ask(ahead)
        for post in turn.posts:
            self._post(post)
        arrived: deque[Bytes] = deque()
        for take in takes:
            arrived.append(self._frame(take, ahead))
            ahead.popleft()
        self._ask(ahead)
        return [
            self._own.popleft() if t.source == self.rank else arrived.popleft() for t in turn.takes
        ]

    def flush(self) -> None:
        """Waits until every post has left; no turn does, for Gloo sends only what is asked for.

        Ranks that waited in a turn for their oldest sends would wait for each other in a circle.
        """
        while self._leaving:
            work, _, to = self._leaving.popleft()
            self._wait(work, to)

    def reduce(self, vector: Tensor) -> Tensor:
        """Returns the sum over all ranks, in the engine's own order, in the vector's place."""
        # Gloo sums on the host, NCCL on the device: the vector goes where the engine works.
        total = vector.to(self._device or host.CPU)
        try:
            self.group.allreduce([total]).wait()
        except RuntimeError as error:
            raise TransportError(f"all-reduce failed on rank {self.rank}: {error}") from error
        return total.to(vector.device)

    def greatest(self, number: float) -> float:
        """Returns the greatest of all ranks' numbers, once all have come to ask."""
        each = torch.tensor([number], dtype=torch.float64, device=self._device or host.CPU)
        _tried(self.rank, dist.all_reduce, each, dist.ReduceOp.MAX, self.group)
        return float(each)

    def _post(self, post: Post) -> None:
        if post.to == self.rank:
            self._own.append(post.frame)
            return
        if post.relayed and self._passed[post.to]:
            self._passed[post.to] -= 1
            return
        n = len(post.frame)
        if n > post.bound:
            # Gloo would abort the receiving process.
            raise FrameError(f"frame to rank {post.to} has {n} bytes, above its bound {post.bound}")
        frame = host.send(_tensor(post.frame), self._device or host.CPU)
        for cut in self._cutting.cuts(n, post.bound):
            self._send(_piece(frame, cut), post.to)

    def _send(self, message: Tensor, to: int) -> None:
        work = _tried(to, self.group.send, [message], to, 0)
        self._leaving.append((work, message, to))

    def _ask(self, ahead: Iterable[Take]) -> None:
        """Asks for what comes next, in this order, as long as the window is open.

        Of the first it always asks for something, and for all of a few that are held back.
        """
        # What a speaker says comes in order: first all of one frame, and then the next.
        after: dict[int, int] = {}
        for place, take in enumerate(ahead):
            early = take.held_back and place < HELD_BACK
            if after and not (early or self._window.open):
                break
            number, coming = after.get(take.source, 0), self._coming[take.source]
            if number < 0:
                continue
            if number == len(coming):
                coming.append(_Coming(take, self._room(take.bound)))
            frame = coming[number]
            if not frame.whole:
                self._ask_for(frame, not after, early)
            after[take.source] = number + 1 if frame.whole else -1

    def _ask_for(self, frame: _Coming, awaited: bool, early: bool) -> None:
        """Asks for messages of a frame, one at least if it is awaited, all that it can if early."""
        bound = frame.take.bound
        n = self._header if frame.n is None else frame.n
        most, all = self._cutting.count(n, bound), self._cutting.count(frame.n or bound, bound)
        while frame.asked < most and (early or self._window.open or (awaited and not frame.on_way)):
            cut = self._cutting.cut(frame.asked, bound if frame.n is None else n)
            piece, source = _piece(frame.room, cut), frame.take.source
            frame.on_way.append((_tried(source, self.group.recv, [piece], source, 0), piece))
            frame.asked += 1
            self._window.ask(piece.numel())
        frame.whole = frame.asked == all

    def _room(self, n: int) -> Tensor:
        # Where a frame's body begins on a cache line, its values are read where they lie.
        room = host.empty(n + LINE, torch.uint8, self._device or host.CPU)
        before = -(room.data_ptr() + self._header) % LINE
        return room[before : before + n]

    def _frame(self, take: Take, ahead: Iterable[Take]) -> Bytes:
        self._ask(ahead)
        frame = self._coming[take.source][0]
        while frame.on_way:
            # They come in order. To wait for every one would wake this thread as often.
            some = 1 if frame.n is None else (len(frame.on_way) + 1) // 2
            for work, piece in reversed([frame.on_way.popleft() for _ in range(some)]):
                self._wait(work, take.source)
                self._window.came(piece.numel())
            if frame.n is None:
                frame.n = self._checked(frame)
            if take.onward is not None:
                self._pass_on(frame, frame.n, take.onward)
            self._ask(ahead)
        self._coming[take.source].popleft()
        if take.onward is not None:
            self._passed[take.onward] += 1
        return frame.room[: frame.n].cpu().numpy().data

    def _pass_on(self, frame: _Coming, n: int, to: int) -> None:
        """Sends on what has come of a frame; whoever it is for looks at its checksum."""
        came = frame.asked - len(frame.on_way)
        for number in range(frame.passed, came):
            self._send(_piece(frame.room, self._cutting.cut(number, n)), to)
        frame.passed = came

    def _checked(self, frame: _Coming) -> int:
        """Returns how long a frame is, of which the first message has come."""
        bound, source = frame.take.bound, frame.take.source
        whole = self._cutting.count(bound, bound) == frame.asked
        try:
            n = self._length(frame.room[: self._header].cpu().numpy().data)
        except FrameError:
            if whole:
                return bound  # All of it is here: whoever unseals it refuses it.
            raise
        if n > bound and not whole:
            raise FrameError(f"frame from rank {source} announces {n} bytes; at most {bound}")
        return min(n, bound)

    def _wait(self, work: Any, rank: int) -> None:
        self.awaited = rank
        _tried(rank, work.wait, *(() if self._hard is None else (self._hard,)))
        self.awaited = None


class _Shown:
    """Shows bytes to torch, which asks for such as can be written; a sender only reads them."""

    def __init__(self, data: Bytes) -> None:
        self._array = np.frombuffer(data, np.uint8)
        at = self._array.ctypes.data
        self.__array_interface__ = {**self._array.__array_interface__, "data": (at, False)}


def _tensor(data: Bytes) -> Tensor:
    return torch.from_numpy(np.asarray(_Shown(data)))


def _piece(frame: Tensor, cut: slice) -> Tensor:
    return frame.narrow(0, cut.start, cut.stop - cut.start)


def _tried(rank: int, call: Callable[..., R], *given: Any) -> R:
    """Returns what the engine does, or says which rank it was that it failed over."""
    try:
        return call(*given)
    except RuntimeError as error:
        why = (str(error).splitlines() or ["no reason given"])[0]
        kind = RoundTimeout if "imed out" in why else PeerLost
        raise kind(rank, why) from error
