"""The three records of a hub's journal: who joined, who left, and what was said, as it came."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from isal.isal_zlib import crc32

from thinwire import kernels
from thinwire.hub.journal import Record

JOIN, UPDATE, LEAVE = 1, 2, 3
_JOIN = struct.Struct("<BHd")
_UPDATE = struct.Struct("<BHQQd")
_LEAVE = struct.Struct("<BH")


@dataclass(frozen=True)
class Joined:
    """A worker joined.

    Args:
        number: of the worker.
        weight: what it counts by.
        name: of the worker.
    """

    number: int
    weight: float
    name: str

    def record(self) -> Record:
        """Returns it for the journal."""
        return Record.of(_JOIN.pack(JOIN, self.number, self.weight) + self.name.encode())


@dataclass(frozen=True)
class Left:
    """A worker left.

    Args:
        number: of the worker.
    """

    number: int

    def record(self) -> Record:
        """Returns it for the journal."""
        return Record.of(_LEAVE.pack(LEAVE, self.number))


@dataclass(slots=True)
class Updated:
    """An update was taken, or refused as too stale.

    Args:
        number: of the worker.
        sequence: of the update.
        staleness: found at the time.
        divisor: what it was divided by; infinite where it was refused.
        frame: as it came.
        check: CRC-32 of the frame.
    """

    number: int
    sequence: int
    staleness: int
    divisor: float
    frame: bytes
    check: int

    def record(self) -> Record:
        """Returns it for the journal."""
        given = self.number, self.sequence, self.staleness, self.divisor
        head, join = _UPDATE.pack(UPDATE, *given), kernels.active().join_crc
        return Record(join(crc32(head), self.check, len(self.frame)), (head, self.frame))


def read(record: bytes) -> Joined | Left | Updated:
    """Returns what a record of the journal says."""
    if record[0] == JOIN:
        _, number, weight = _JOIN.unpack_from(record)
        return Joined(number, weight, record[_JOIN.size :].decode())
    if record[0] == LEAVE:
        return Left(_LEAVE.unpack_from(record)[1])
    _, number, sequence, staleness, divisor = _UPDATE.unpack_from(record)
    frame = record[_UPDATE.size :]
    return Updated(number, sequence, staleness, divisor, frame, crc32(frame))
