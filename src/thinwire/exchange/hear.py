"""Hearing everybody: messages of all ranks, folded in rank order, divided once."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

from torch import Tensor

from thinwire import kernels
from thinwire.errors import NonFiniteError
from thinwire.exchange.base import Here, tensor_name
from thinwire.exchange.feedback import ALARM_BODY
from thinwire.host import Bytes
from thinwire.transport.base import Answer, Ask, Post, Take, Turn
from thinwire.wire.body import Reader, unpack
from thinwire.wire.frame import Kind, unseal

ALL_RANKS = -1
"""The rank that a NonFiniteError names when only the sum over ranks is not finite."""


def hear(frames: list[Bytes], here: Here) -> list[memoryview]:
    """Returns the bodies of all ranks' messages, in rank order.

    Args:
        frames: one of each rank, in rank order.
        here: where this worker stands.

    Raises:
        NonFiniteError: some raised an alarm; it names them all.
    """
    each = [listen(frame, rank, here) for rank, frame in enumerate(frames)]
    alarms = [(rank, name) for rank, (_, name) in enumerate(each) if name is not None]
    if alarms:
        raise NonFiniteError(alarms, here.round)
    return [body for body, _ in each]


def listen(frame: Bytes, rank: int, here: Here) -> tuple[memoryview, str | None]:
    """Returns the body of that rank's message, and the tensor that an alarm names.

    Raises:
        FrameError: it is neither a message nor an alarm of that rank in this round.
    """
    kind, body = unseal(frame, here.address(rank), Kind.SAID, Kind.ALARM)
    if kind is Kind.SAID:
        return body, None
    reader = here.reader(body, rank)
    tensor = int.from_bytes(reader.take(ALARM_BODY, "tensor number"), "little")
    reader.end()
    return body, tensor_name(here, tensor)


def mean(readers: list[Reader], here: Here) -> Tensor:
    """Returns (sum of said, in rank order) / N, (d,) float32: folded first, divided once.

    Args:
        readers: stand before each rank's body, in rank order; one reader N times for a bundle.
        here: where this worker stands.

    Raises:
        NonFiniteError: finite messages sum to an infinity.
    """
    C, total = here.compressor, here.zeros()
    for rank, reader in enumerate(readers):
        C.accumulate(total, unpack(reader, C, here.spans, here.key_of(rank), here.device))
    total /= divisor(here.N, total)
    total += 0.0  # A quotient that underflows to -0 becomes +0, as a sparse reply says it.
    check_finite(total, here)
    return total


def divisor(N: int, v: Tensor) -> Tensor:
    """Returns N as v / N takes it, so that it is rounded once wherever v lives."""
    # By a plain number CUDA would multiply with 1 / N, and round twice.
    return v.new_full((), N)


def check_finite(total: Tensor, here: Here) -> None:
    """Raises a NonFiniteError where finite messages make a sum that is not finite."""
    broken = kernels.active(here.device).first_nonfinite(total, here.spans.starts)
    if broken >= 0:
        raise NonFiniteError([(ALL_RANKS, tensor_name(here, broken))], here.round)


def heard(bodies: list[memoryview], here: Here) -> Tensor:
    """Returns the mean of these whole bodies, one of each rank, in rank order."""
    readers = [here.reader(body, rank) for rank, body in enumerate(bodies)]
    direction = mean(readers, here)
    for reader in readers:
        reader.end()
    return direction


def to_all(frame: Bytes, N: int, bound: int) -> tuple[Post, ...]:
    """Returns posts of one frame to every rank, the speaker among them."""
    return tuple(Post(rank, frame, bound) for rank in range(N))


TOGETHER = 1 << 22
"""Bytes: what may be more is said to one rank after another."""
Hop = TypeVar("Hop")


def in_turn(hops: list[Hop], bound: int) -> list[list[Hop]]:
    """Returns the hops in groups: a rank goes on when it has heard all of a group.

    Long frames go one hop at a time, so that at any time one speaks to one: who hears two slows
    both, and keeps their other hearers waiting. For short ones the way there and back counts.

    Args:
        hops: whom to speak to and to hear, each rank's as far from it as any other's.
        bound: the most bytes that are said in a hop, as all ranks know it.

    Example:
        >>> in_turn([1, 2, 3], bound=1000), in_turn([1, 2, 3], bound=10**8)
        ([[1, 2, 3]], [[1], [2], [3]])
    """
    return [hops] if bound <= TOGETHER or not hops else [[hop] for hop in hops]


def all_say(frame: Bytes, rank: int, N: int, bound: int) -> Iterator[Turn]:
    """Yields the turns in which every rank says one frame to every rank, itself among them.

    Each speaks to the right and hears from the left, the nearest first.
    """
    for hops in in_turn(list(range(N)), bound):
        posts = tuple(Post((rank + hop) % N, frame, bound) for hop in hops)
        yield Turn(posts, tuple(Take((rank - hop) % N, bound) for hop in hops))


def heard_from_all(frame: Bytes, here: Here, bound: int) -> Generator[Ask, Answer, list[Bytes]]:
    """Says a frame to all, and returns the frames that all said, in rank order."""
    frames: list[Bytes] = []
    for turn in all_say(frame, here.rank, here.N, bound):
        heard = yield turn
        assert isinstance(heard, list)
        frames += heard
    return [frames[(here.rank - rank) % here.N] for rank in range(here.N)]


def from_all(N: int, bound: int) -> tuple[Take, ...]:
    """Returns takes from every rank, in rank order."""
    return tuple(Take(rank, bound) for rank in range(N))
