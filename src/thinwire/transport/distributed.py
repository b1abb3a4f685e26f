"""Frames over a `torch.distributed` process group: Gloo between hosts, NCCL by the same code."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from thinwire import host
from thinwire.errors import ConfigError, FrameError, PeerLost, RoundTimeout, TransportError
from thinwire.host import Bytes
from thinwire.transport.base import Post, Take, Turn

ONE_MESSAGE = 1 << 26
"""Up to this bound a frame is one message; above, a header and then exactly the rest.

Gloo aborts the process that receives more than it posted, and does not say when it got less. So
a receiver either posts the bound both sides know, or learns the length first.
"""
WINDOW = 1 << 23
"""Bytes that a receiver has asked for at most, unless one frame alone is more.

Frames come in the order of the takes, however many speak at once: senders that crowd one line
lose a fifth of it, and whose turn comes later has time to say it.
"""
LINE = 64
"""Bytes of a cache line: where a frame's body begins on one, its values are read where they lie."""


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
        self._one_message = 0 if nccl else ONE_MESSAGE
        self.awaited: int | None = None
        self._hard = None if hard is None else timedelta(seconds=hard)
        self._own: deque[Bytes] = deque()
        self._leaving: deque[tuple[Any, Tensor, int]] = deque()
        self._coming: defaultdict[int, deque[tuple[Any, Tensor, int]]] = defaultdict(deque)

    def turn(self, turn: Turn) -> list[Bytes]:
        """Starts every post, waits for every take, and returns the frames in the takes' order."""
        try:
            return self._turn(turn)
        except TransportError:
            self._own.clear()
            self._coming.clear()
            raise

    def _turn(self, turn: Turn) -> list[Bytes]:
        for post in turn.posts:
            self._post(post)
        takes = [t for t in turn.takes if t.source != self.rank]
        ahead = deque([*takes, *(t for t in turn.coming if t.source != self.rank)])
        arrived: deque[Bytes] = deque()
        for take in takes:
            self._make_room(ahead)
            arrived.append(self._frame(ahead.popleft(), *self._coming[take.source].popleft()))
        self._make_room(ahead)
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
        """Returns the sum over all ranks, in the engine's own order."""
        # Gloo sums on the host, NCCL on the device: the vector goes where the engine works.
        total = vector.to(self._device or host.CPU, copy=True)
        try:
            self.group.allreduce([total]).wait()
        except RuntimeError as error:
            raise TransportError(f"all-reduce failed on rank {self.rank}: {error}") from error
        return total.to(vector.device)

    def greatest(self, number: float) -> float:
        """Returns the greatest of all ranks' numbers, once all have come to ask."""
        each = torch.tensor([number], dtype=torch.float64, device=self._device or host.CPU)
        with _lost(self.rank):
            dist.all_reduce(each, dist.ReduceOp.MAX, group=self.group)
        return float(each)

    def _whole(self, message: Post | Take) -> bool:
        return message.bound <= self._one_message

    def _checked(self, take: Take, head: memoryview) -> int:
        try:
            n = self._length(head[: self._header])
        except FrameError:
            if self._whole(take):
                return len(head)  # All of it is here: whoever unseals it refuses it.
            raise
        if n > take.bound:
            if self._whole(take):
                return len(head)
            raise FrameError(
                f"frame from rank {take.source} announces {n} bytes; at most {take.bound}"
            )
        return n

    def _post(self, post: Post) -> None:
        if post.to == self.rank:
            self._own.append(post.frame)
            return
        if len(post.frame) > post.bound:
            # Gloo would abort the receiving process.
            raise FrameError(
                f"frame to rank {post.to} has {len(post.frame)} bytes, above its bound {post.bound}"
            )
        frame = memoryview(post.frame)
        at = len(frame) if self._whole(post) else self._header
        for data in (frame[:at], frame[at:]):
            if data:
                tensor = host.send(_tensor(data), self._device or host.CPU)
                with _lost(post.to):
                    work = self.group.send([tensor], post.to, 0)
                self._leaving.append((work, tensor, post.to))

    def _begin(self, source: int, n: int, head: Bytes = b"") -> tuple[Any, Tensor, int]:
        """Makes room for a message of at most n bytes; it may have fewer, and says so itself.

        Args:
            source: who sends it.
            n: its bytes.
            head: the first of them, where they came before.
        """
        room = host.empty(n + LINE, torch.uint8, self._device or host.CPU)
        before = -(room.data_ptr() + self._header) % LINE
        buffer = room[before : before + n]
        if head:
            buffer[: len(head)] = _tensor(head)
        rest = buffer[len(head) :]
        with _lost(source):
            work = self.group.recv([rest], source, 0) if len(rest) else None
        return work, buffer, source

    def _make_room(self, ahead: Iterable[Take]) -> None:
        """Begins to receive the next of these, and those after it that a window holds with it."""
        window, seen = WINDOW, Counter[int]()
        for take in ahead:
            window -= take.bound
            if seen and window < 0:
                break
            seen[take.source] += 1
            if seen[take.source] > len(self._coming[take.source]):
                n = take.bound if self._whole(take) else self._header
                self._coming[take.source].append(self._begin(take.source, n))
            if not self._whole(take):
                # The rest of it comes before anything else that its speaker says.
                break

    def _frame(self, take: Take, work: Any, buffer: Tensor, source: int) -> Bytes:
        head = self._arrived(work, buffer, source)
        n = self._checked(take, head)
        if self._whole(take):
            return head[:n]
        return self._arrived(*self._begin(source, n, head))

    def _arrived(self, work: Any, buffer: Tensor, source: int) -> memoryview:
        if work is not None:
            self._wait(work, source)
        return buffer.cpu().numpy().data

    def _wait(self, work: Any, rank: int) -> None:
        self.awaited = rank
        with _lost(rank):
            if self._hard is None:
                work.wait()
            else:
                work.wait(self._hard)
        self.awaited = None


class _Shown:
    """Shows bytes to torch, which asks for such as can be written; a sender only reads them."""

    def __init__(self, data: Bytes) -> None:
        self._array = np.frombuffer(data, np.uint8)
        at = self._array.ctypes.data
        self.__array_interface__ = {**self._array.__array_interface__, "data": (at, False)}


def _tensor(data: Bytes) -> Tensor:
    return torch.from_numpy(np.asarray(_Shown(data)))


@contextmanager
def _lost(rank: int) -> Iterator[None]:
    """Says which rank it was that the engine failed over."""
    try:
        yield
    except RuntimeError as error:
        why = (str(error).splitlines() or ["no reason given"])[0]
        kind = RoundTimeout if "imed out" in why else PeerLost
        raise kind(rank, why) from error
