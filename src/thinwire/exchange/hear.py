"""Hearing everybody: messages of all ranks, folded in rank order, divided once."""

from __future__ import annotations

from collections.abc import Callable, Generator

from torch import Tensor

from thinwire import kernels
from thinwire.errors import FrameError, NonFiniteError
from thinwire.exchange.base import Here, tensor_name
from thinwire.exchange.feedback import ALARM_BODY
from thinwire.host import Bytes
from thinwire.transport.base import Answer, Ask, Post, Take, turn
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
    total = here.zeros()
    for rank, reader in enumerate(readers):
        add(total, reader, rank, here)
    return divided(total, here)


def add(total: Tensor, reader: Reader, rank: int, here: Here) -> None:
    """Adds what that rank says to a sum that begins at +0, in place."""
    C = here.compressor
    C.accumulate(total, unpack(reader, C, here.spans, here.key_of(rank), here.device))


def divided(total: Tensor, here: Here) -> Tensor:
    """Returns total / N, in its place, with no negative zero, as a sparse reply says it.

    Raises:
        NonFiniteError: finite messages make a sum that is not finite.
    """
    _refuse(kernels.active(here.device).divide(total, here.N, here.spans.starts), here)
    return total


def divisor(N: int, v: Tensor) -> Tensor:
    """Returns N as v / N takes it, so that it is rounded once wherever v lives."""
    # By a plain number CUDA would multiply with 1 / N, and round twice.
    return v.new_full((), N)


def check_finite(total: Tensor, here: Here) -> None:
    """Raises a NonFiniteError where finite messages make a sum that is not finite."""
    _refuse(kernels.active(here.device).first_nonfinite(total, here.spans.starts), here)


def _refuse(broken: int, here: Here) -> None:
    if broken >= 0:
        raise NonFiniteError([(ALL_RANKS, tensor_name(here, broken))], here.round)


def heard(bodies: list[memoryview], here: Here) -> Tensor:
    """Returns the mean of these whole bodies, one of each rank, in rank order."""
    readers = [here.reader(body, rank) for rank, body in enumerate(bodies)]
    direction = mean(readers, here)
    for reader in readers:
        reader.end()
    return direction


class Folding:
    """The mean of all ranks' messages, folded in rank order while the later ones are on the wire.

    Args:
        here: where this worker stands.
    """

    def __init__(self, here: Here) -> None:
        self._here, self._next, self._stuck = here, 0, False
        self._total: Tensor | None = None

    def go_on(self, frames: dict[int, Bytes]) -> None:
        """Folds what can be of these, by rank; what is wrong with one waits for `mean`."""
        here = self._here
        while not self._stuck and self._next in frames:
            try:
                body, broken = listen(frames[self._next], self._next, here)
                self._stuck = broken is not None
                if not self._stuck:
                    reader = here.reader(body, self._next)
                    self._total = here.zeros() if self._total is None else self._total
                    add(self._total, reader, self._next, here)
                    reader.end()
                    self._next += 1
            except FrameError:
                self._stuck = True

    def mean(self, frames: list[Bytes]) -> Tensor:
        """Returns the mean of all frames, given in rank order.

        Raises:
            NonFiniteError, FrameError: as `hear` and `heard` would.
        """
        self.go_on(dict(enumerate(frames)))
        if self._total is None or self._stuck:
            return heard(hear(frames, self._here), self._here)
        return divided(self._total, self._here)


def to_all(frame: Bytes, N: int, bound: int) -> tuple[Post, ...]:
    """Returns posts of one frame to every rank, the speaker among them."""
    return tuple(Post(rank, frame, bound) for rank in range(N))


TOGETHER = 1 << 19
"""Bytes: what may be more goes round."""


def goes_round(bound: int) -> bool:
    """Returns whether what all say to all goes round a ring, where it has so many bytes.

    Long frames are said to one neighbour and heard from the other, which fills every line: who
    hears two at once slows both. For short ones the way there and back counts.
    """
    return bound > TOGETHER


Meanwhile = Callable[[dict[int, Bytes]], None]
"""Is told whenever a frame is on its way what has come so far, by rank, and may use the time."""


def idle(frames: dict[int, Bytes]) -> None:
    """Uses no time."""


def all_say(
    frame: Bytes, rank: int, N: int, bound: int, meanwhile: Meanwhile = idle
) -> Generator[Ask, Answer, list[Bytes]]:
    """As a talk: says a frame to all, and returns the frames that all said, in rank order.

    Short ones are said to each, the right neighbour first, and long ones go round.
    """
    if goes_round(bound):
        return (yield from passed_on(frame, rank, N, bound, meanwhile))
    yield from turn(tuple(Post((rank + hop) % N, frame, bound) for hop in range(N)))
    meanwhile({rank: frame})
    takes = tuple(Take((rank - hop) % N, bound) for hop in range(N))
    heard = yield from turn(takes=takes)
    return [heard[(rank - other) % N] for other in range(N)]


def passed_on(
    frame: Bytes, rank: int, N: int, bound: int, meanwhile: Meanwhile = idle
) -> Generator[Ask, Answer, list[Bytes]]:
    """As a talk: the frames of all go round, each said to the right; returns them in rank order."""
    frames, right = {rank: frame}, (rank + 1) % N
    takes = [Take((rank - 1) % N, bound, right if hop < N - 1 else None) for hop in range(1, N)]
    for hop in range(1, N):
        post = Post(right, frames[(rank - hop + 1) % N], bound, relayed=hop > 1)
        yield from turn((post,), coming=tuple(takes[hop - 1 :]))
        meanwhile(frames)
        (frames[(rank - hop) % N],) = yield from turn((), (takes[hop - 1],), tuple(takes[hop:]))
    return [frames[other] for other in range(N)]


def from_all(N: int, bound: int) -> tuple[Take, ...]:
    """Returns takes from every rank, in rank order."""
    return tuple(Take(rank, bound) for rank in range(N))
