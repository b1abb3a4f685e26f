"""What comes to a hub's core, and what goes."""

from __future__ import annotations

from dataclasses import dataclass, field

from isal.isal_zlib import crc32

from thinwire.hub.journal import Record
from thinwire.wire.frame import HEADER


@dataclass(slots=True)
class Said:
    """An update as it came.

    Args:
        name: of the worker.
        base: the version it says it holds.
        frame: its SAID.
        now: seconds.
    """

    name: str
    base: int
    frame: bytes
    now: float
    check: int = field(init=False)
    """CRC-32 of the body, from which all other sums are made."""

    def __post_init__(self) -> None:
        self.check = crc32(memoryview(self.frame)[HEADER:])


@dataclass(slots=True)
class Taken:
    """What became of an update.

    Args:
        reply: the ANCHOR frame for its worker, in parts.
        record: what the journal must hold before the reply may leave; None where it already does.
        staleness: of the update.
    """

    reply: tuple[bytes, ...]
    record: Record | None
    staleness: int
