"""What a round may ask of the world, and who answers: turns of posts and takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Post:
    """Send this frame to that rank.

    Args:
        to: the receiving rank; a post to oneself never touches a wire.
        frame: the bytes.
        bound: the most bytes a frame of this kind can have; the receiver's `Take` names the same.
    """

    to: int
    frame: bytes
    bound: int


@dataclass(frozen=True)
class Take:
    """Give me the next frame of that rank, at most `bound` bytes."""

    source: int
    bound: int


@dataclass(frozen=True)
class Turn:
    """Posts to make and frames to wait for; the answer is the frames, in the order of `takes`."""

    posts: tuple[Post, ...] = ()
    takes: tuple[Take, ...] = ()


@dataclass(frozen=True)
class Reduce:
    """Sum this vector over all ranks by the engine's own all-reduce, in an order of its choice."""

    vector: Tensor


Ask = Turn | Reduce
"""What a round yields."""

Answer = list[bytes] | Tensor
"""What it is answered: the frames of a `Turn`, or the sum of a `Reduce`."""


class Transport(Protocol):
    """Moves frames between ranks; knows no tensor, round or algorithm."""

    rank: int
    size: int

    def turn(self, turn: Turn) -> list[bytes]:
        """Makes every post, waits for every take, and returns the frames in the takes' order.

        Raises:
            PeerLost: a rank is gone.
            RoundTimeout: a rank did not speak in time.
            FrameError: a frame announces more bytes than its bound.
        """
        ...

    def reduce(self, vector: Tensor) -> Tensor:
        """Returns the sum of `vector` over all ranks."""
        ...
