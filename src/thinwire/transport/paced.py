"""A thin wire to feel on one machine: real frames, held until a modelled link would bring them.

The frames go over the process group at once, each with the times at which its first and last bits
would arrive; the receiver waits for the last. So a round costs what the link says, or what the
machine takes where that is longer.
"""

from __future__ import annotations

import math
import platform
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from isal.isal_zlib import crc32
from torch import Tensor

from thinwire.errors import ConfigError
from thinwire.host import Bytes
from thinwire.keys import Key
from thinwire.link import FINE, Link, Port
from thinwire.transport.base import Post, Take, Turn
from thinwire.transport.distributed import DistributedTransport

_STAMP = struct.Struct("<ddI")
STAMP = _STAMP.size
"""Bytes put before each frame on the way: when its first and last bits arrive, by whose clock."""
LOST = math.nan
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Paced:
    """A process group whose every worker sits behind such a link: `LocalSGD(group=Paced(link))`.

    All workers must run on one machine, whose clock they share; nothing needs to be root.

    Args:
        link: of this worker to all others.
        group: the process group; None for the default one.
        seed: of jitter and loss.

    Example:
        >>> import thinwire as tw
        >>> tw.Paced(tw.Link.parse("100mbit,20ms"))
        Paced(link=Link(bandwidth=100000000.0, latency=0.02), group=None, seed=0)
    """

    link: Link
    group: dist.ProcessGroup | None = None
    seed: int = 0

    def over(
        self, header: int, length: Callable[[Bytes], int], hard: float | None = None
    ) -> PacedTransport:
        """Returns the live transport.

        Args:
            header: bytes that start every frame.
            length: the whole frame's length from those bytes.
            hard: as of a `DistributedTransport`.
        """
        stamped = DistributedTransport(
            self.group, STAMP + header, lambda head: STAMP + length(head[STAMP:]), hard
        )
        return PacedTransport(self.link, stamped, self.seed)


class PacedTransport:
    """Holds the frames of another transport until their link would have brought them.

    Args:
        link: of this worker.
        stamped: a transport of frames that start with a stamp.
        seed: of jitter and loss.
    """

    def __init__(self, link: Link, stamped: DistributedTransport, seed: int = 0) -> None:
        self.link = link
        self.rank, self.size = stamped.rank, stamped.size
        self._stamped, self._seed = stamped, seed
        self._clock = _this_clock()
        self._up, self._down = Port(), Port()
        self._posted = 0
        self._last: dict[int, float] = {}

    @property
    def awaited(self) -> int | None:
        """The rank that is being waited for, None while none is."""
        return self._stamped.awaited

    def turn(self, turn: Turn) -> list[Bytes]:
        """Starts every post, waits for every take as long as the link would, in takes' order."""
        posts = self._leave(turn.posts)
        takes, coming = (
            tuple(Take(t.source, t.bound + STAMP, held_back=t.held_back) for t in some)
            for some in (turn.takes, turn.coming)
        )
        frames: list[Bytes] = []
        due = []
        for take, frame in zip(takes, self._stamped.turn(Turn(posts, takes, coming)), strict=True):
            first, last, clock = _STAMP.unpack_from(frame)
            if clock != self._clock:
                raise ConfigError(
                    f"Paced(link): ranks {self.rank} and {take.source} run on different machines, "
                    "whose clocks differ; run all on one, or use the real link without Paced"
                )
            frames.append(b"" if math.isnan(last) else frame[STAMP:])
            due.append((first, last, len(frame) - STAMP))
        others = [d for t, d in zip(takes, due, strict=True) if t.source != self.rank]
        self._wait(self._heard(others))
        return frames

    def reduce(self, vector: Tensor) -> Tensor:
        """Returns the sum over all ranks, when a ring of such links would have it."""
        began = self._stamped.greatest(time.monotonic())
        total = self._stamped.reduce(vector)
        self._wait(began + self.link.all_reduce(total.nbytes, self.size))
        return total

    def flush(self) -> None:
        """Waits until every post has left."""
        self._stamped.flush()

    def _leave(self, posts: Sequence[Post]) -> tuple[Post, ...]:
        """Stamps what is said in one turn: it leaves at once, and shares the line."""
        lucks, seconds, now = [], [], time.monotonic()
        for post in posts:
            n, luck = len(post.frame), FINE
            if post.to != self.rank:
                luck = self.link.luck(n, Key(self._seed, self._posted, self.rank))
                self._posted += 1
                seconds.append(self.link.seconds(n) * (1 + luck.again))
            lucks.append(luck)
        began, ends = self._up.share(now, seconds)
        left = iter(ends)
        stamped = []
        for post, luck in zip(posts, lucks, strict=True):
            first = last = now
            if post.to != self.rank:
                end = next(left)
                # What one worker says to another stays in order, as TCP keeps it.
                due = end + self.link.latency + luck.late
                last = self._last[post.to] = max(due, self._last.get(post.to, 0.0))
                first, last = last - (end - began), LOST if luck.lost else last
            frame = _STAMP.pack(first, last, self._clock) + post.frame
            stamped.append(Post(post.to, frame, post.bound + STAMP))
        return tuple(stamped)

    def _heard(self, due: list[tuple[float, float, int]]) -> float:
        """Returns when the last of these frames has passed the downlink, first come first."""
        ends = [0.0]
        for first, last, n in sorted(d for d in due if not math.isnan(d[1])):
            ends.append(max(last, self._down.serve(first, self.link.seconds(n, downwards=True))))
        if any(math.isnan(last) for _, last, _ in due):
            ends.append(time.monotonic() + self.link.patience)
        return max(ends)

    def _wait(self, until: float) -> None:
        if (left := until - time.monotonic()) > 0:
            time.sleep(left)


def _this_clock() -> int:
    """Names the clock that all processes of this machine share since it was started."""
    name = BOOT.read_text() if BOOT.exists() else platform.node()
    return crc32(name.encode())
