"""The 26 bytes before every body, as FORMAT.md states them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
import torch

import thinwire.wire
from thinwire import FrameError, Key, Sign, TopK
from thinwire.wire.body import pack
from thinwire.wire.frame import HEADER, MAX_BODY, VERSION, Address, Kind, length, seal, unseal

HERE = Address(run=0xDEADBEEF, round=0x01020304, rank=0x0506, part=0x0708)
BODY = b"thirteen byte"


def test_the_header_has_26_bytes_at_their_places() -> None:
    frame = seal(Kind.SAID, HERE, BODY)
    assert HEADER == 26
    assert len(frame) == 26 + 13
    assert frame[0:2] == b"tw" == bytes([0x74, 0x77])
    assert frame[2] == VERSION == 3
    assert frame[3] == 4
    assert struct.unpack("<I", frame[4:8]) == (0xDEADBEEF,)
    assert struct.unpack("<I", frame[8:12]) == (0x01020304,)
    assert struct.unpack("<H", frame[12:14]) == (0x0506,)
    assert struct.unpack("<H", frame[14:16]) == (0x0708,)
    assert int.from_bytes(frame[16:22], "little") == 13
    assert int.from_bytes(frame[22:26], "little") == zlib.crc32(frame[:22] + BODY)
    assert frame[26:] == BODY


def test_the_kinds_have_the_numbers_of_the_page() -> None:
    page = (Path(thinwire.wire.__file__).parent / "FORMAT.md").read_text()
    table = page[page.index("## Kinds") : page.index("## Payload")]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")]
    stated = {name.strip(): int(number) for number, name in rows if number.strip().isdigit()}
    assert {kind.name: kind.value for kind in Kind} == stated


def test_a_frame_comes_back_as_it_was_sealed() -> None:
    for kind in Kind:
        for body in (b"", b"x", BODY * 100):
            frame = seal(kind, HERE, body)
            assert length(frame[:HEADER]) == len(frame)
            got, view = unseal(frame, HERE, *Kind)
            assert (got, bytes(view)) == (kind, body)


@pytest.mark.parametrize("n", [0, 1, 13, 25])
def test_fewer_than_26_bytes_are_refused(n: int) -> None:
    with pytest.raises(FrameError, match=f"{n} bytes are no frame"):
        length(seal(Kind.SAID, HERE, BODY)[:n])
    with pytest.raises(FrameError):
        unseal(seal(Kind.SAID, HERE, BODY)[:n], HERE, Kind.SAID)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (Address(1, HERE.round, HERE.rank, HERE.part), "belongs to run 0x00000001"),
        (Address(HERE.run, 9, HERE.rank, HERE.part), "says rank 1286, round 9, part 1800"),
        (Address(HERE.run, HERE.round, 9, HERE.part), "says rank 9"),
        (Address(HERE.run, HERE.round, HERE.rank, 9), "part 9"),
    ],
    ids=["run", "round", "rank", "part"],
)
def test_a_foreign_frame_is_refused_and_named(other: Address, says: str) -> None:
    with pytest.raises(FrameError, match=says) as refused:
        unseal(seal(Kind.SAID, other, BODY), HERE, Kind.SAID)
    assert "rank 1286, round 16909060, part 1800" in str(refused.value)


def test_a_round_is_counted_modulo_two_to_the_32() -> None:
    late = Address(1, (1 << 32) + 5, 0)
    frame = seal(Kind.SAID, late, BODY)
    assert unseal(frame, late, Kind.SAID)[1] == BODY
    assert unseal(frame, Address(1, 5, 0), Kind.SAID)[1] == BODY


def test_an_unexpected_kind_is_refused_by_name() -> None:
    with pytest.raises(FrameError, match="it is a VECTOR, expected SAID or ALARM"):
        unseal(seal(Kind.VECTOR, HERE, BODY), HERE, Kind.SAID, Kind.ALARM)
    with pytest.raises(FrameError, match="unknown kind 200"):
        unseal(seal(200, HERE, BODY), HERE, Kind.SAID)  # type: ignore[arg-type]


def test_another_version_is_refused_but_a_hello_of_it_is_read() -> None:
    def of_version_1(kind: Kind) -> bytes:
        head = bytearray(seal(kind, HERE, BODY)[:22])
        head[2] = 1
        return bytes(head) + zlib.crc32(bytes(head) + BODY).to_bytes(4, "little") + BODY

    with pytest.raises(FrameError, match="frame version 1; this thinwire speaks 3"):
        unseal(of_version_1(Kind.SAID), HERE, Kind.SAID)
    for kind in (Kind.HELLO, Kind.VERDICT):
        assert unseal(of_version_1(kind), HERE, kind)[1] == BODY


def test_any_flipped_bit_is_refused() -> None:
    frame = seal(Kind.SAID, HERE, BODY)
    for bit in range(8 * len(frame)):
        altered = bytearray(frame)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            unseal(bytes(altered), HERE, Kind.SAID)


def test_a_length_of_48_bits_is_announced() -> None:
    head = bytearray(seal(Kind.SAID, HERE, b"")[:HEADER])
    head[16:22] = MAX_BODY.to_bytes(6, "little")
    assert length(bytes(head)) == HEADER + (1 << 48) - 1
    with pytest.raises(FrameError, match="announces"):
        unseal(bytes(head), HERE, Kind.SAID)


def test_signtopk_at_the_papers_setting_fits_in_90_bytes() -> None:
    C, d, sizes = TopK(k=40, scope="global") >> Sign(), 7850, []
    for seed in range(400):
        g = torch.Generator().manual_seed(seed)
        u = torch.randn(d, generator=g)
        if seed % 4 == 1:
            u = u**5
        elif seed % 4 == 2:
            u *= torch.linspace(0, 1, d) ** 8  # The kept ones crowd at one end.
        elif seed % 4 == 3:
            u = u.view(785, 10).mul(torch.rand(785, 1, generator=g) < 0.05).flatten()
        frame = seal(Kind.SAID, HERE, pack(C.compress(u, Key(seed), None), C))
        sizes.append(len(frame))
        assert len(frame) <= 90, (seed, len(frame))
    # 26 + 1 + 45 to 47 + 4 + 5 where the kept ones lie anywhere, log2 C(7850, 40) being 353 bits.
    uniform = sizes[::4]
    assert min(uniform) >= 80
    assert max(uniform) <= 83


def test_the_overhead_of_a_frame_is_at_most_32_bytes() -> None:
    # What is not a value, a scale or an index code: the header and one tag byte.
    for k in (1, 40, 1000, 7850):
        C = TopK(k=k)
        u = torch.randn(7850, generator=torch.Generator().manual_seed(k))
        frame = seal(Kind.SAID, HERE, pack(C.compress(u, Key(0)), C))
        index_bits = 0 if k == 7850 else min(7850, 13 * k)
        assert len(frame) <= 32 + 4 * k + (index_bits + 7) // 8
    for C in (Sign(), TopK(k=40) >> Sign()):
        frame = seal(Kind.SAID, HERE, pack(C.compress(torch.ones(64), Key(0)), C))
        assert len(frame) - 64 // 8 <= 32 + 4
