"""Segments: the pieces a ring cuts the vector into, coded each by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Payload
from thinwire.errors import FrameError, NonFiniteError
from thinwire.exchange.base import Here, tensor_name
from thinwire.exchange.feedback import broken_by_saying, first_broken
from thinwire.exchange.hear import ALL_RANKS
from thinwire.exchange.refusal import REFUSAL_BODY, encode_refusal, refusal
from thinwire.host import Bytes
from thinwire.keys import Key
from thinwire.transport.base import Answer, Ask, Post, Take, turn
from thinwire.wire.body import Reader, as_bytes, in_pieces, unpack
from thinwire.wire.frame import BUFFER_PART, HEADER, Kind, unseal

R = TypeVar("R")


@dataclass(frozen=True)
class Piece:
    """One piece of one segment: the entries low:high of the vector.

    Args:
        here: where this worker stands, with the piece's own spans, key and part.
        low: first entry.
        high: one past the last.
    """

    here: Here
    low: int
    high: int

    @property
    def bound(self) -> int:
        """The most bytes a frame of this piece can have."""
        return HEADER + max(REFUSAL_BODY, self.here.compressor.nbytes(self.here.spans))

    def key_of(self, rank: int) -> Key:
        """Returns the key under which that rank coded this piece."""
        return self.here.key_of(rank)


AHEAD = 16
"""Takes that a turn says are coming, of which a transport begins as many as it likes."""


class Takes:
    """A talk's takes, all known before it begins, so that each turn can say what comes after it.

    Args:
        all: in the order in which they are taken.
    """

    def __init__(self, all: Iterable[Take]) -> None:
        self._left = deque(all)

    def turn(
        self, count: int = 0, posts: tuple[Post, ...] = ()
    ) -> Generator[Ask, Answer, list[Bytes]]:
        """Yields a turn with these posts and the next so many takes; returns their frames."""
        now = tuple(self._left.popleft() for _ in range(count))
        return (yield from turn(posts, now, tuple(islice(self._left, AHEAD))))


def relayed(here: Here, pipeline: int) -> tuple[list[list[Piece]], Takes]:
    """Returns the pieces of each segment, and all that comes from the left in two laps of a ring.

    In the first lap a worker begins with its own segment and takes the others' as they are summed,
    in the second it takes each as it is in the end.
    """
    pieces = [list(cut(here, segment, pipeline)) for segment in range(here.N)]
    left, hops = (here.rank - 1) % here.N, [*range(1, here.N), *range(here.N - 1)]
    segments = [pieces[(here.rank - hop) % here.N] for hop in hops]
    return pieces, Takes(Take(left, piece.bound) for segment in segments for piece in segment)


def cut(here: Here, segment: int, pipeline: int) -> Iterator[Piece]:
    """Yields the pieces of a segment, each of at most `pipeline` entries; at least one.

    Segment g of N is the entries g d // N to (g + 1) d // N, so any N >= 1 and any d will do.

    Args:
        here: where this worker stands.
        segment: g.
        pipeline: entries of a piece.
    """
    for part, a, b in places(here.spans.d, here.N, segment, pipeline):
        yield Piece(
            replace(here, spans=here.spans.piece(a, b), part=part, key=here.key.of_part(part)), a, b
        )


def places(d: int, N: int, segment: int, pipeline: int) -> Iterator[tuple[int, int, int]]:
    """Yields (part, low, high) of each piece of a segment, as `cut` does."""
    low, high = segment * d // N, (segment + 1) * d // N
    longest = (d + N - 1) // N
    most = max(1, min((longest + pipeline - 1) // pipeline, (BUFFER_PART - 1) // N))
    for number in range(most):
        a, b = (low + (high - low) * n // most for n in (number, number + 1))
        yield segment * most + number, a, b


def place(d: int, N: int, part: int, pipeline: int) -> tuple[int, int]:
    """Returns (low, high) of the piece of that part."""
    each = len(list(places(d, N, 0, pipeline)))
    _, low, high = list(places(d, N, part // each, pipeline))[part % each]
    return low, high


class Trouble:
    """What went wrong in any piece so far: a ring passes it on, and all ranks raise it together.

    Args:
        here: where this worker stands.
        own: forms this worker's own vector.
    """

    def __init__(self, here: Here, own: Callable[[], Tensor]) -> None:
        self._here = here
        self._own: Callable[[], Tensor] | None = own
        self._found: set[tuple[int, str]] = set()
        self._frame: FrameError | None = None

    def look(self) -> None:
        """Notes whether this worker's own vector holds a NaN or an infinity; looks once."""
        if self._own is not None:
            broken, self._own = first_broken(None, self._own(), self._here), None
            self._note(broken, self._here, self._here.rank)

    @property
    def error(self) -> NonFiniteError | FrameError | None:
        """What all ranks raise, or None."""
        if self._found:
            # A sum is not finite where a worker's own values are not: then only those are named.
            own = sorted(f for f in self._found if f[0] != ALL_RANKS)
            return NonFiniteError(own or sorted(self._found), self._here.round)
        return self._frame

    def hear(
        self, frame: Bytes, piece: Piece, speaker: int, total: Tensor, first: bool = False
    ) -> None:
        """Adds to a sum what a frame of this piece says: nothing where it tells of trouble.

        Args:
            frame: what arrived.
            piece: which piece it must be of.
            speaker: who sealed it.
            total: the piece's entries, float32, a sum that began at +0.
            first: whether the sum begins with it, whatever stands there.
        """
        here = piece.here

        def decode(reader: Reader) -> Payload:
            return unpack(reader, here.compressor, here.spans, piece.key_of(speaker), here.device)

        said = self._read(frame, piece, speaker, decode)
        if said is not None:
            add = here.compressor.put if first else here.compressor.accumulate
            add(total, said)
        elif first:
            total.zero_()

    def hear_bits(self, frame: Bytes, piece: Piece, speaker: int) -> Tensor:
        """Returns the bits a frame of this piece says, (n,) int32; the same otherwise."""
        n, device = piece.high - piece.low, piece.here.device
        bits = self._read(frame, piece, speaker, lambda reader: _bits(reader, n, device))
        return torch.zeros(n, dtype=torch.int32, device=device) if bits is None else bits

    def speak(self, z: Tensor, piece: Piece, v: Tensor | None = None) -> Bytes:
        """Returns the frame that says C(z), or the trouble.

        Each is looked at as it is said. Who tells of trouble, of whomever, has looked at all of
        its own vector, so that all ranks hear of the same, and of each rank its first tensor.

        Args:
            z: the piece's entries, float32.
            piece: which piece.
            v: where C(z) is put, as its hearers decode it; None for nowhere.
        """
        here, C = piece.here, piece.here.compressor
        self._note(first_broken(None, z, here), here, ALL_RANKS)
        if self.error is None:
            payload = C.compress(z, here.key, here.spans)
            self._note(broken_by_saying(payload, z, here), here, ALL_RANKS)
        if self.error is not None:
            self.look()
            return here.seal(Kind.REFUSAL, encode_refusal(self.error))
        if v is not None:
            C.put(v, payload)
        return here.seal(Kind.SAID, *in_pieces(payload, C))

    def speak_bits(self, bits: Tensor, piece: Piece) -> Bytes:
        """Returns the frame that says these bits, (n,) int32, or the trouble."""
        if self.error is not None:
            return piece.here.seal(Kind.REFUSAL, encode_refusal(self.error))
        return piece.here.seal(Kind.SAID, as_bytes(kernels.active(bits.device).pack(bits, 1)))

    def end(self) -> None:
        """Raises what went wrong anywhere, if anything did."""
        if self.error is not None:
            raise self.error

    def _read(
        self, frame: Bytes, piece: Piece, speaker: int, decode: Callable[[Reader], R]
    ) -> R | None:
        here = piece.here
        try:
            kind, body = unseal(frame, here.address(speaker), Kind.SAID, Kind.REFUSAL)
            reader = here.reader(body, speaker)
            if kind is Kind.SAID:
                said = decode(reader)
                reader.end()
                return said
            heard = refusal(reader, here)
        except FrameError as error:
            heard = error
        if isinstance(heard, NonFiniteError):
            self._found.update(heard.found)
        else:
            self._frame = self._frame or heard
        return None

    def _note(self, broken: int, here: Here, rank: int) -> None:
        if broken >= 0:
            self._found.add((rank, tensor_name(here, broken)))


def _bits(reader: Reader, n: int, device: torch.device) -> Tensor:
    packed = host.send(reader.codes(n, 1, 1, "bits"), device)
    return kernels.active(device).unpack(packed, n, 1)
