"""Files that are whole or not there: written beside, synced, and only then given their name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from isal.isal_zlib import crc32

from thinwire.errors import ConfigError

CHECK = 4
"""Bytes of the CRC-32 that a whole file ends with."""


class Sealed:
    """Writes magic bytes, what it is given, and at last the CRC-32 of that.

    Args:
        file: open for writing.
        magic: what the file starts with.
    """

    def __init__(self, file: IO[bytes], magic: bytes) -> None:
        self._file = file
        self._check = 0
        file.write(magic)

    def write(self, data: bytes | memoryview) -> int:
        """Writes these bytes and returns how many they are."""
        self._file.write(data)
        self._check = crc32(data, self._check)
        return len(data)

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        self._file.flush()

    def end(self) -> None:
        """Writes the checksum."""
        self._file.write(self._check.to_bytes(CHECK, "little"))


@contextmanager
def written(path: Path, magic: bytes) -> Iterator[Sealed]:
    """Yields what to write into; the file is there, on the disk and whole, when the body is done.

    Where the body or the disk fails, the file of that name is what it was before.

    Args:
        path: of the file.
        magic: what it starts with.
    """
    temporary = path.with_suffix(".part")
    try:
        with temporary.open("wb") as file:
            sealed = Sealed(file, magic)
            yield sealed
            sealed.end()
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def whole(data: bytes, magic: bytes) -> memoryview | None:
    """Returns what `written` was given, or None where a byte of it is missing or altered."""
    view = memoryview(data)
    content = view[len(magic) : -CHECK]
    if data[: len(magic)] != magic or len(data) < len(magic) + CHECK:
        return None
    return content if crc32(content) == int.from_bytes(view[-CHECK:], "little") else None


def sync_folder(folder: Path) -> None:
    """Makes a rename or a new file last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(file: Path | None) -> None:
    """Refuses a file that could not be written, before the work rather than after it.

    Raises:
        ConfigError: its folder is missing or closed, or it is a folder itself.
    """
    if file is None:
        return
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; name a file in it")
    if not file.parent.is_dir():
        raise ConfigError(f"{file}: there is no folder {file.parent}; make it first")
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{file}: the folder {file.parent} cannot be written")
