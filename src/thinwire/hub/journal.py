"""The journal: records on disk before they are acknowledged, and snapshots to start from.

    journal-<n>.twj     8 bytes of magic, then records: length, CRC-32, content
    snapshot-<n>.tws    the state before the first record of journal-<n>

A crash may leave a last record half written. It was never acknowledged, so recovery cuts it off.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from isal.isal_zlib import crc32

from thinwire.errors import ConfigError
from thinwire.files import sync_folder, whole, written

MAGIC = b"twhub\x00\x00\x01"
HEAD = struct.Struct("<II")
MOST = 1 << 31


class Record(NamedTuple):
    """What the journal holds of one event.

    Args:
        check: CRC-32 of the content.
        parts: the content, in pieces.
    """

    check: int
    parts: tuple[bytes, ...]

    @staticmethod
    def of(content: bytes) -> Record:
        """Returns the record of this content."""
        return Record(crc32(content), (content,))

    @property
    def content(self) -> bytes:
        """What a restart reads back."""
        return b"".join(self.parts)

    def framed(self) -> tuple[bytes, ...]:
        """Returns the content behind its length and its CRC-32."""
        return HEAD.pack(sum(len(part) for part in self.parts), self.check), *self.parts


class Journal:
    """The folder of one hub's state.

    Args:
        folder: made where it is missing.

    Raises:
        ConfigError: another hub has it open.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(f"{folder} is the state of a hub that is running") from None
        self.size = 0
        self.generation = 0
        self._file: int | None = None

    def recover(self) -> tuple[bytes | None, Iterator[bytes]]:
        """Returns the last whole snapshot, and every record since, in order.

        Exhaust the records before anything is appended: a torn one at the end is cut off.
        """
        for part in self.folder.glob("*.part"):
            part.unlink()
        numbers = [number_of(file) for file in self.folder.glob("snapshot-*.tws")]
        for number in sorted(numbers, reverse=True):
            content = whole(self._snapshot(number).read_bytes(), MAGIC)
            if content is not None:
                return bytes(content), self._records(number)
        if numbers:
            raise ConfigError(
                f"no snapshot in {self.folder} is whole: the disk has altered them. Restore the "
                "folder from a copy, or start a new run in another one"
            )
        return None, iter(())

    def begin(self, generation: int) -> None:
        """Appends to that generation's file from now on, made where it is missing."""
        self.close_file()
        path = self._journal(generation)
        fresh = not path.exists() or path.stat().st_size < len(MAGIC)
        # Each write returns when the disk has it, which is one call, where a sync would be another.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC
        self._file = os.open(path, flags, 0o600)
        if fresh:
            os.ftruncate(self._file, 0)
            os.write(self._file, MAGIC)
            os.fsync(self._file)
            sync_folder(self.folder)
        self.generation, self.size = generation, os.fstat(self._file).st_size

    def append(self, records: Sequence[Record]) -> None:
        """Writes the records and returns when the disk has them."""
        assert self._file is not None
        data = memoryview(b"".join(part for record in records for part in record.framed()))
        self.size += len(data)
        while data:
            data = data[os.write(self._file, data) :]

    def snapshot(self, generation: int, parts: Iterable[bytes | memoryview]) -> None:
        """Writes the state before that generation's first record, whole or not at all."""
        with written(self._snapshot(generation), MAGIC) as file:
            for part in parts:
                file.write(part)
        for old in (*self.folder.glob("journal-*.twj"), *self.folder.glob("snapshot-*.tws")):
            if number_of(old) < generation:
                old.unlink()

    def close_file(self) -> None:
        """Closes the file that is appended to."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        """Closes everything and lets another hub have the folder."""
        self.close_file()
        self._lock.close()

    def _records(self, number: int) -> Iterator[bytes]:
        files = sorted(self.folder.glob("journal-*.twj"), key=number_of)
        files = [file for file in files if number_of(file) >= number]
        for file in files:
            data = memoryview(file.read_bytes())
            end = len(MAGIC) if data[: len(MAGIC)] == MAGIC else 0
            while end and (record := record_at(data, end)) is not None:
                end += HEAD.size + len(record)
                yield bytes(record)
            if end < len(data):
                if file != files[-1]:
                    raise ConfigError(
                        f"{file} is damaged at byte {end}, and later records exist: the disk has "
                        "altered it. Restore the folder from a copy"
                    )
                with file.open("r+b") as torn:
                    torn.truncate(end)
                    os.fsync(torn.fileno())

    def _snapshot(self, number: int) -> Path:
        return self.folder / f"snapshot-{number:016d}.tws"

    def _journal(self, number: int) -> Path:
        return self.folder / f"journal-{number:016d}.twj"


def record_at(data: memoryview, at: int) -> memoryview | None:
    """Returns the record there, or None where no whole one is."""
    if at + HEAD.size > len(data):
        return None
    length, check = HEAD.unpack_from(data, at)
    record = data[at + HEAD.size : at + HEAD.size + length]
    # A file that was extended but not written reads as zeros, whose checksum is right.
    if not length or len(record) < length or crc32(record) != check:
        return None
    return record


def number_of(file: Path) -> int:
    """Returns the generation in a file's name."""
    return int(file.stem.partition("-")[2])
