"""The bytes of version 3 never change: every frame equals its file, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden.golden_frames import HERE, KEY, OPERATORS, SPANS, frames, vector

from thinwire import kernels
from thinwire.wire.body import Reader, pack, unpack
from thinwire.wire.frame import Kind, unseal

FOLDER = Path(__file__).parent
FRAMES = frames()


def check_golden(frame: bytes, path: Path) -> None:
    """Asserts that the frame is what the file holds."""
    assert path.exists(), f"{path.name} is missing: pytest tests/golden --rewrite-golden"
    held = path.read_bytes()
    first = next((i for i, (a, b) in enumerate(zip(frame, held, strict=False)) if a != b), None)
    assert frame == held, f"{path.name}: {len(frame)} bytes against {len(held)}, first at {first}"


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_is_what_its_golden_file_holds(name: str, rewrite: bool) -> None:
    path = FOLDER / f"{name}.bin"
    if rewrite:
        path.write_bytes(FRAMES[name])
    check_golden(FRAMES[name], path)


def test_the_definition_writes_the_golden_files_too() -> None:
    with kernels.use("reference"):
        for name, frame in frames().items():
            check_golden(frame, FOLDER / f"{name}.bin")


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.bin")} == set(FRAMES)


def test_every_kind_and_every_index_code_is_frozen() -> None:
    assert {frame[3] for frame in FRAMES.values()} == set(Kind)
    tags = {frame[26 + 1 + 6] & 7 for name, frame in FRAMES.items() if name.startswith("index")}
    assert tags == {0, 1, 2, 3}
    forms = {frame[26] for name, frame in FRAMES.items() if name.startswith("codes")}
    assert forms == {0, 1}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_golden_message_is_read_and_written_again(name: str) -> None:
    C = OPERATORS[name]
    held = (FOLDER / f"said_{name}.bin").read_bytes()
    _, body = unseal(held, HERE, Kind.SAID)
    reader = Reader(body, name)
    payload = unpack(reader, C, SPANS, KEY)
    reader.end()
    assert pack(payload, C) == bytes(body)
    said = C.decompress(C.compress(vector(), KEY, SPANS))
    assert torch.equal(C.decompress(payload), said)


def test_one_other_byte_would_be_noticed(tmp_path: Path) -> None:
    path = tmp_path / "frame.bin"
    path.write_bytes(FRAMES["alarm"])
    check_golden(FRAMES["alarm"], path)
    with pytest.raises(AssertionError, match="first at 29"):
        check_golden(FRAMES["alarm"][:29] + b"\1", path)
    with pytest.raises(AssertionError, match="missing"):
        check_golden(FRAMES["alarm"], tmp_path / "another.bin")
