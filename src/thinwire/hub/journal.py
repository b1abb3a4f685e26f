"""The journal: records on disk before they are acknowledged, and snapshots to start from.

    journal-<n>.twj         8 bytes of magic, then records: length, CRC-32, content
    journal-<n>.<at>.torn   what recovery cut off behind that byte
    snapshot-<n>.tws        the state before the first record of journal-<n>

Records that are written together follow a mark: a record that names the byte where it stands. It
was written when the disk had all before it. So a crash leaves nothing broken but behind the last
mark; that was never acknowledged, and recovery cuts it off. Anything else broken is damage.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from isal.isal_zlib import crc32

from thinwire.errors import ConfigError
from thinwire.files import sync_folder, whole, written

LOG = logging.getLogger("thinwire.hub")
MAGIC = b"twhub\x00\x00\x01"
HEAD = struct.Struct("<II")
PAGE = 1 << 12
MARK = b"\x00twmark\x00"
"""What a mark begins with, and no other record: those begin with their kind, which is not 0."""
COPY = "Restore the folder from a copy"
OR_ANEW = f"{COPY}, or start a new run in another one"


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

    Attributes:
        generation: of the file that is appended to; once recovered, the newest there is, or -1.
        size: bytes of that file.

    Raises:
        ConfigError: another hub has it open, or it cannot be had.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            made = [new for new in (folder, *folder.parents) if not new.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for new in made:
                sync_folder(new.parent)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot hold the state of a hub: {error.strerror}. Name a folder that "
                "can be written"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(f"{folder} is the state of a hub that is running") from None
        self.size = 0
        self.generation = -1
        self._file: int | None = None

    def recover(self) -> tuple[bytes | None, Iterator[bytes]]:
        """Returns the last whole snapshot, and every record since, in order.

        Exhaust the records before anything is appended: what a crash tore is cut off behind them.

        Raises:
            ConfigError: something is missing or altered, as no crash leaves it.
        """
        for part in self.folder.glob("*.part"):
            part.unlink()
        snapshots = [number_of(file) for file in self.folder.glob("snapshot-*.tws")]
        journals = [number_of(file) for file in self.folder.glob("journal-*.twj")]
        self.generation = max((*snapshots, *journals), default=-1)
        for number in sorted(snapshots, reverse=True):
            content = whole(self._snapshot(number).read_bytes(), MAGIC)
            if content is not None:
                files = [self._journal(n) for n in range(number, self.generation + 1)]
                for file in files:
                    if not file.exists():
                        raise ConfigError(f"{file} is missing, and with it what it held. {COPY}")
                return bytes(content), self._records(files)
        if snapshots:
            raise ConfigError(
                f"no snapshot in {self.folder} is whole: the disk has altered them. {OR_ANEW}"
            )
        for number in journals:
            # A run's first snapshot is written before its first record.
            if not MAGIC.startswith(self._journal(number).read_bytes()):
                raise ConfigError(
                    f"{self._journal(number)} holds records, and the snapshot that they follow "
                    f"is missing. {OR_ANEW}"
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
        if not records:
            return
        marked = (Record.of(mark(self.size)), *records)
        data = memoryview(b"".join(part for record in marked for part in record.framed()))
        start, self.size = self.size, self.size + len(data)
        while data:
            data = data[os.write(self._file, data) :]
        self._forget(start // PAGE * PAGE, self.size // PAGE * PAGE)

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

    def _forget(self, start: int, end: int) -> None:
        """Has the system keep no copy in memory of what the disk has."""
        # Nobody reads it until a restart. The next write gets the same memory again, where fresh
        # memory costs more than all else of a write.
        if end > start and hasattr(os, "posix_fadvise"):
            assert self._file is not None
            os.posix_fadvise(self._file, start, end - start, os.POSIX_FADV_DONTNEED)

    def _records(self, files: list[Path]) -> Iterator[bytes]:
        for file in files:
            data, last = file.read_bytes(), file == files[-1]
            if len(data) < len(MAGIC) and last and file != files[0]:
                return  # A crash while it was begun; the first one was there before its snapshot.
            if data[: len(MAGIC)] != MAGIC:
                raise altered(file, 0)
            view, end = memoryview(data), len(MAGIC)
            while (record := record_at(view, end)) is not None:
                end += HEAD.size + len(record)
                if record[: len(MARK)] != MARK:
                    yield bytes(record)
            if end < len(data):
                if not last or is_marked_behind(data, end):
                    raise altered(file, end)
                self._cut(file, data, end)

    def _cut(self, file: Path, data: bytes, end: int) -> None:
        torn = file.with_suffix(f".{end}.torn")
        with torn.open("wb") as kept:
            kept.write(data[end:])
            kept.flush()
            os.fsync(kept.fileno())
        sync_folder(self.folder)
        with file.open("r+b") as whole_part:
            whole_part.truncate(end)
            os.fsync(whole_part.fileno())
        LOG.warning(
            "%s: a crash left its last %d bytes unfinished, nobody was told of them; they are "
            "in %s now", file, len(data) - end, torn.name,
        )  # fmt: skip

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
    # A mark elsewhere than it says was moved there.
    if record[: len(MARK)] == MARK and record != mark(at):
        return None
    return record


def mark(at: int) -> bytes:
    """Returns the content of the mark that stands at that byte."""
    return MARK + at.to_bytes(8, "little")


def is_marked_behind(data: bytes, at: int) -> bool:
    """Whether a mark stands behind that byte, so that the disk once had all before it."""
    found = data.find(MARK, at + HEAD.size)
    while found >= 0:
        if record_at(memoryview(data), found - HEAD.size) is not None:
            return True
        found = data.find(MARK, found + 1)
    return False


def altered(file: Path, at: int) -> ConfigError:
    """Returns the error of a journal that is broken as no crash leaves it."""
    return ConfigError(
        f"{file} is damaged at byte {at}: the disk had it whole, and has altered it. {COPY}"
    )


def gap(what: str) -> ConfigError:
    """Returns the error of a journal that lacks a record."""
    return ConfigError(f"the journal has a gap: {what}. The disk has lost records. {COPY}")


def number_of(file: Path) -> int:
    """Returns the generation in a file's name."""
    return int(file.stem.partition("-")[2])
