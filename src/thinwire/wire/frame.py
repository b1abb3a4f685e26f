"""Frames: 26 bytes that say what follows and whose it is, then the body.

The byte-by-byte contract is FORMAT.md beside this file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from isal.isal_zlib import crc32

from thinwire.errors import ConfigError, FrameError
from thinwire.host import Bytes
from thinwire.memory import large

MAGIC = b"tw"
VERSION = 3
HEADER = 26
_LAYOUT = struct.Struct("<2sBBIIHHIHI")
CHECKED = HEADER - 4
"""Bytes of the header that its checksum covers, with the body."""
MAX_BODY = (1 << 48) - 1
LARGE = 1 << 20
"""Bytes from which on fresh memory costs more than what is written there."""
BUFFER_PART = 0xFFFF
"""The part of a round in which a model's buffers are shared."""
REPAIR_PART = 0xFFFE
"""The part of a message with which a worker that missed one is told the speaker's replica."""
WATCH_PART = 0xFFFD
"""The part in which the ranks compare replicas, or agree to write a snapshot or to stop."""


class Kind(IntEnum):
    """What a frame's body is."""

    HELLO = 1
    """A worker's settings, before anything else (JSON)."""
    VERDICT = 2
    """The root's answer to the hellos (JSON)."""
    VECTOR = 3
    """A dense float32 vector: the first anchor, or broadcast buffers."""
    SAID = 4
    """A compressed message of a worker."""
    REPLY = 5
    """The mean, on its way back from the master."""
    ALARM = 6
    """Instead of a message: this worker holds a NaN or an infinity (which tensor)."""
    REFUSAL = 7
    """Instead of a reply: the round is refused, and by whose values."""
    SILENCE = 8
    """Instead of a message: this worker has too little to say."""
    PLEA = 10
    """A message, and a plea: its neighbours tell their replicas with their next ones."""
    NUMBER = 9
    """One float64 that all workers must agree on."""
    ANCHOR = 11
    """A hub's or a master's model for one worker, from what that worker holds."""


TIMELESS = (Kind.HELLO, Kind.VERDICT)
"""Kinds that every version reads, so that ranks of different versions can say so."""


@dataclass(frozen=True)
class Address:
    """Where in a run a frame belongs; a receiver knows it before the frame comes.

    Args:
        run: the run's 32-bit fingerprint; 0 before it is agreed.
        round: the round number.
        rank: the speaker.
        part: which of several conversations of that round.
    """

    run: int
    round: int
    rank: int
    part: int = 0


def seal(kind: Kind, address: Address, *body: Bytes) -> bytes:
    """Returns the frame of this body.

    Args:
        kind: what the body is.
        address: whose it is.
        body: in pieces; at most 2**48 - 1 bytes.

    Example:
        >>> len(seal(Kind.ALARM, Address(run=1, round=2, rank=3), b"body")) - HEADER
        4
    """
    return b"".join((_header(kind, address, body), *body))


def laid_out(kind: Kind, address: Address, *body: Bytes) -> Bytes:
    """Returns the same frame as `seal`, a large one in memory that is used again."""
    n = HEADER + sum(len(piece) for piece in body)
    if n < LARGE:
        return seal(kind, address, *body)
    frame, at = large(n).data, 0
    for piece in (_header(kind, address, body), *body):
        frame[at : at + len(piece)] = piece
        at += len(piece)
    return frame


def _header(kind: Kind, address: Address, body: tuple[Bytes, ...]) -> bytes:
    a, n = address, sum(len(piece) for piece in body)
    head = checked_head(kind, a.run, a.round, a.rank, a.part, n)
    checksum = crc32(head)
    for piece in body:
        checksum = crc32(piece, checksum)
    return head + checksum.to_bytes(4, "little")


def checked_head(kind: Kind, run: int, round: int, rank: int, part: int, n: int) -> bytes:
    """Returns the 22 bytes before the checksum of a frame of that address, with n bytes of body."""
    if n > MAX_BODY:
        raise ConfigError(f"a frame's body holds at most {MAX_BODY} bytes; this one {n}")
    return _LAYOUT.pack(
        MAGIC, VERSION, kind, run, round & 0xFFFFFFFF, rank, part, n & 0xFFFFFFFF, n >> 32, 0
    )[:CHECKED]


def length(header: Bytes) -> int:
    """Returns the whole frame's length that its first 26 bytes announce.

    Raises:
        FrameError: these bytes start no frame.
    """
    if len(header) < HEADER:
        raise FrameError(f"{len(header)} bytes are no frame; a header alone is {HEADER}")
    if header[:2] != MAGIC:
        raise FrameError(f"a frame starts with {MAGIC!r}; this starts with {bytes(header[:2])!r}")
    low, high = _LAYOUT.unpack_from(header)[7:9]
    return HEADER + int(low) + (int(high) << 32)


def part_of(frame: Bytes) -> int:
    """Returns the part that bytes of a header say, 0 where they are too few; nothing is checked."""
    return int.from_bytes(frame[14:16], "little")


def address_of(frame: Bytes) -> Address:
    """Returns the address that a frame says it is of; nothing else of it is looked at.

    Raises:
        FrameError: these bytes start no frame.
    """
    length(frame)
    _, _, _, run, round, rank, part, _, _, _ = _LAYOUT.unpack_from(frame)
    return Address(run, round, rank, part)


def unseal(frame: Bytes, address: Address, *kinds: Kind) -> tuple[Kind, memoryview]:
    """Returns kind and body of a frame that must come from `address`.

    Args:
        frame: what arrived.
        address: where it must belong.
        kinds: which kinds are expected.

    Raises:
        FrameError: truncated, altered, foreign or stale; it names what and where.
    """
    where = f"frame from rank {address.rank}, round {address.round}, part {address.part}"
    try:
        announced = length(frame)
    except FrameError as error:
        raise FrameError(f"{where}: {error}") from None
    if announced != len(frame):
        raise FrameError(f"{where}: {len(frame)} bytes arrived, its header announces {announced}")
    _, _, kind, run, round, rank, part, _, _, checksum = _LAYOUT.unpack_from(frame)
    if frame[2] != VERSION and kind not in TIMELESS:
        raise FrameError(
            f"{where}: it is of frame version {frame[2]}; this thinwire speaks {VERSION}. "
            "Install the same version on every rank"
        )
    view = memoryview(frame)
    if crc32(view[HEADER:], crc32(view[:CHECKED])) != checksum:
        raise FrameError(f"{where}: the checksum does not match; the bytes were altered on the way")
    if run != address.run:
        raise FrameError(f"{where}: it belongs to run {run:#010x}, this run is {address.run:#010x}")
    if (round, rank, part) != (address.round & 0xFFFFFFFF, address.rank, address.part):
        raise FrameError(
            f"{where}: it says rank {rank}, round {round}, part {part}; "
            "it is stale, or went to the wrong place"
        )
    if kind not in kinds:
        expected = " or ".join(k.name for k in kinds)
        name = Kind(kind).name if kind in Kind._value2member_map_ else f"unknown kind {kind}"
        raise FrameError(f"{where}: it is a {name}, expected {expected}")
    return Kind(kind), view[HEADER:]
