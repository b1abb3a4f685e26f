"""Frames over a `torch.distributed` process group: Gloo between hosts, NCCL by the same code."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thinwire import host
from thinwire.errors import ConfigError, FrameError, PeerLost, RoundTimeout, TransportError
from thinwire.transport.base import Post, Take, Turn

ONE_MESSAGE = 1 << 16
"""Up to this bound a frame is one message; above, a header and then exactly the rest.

Gloo aborts the process that receives more than it posted, and does not say when it got less. So
a receiver either posts the bound both sides know, or learns the length first.
"""


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
        length: Callable[[bytes], int],
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
        self._own: deque[bytes] = deque()
        self._leaving: deque[tuple[Any, Tensor, int]] = deque()

    def turn(self, turn: Turn) -> list[bytes]:
        """Starts every post, waits for every take, and returns the frames in the takes' order."""
        try:
            return self._turn(turn)
        except TransportError:
            self._own.clear()
            raise

    def _turn(self, turn: Turn) -> list[bytes]:
        for post in turn.posts:
            self._post(post)
        takes = [t for t in turn.takes if t.source != self.rank]
        heads = self._receive(
            [(t.source, t.bound if self._whole(t) else self._header, b"") for t in takes]
        )
        lengths = [self._checked(t, head) for t, head in zip(takes, heads, strict=True)]
        known = list(zip(takes, lengths, heads, strict=True))
        split = [(t.source, n, head) for t, n, head in known if not self._whole(t)]
        rest = deque(self._receive(split))
        arrived = deque(head[:n] if self._whole(t) else rest.popleft() for t, n, head in known)
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

    def _checked(self, take: Take, head: bytes) -> int:
        try:
            n = self._length(head)
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
                tensor = self._tensor(data)
                with _lost(post.to):
                    work = self.group.send([tensor], post.to, 0)
                self._leaving.append((work, tensor, post.to))

    def _receive(self, takes: list[tuple[int, int, bytes]]) -> list[bytes]:
        """Returns messages of so many bytes each, what is known of their beginning in its place."""
        buffers, works = [], []
        for source, n, head in takes:
            buffer = torch.zeros(n, dtype=torch.uint8, device=self._device or host.CPU)
            buffers.append(buffer)
            rest = buffer[len(head) :]
            if head:
                buffer[: len(head)] = self._tensor(memoryview(head))
            if len(rest):
                with _lost(source):
                    works.append((self.group.recv([rest], source, 0), source))
        for work, source in works:
            self._wait(work, source)
        return [bytes(buffer.cpu().numpy()) for buffer in buffers]

    def _wait(self, work: Any, rank: int) -> None:
        self.awaited = rank
        with _lost(rank):
            if self._hard is None:
                work.wait()
            else:
                work.wait(self._hard)
        self.awaited = None

    def _tensor(self, data: memoryview) -> Tensor:
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return tensor if self._device is None else tensor.to(self._device)


@contextmanager
def _lost(rank: int) -> Iterator[None]:
    """Says which rank it was that the engine failed over."""
    try:
        yield
    except RuntimeError as error:
        why = (str(error).splitlines() or ["no reason given"])[0]
        kind = RoundTimeout if "imed out" in why else PeerLost
        raise kind(rank, why) from error
