"""What a round may ask of the world, and who answers: turns of posts and takes."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from thinwire.host import Bytes


@dataclass(frozen=True)
class Post:
    """Send this frame to that rank.

    Args:
        to: the receiving rank; a post to oneself never touches a wire.
        frame: the bytes.
        bound: the most bytes a frame of this kind can have; the receiver's `Take` names the same.
        relayed: whether another rank made it, and this one only passes it on.
    """

    to: int
    frame: Bytes
    bound: int
    relayed: bool = False


@dataclass(frozen=True)
class Take:
    """Give me the next frame of that rank, at most `bound` bytes.

    A transport that gives up on a frame answers with no bytes at all; most raise instead.

    Args:
        source: who says it.
        bound: the most bytes a frame of this kind can have.
        onward: to whom the very frame is posted next, as `relayed`: a transport may pass it on
            while it comes, and the post is then done.
        held_back: whether its speaker says few frames more than it has heard, so that it fills no
            queue when it is asked early.
    """

    source: int
    bound: int
    onward: int | None = None
    held_back: bool = False


@dataclass(frozen=True)
class Turn:
    """Posts to start and frames to wait for; the answer is the frames, in the order of `takes`.

    Posts are not awaited, so that a next piece can be coded while this one is on the wire.

    Args:
        posts: to start.
        takes: to wait for; where frames are large, a transport asks for them in this order.
        coming: what later turns will take, in order; a transport may make room for it now, so
            that nobody's frame waits to be asked for. Some of it, or none, changes no answer.
    """

    posts: tuple[Post, ...] = ()
    takes: tuple[Take, ...] = ()
    coming: tuple[Take, ...] = ()


@dataclass(frozen=True)
class Reduce:
    """Sum this vector over all ranks by the engine's own all-reduce, in an order of its choice.

    The vector is the transport's from then on: it may be where the sum is taken.
    """

    vector: Tensor


Ask = Turn | Reduce
"""What a round yields."""

Answer = list[Bytes] | Tensor
"""What it is answered: the frames of a `Turn`, or the sum of a `Reduce`."""


def turn(
    posts: tuple[Post, ...] = (), takes: tuple[Take, ...] = (), coming: tuple[Take, ...] = ()
) -> Generator[Ask, Answer, list[Bytes]]:
    """Yields one turn and returns its frames; a post starts on its way at once, unawaited."""
    frames = yield Turn(posts, takes, coming)
    assert isinstance(frames, list)
    return frames


@runtime_checkable
class Transport(Protocol):
    """Moves frames between ranks; knows no tensor, round or algorithm."""

    rank: int
    size: int

    def turn(self, turn: Turn) -> list[Bytes]:
        """Starts every post, waits for every take, and returns the frames in the takes' order.

        Raises:
            PeerLost: a rank is gone.
            RoundTimeout: a rank did not speak in time.
            FrameError: a frame announces more bytes than its bound.
        """
        ...

    def reduce(self, vector: Tensor) -> Tensor:
        """Returns the sum of `vector` over all ranks, perhaps in its place."""
        ...

    def flush(self) -> None:
        """Waits until every post has left."""
        ...
