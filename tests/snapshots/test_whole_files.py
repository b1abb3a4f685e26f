"""A file is what was written, or the one that was there before; a byte less or other is noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from thinwire.files import whole, written

MAGIC = b"magic\x00\x00\x01"
CONTENT = bytes(range(256)) * 3


def write(path: Path, content: bytes) -> None:
    with written(path, MAGIC) as file:
        for at in range(0, len(content), 100):
            file.write(content[at : at + 100])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    for content in (b"", b"x", CONTENT):
        write(tmp_path / "a.tws", content)
        assert whole((tmp_path / "a.tws").read_bytes(), MAGIC) == content
    assert os.listdir(tmp_path) == ["a.tws"]


def test_cut_anywhere_it_is_not_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.tws", CONTENT)
    data = (tmp_path / "a.tws").read_bytes()
    assert all(whole(data[:end], MAGIC) is None for end in range(len(data)))
    assert whole(data + b"\0", MAGIC) is None


def test_any_bit_altered_it_is_not_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.tws", CONTENT)
    data = (tmp_path / "a.tws").read_bytes()
    for at in range(len(data)):
        altered = bytearray(data)
        altered[at] ^= 1 << (at % 8)
        assert whole(bytes(altered), MAGIC) is None


@pytest.mark.parametrize("after", [0, 1, 500])
def test_a_writer_that_fails_leaves_the_file_that_was_there(tmp_path: Path, after: int) -> None:
    write(tmp_path / "a.tws", b"before")

    def fail() -> None:
        with written(tmp_path / "a.tws", MAGIC) as file:
            file.write(CONTENT[:after])
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert whole((tmp_path / "a.tws").read_bytes(), MAGIC) == b"before"
    assert os.listdir(tmp_path) == ["a.tws"]


def test_the_file_is_synced_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch
) -> None:
    done, fsync, rename = [], os.fsync, Path.rename

    def synced(handle: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        done.append("name")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    write(tmp_path / "a.tws", CONTENT)
    assert done == ["file", "name", "folder"]
