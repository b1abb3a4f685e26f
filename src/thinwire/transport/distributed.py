"""Frames over a `torch.distributed` process group: Gloo between hosts, NCCL by the same code."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from thinwire.errors import FrameError, PeerLost, RoundTimeout, TransportError
from thinwire.transport.base import Post, Take, Turn

ONE_MESSAGE = 1 << 16
"""Up to this bound a frame is one message; above, a header and then exactly the rest.

Gloo aborts the process that receives more than it posted, and does not say when it got less. So
a receiver either posts the bound both sides know, or learns the length first.
"""


class DistributedTransport:
    """Moves frames over a process group, every send posted before any is awaited.

    Args:
        group: the process group; None for the default one.
        header: bytes that start every frame.
        length: the whole frame's length from those bytes; raises FrameError on others.

    Raises:
        ConfigError: there is no process group.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, header: int, length: Callable[[bytes], int]
    ) -> None:
        self.group = group if group is not None else dist.group.WORLD
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._ranks = dist.get_process_group_ranks(self.group)
        self._header, self._length = header, length
        nccl = dist.get_backend(group) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else None
        # NCCL matches sizes exactly: there, every frame is a header and then the rest.
        self._one_message = 0 if nccl else ONE_MESSAGE

    def turn(self, turn: Turn) -> list[bytes]:
        """Makes every post, waits for every take, and returns the frames in the takes' order."""
        own = deque(p.frame for p in turn.posts if p.to == self.rank)
        posts = [p for p in turn.posts if p.to != self.rank]
        takes = [t for t in turn.takes if t.source != self.rank]
        heads = self._exchange(
            [(p.to, p.frame if self._whole(p) else p.frame[: self._header]) for p in posts],
            [(t.source, t.bound if self._whole(t) else self._header) for t in takes],
        )
        lengths = [self._checked(t, head) for t, head in zip(takes, heads, strict=True)]
        rest = self._exchange(
            [(p.to, p.frame[self._header :]) for p in posts if not self._whole(p)],
            [
                (t.source, n - self._header)
                for t, n in zip(takes, lengths, strict=True)
                if not self._whole(t)
            ],
        )
        bodies = deque(rest)
        arrived = deque(
            head[:n] if self._whole(t) else head + bodies.popleft()
            for t, n, head in zip(takes, lengths, heads, strict=True)
        )
        return [own.popleft() if t.source == self.rank else arrived.popleft() for t in turn.takes]

    def reduce(self, vector: Tensor) -> Tensor:
        """Returns the sum over all ranks, in the engine's own order."""
        total = vector.clone() if self._device is None else vector.to(self._device)
        try:
            dist.all_reduce(total, group=self.group)
        except RuntimeError as error:
            raise TransportError(f"all-reduce failed on rank {self.rank}: {error}") from error
        return total.cpu()

    def _whole(self, message: Post | Take) -> bool:
        return message.bound <= self._one_message

    def _checked(self, take: Take, head: bytes) -> int:
        n = self._length(head)
        if n > take.bound:
            raise FrameError(
                f"frame from rank {take.source} announces {n} bytes; at most {take.bound}"
            )
        return n

    def _exchange(
        self, sends: list[tuple[int, bytes]], takes: list[tuple[int, int]]
    ) -> list[bytes]:
        buffers = [torch.zeros(n, dtype=torch.uint8, device=self._device) for _, n in takes]
        ops = [
            dist.P2POp(dist.isend, self._tensor(data), self._ranks[to], self.group)
            for to, data in sends
            if data
        ]
        ops += [
            dist.P2POp(dist.irecv, buffer, self._ranks[source], self.group)
            for (source, n), buffer in zip(takes, buffers, strict=True)
            if n
        ]
        peers = [to for to, data in sends if data] + [source for source, n in takes if n]
        if ops:
            self._wait(ops, peers)
        return [bytes(buffer.cpu().numpy()) for buffer in buffers]

    def _wait(self, ops: list[dist.P2POp], peers: list[int]) -> None:
        done = 0
        try:
            for work in dist.batch_isend_irecv(ops):
                work.wait()
                done += 1
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            kind = RoundTimeout if "imed out" in why else PeerLost
            raise kind(peers[done], why) from error

    def _tensor(self, data: bytes) -> Tensor:
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return tensor if self._device is None else tensor.to(self._device)
