"""What FORMAT.md says of bodies: each MUST and each refusal has a test here."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import pytest
import torch

from thinwire import (
    QSGD,
    FrameError,
    Identity,
    Key,
    Levels,
    RandK,
    Rotated,
    Sign,
    Ternary,
    TopK,
    TwoLevel,
    kernels,
)
from thinwire.compress import Codes, Compressor
from thinwire.flat import Spans
from thinwire.kernels import reference
from thinwire.wire.body import Reader, as_bytes, pack, pack_sparse, unpack, unpack_sparse

KEY = Key(4, 2, 1)


def read(C: Compressor, body: bytes, d: int | Spans):
    spans = Spans.of(d) if isinstance(d, int) else d
    reader = Reader(body, "frame from rank 1, round 2")
    payload = unpack(reader, C, spans, KEY)
    reader.end()
    return payload


def body_of(C: Compressor, u: torch.Tensor, spans: Spans | None = None) -> bytes:
    return pack(C.compress(u, KEY, spans), C)


def refused(C: Compressor, body: bytes, d: int | Spans, says: str) -> None:
    with pytest.raises(FrameError, match=says) as error:
        read(C, body, d)
    assert str(error.value).startswith("frame from rank 1, round 2: ")


# Sections follow each other without padding.


def test_a_topk_body_is_index_then_float32_little_endian() -> None:
    u = torch.tensor([0.0, 0.0, 1.5, 0.0, 0.0, -2.0, 0.0, 0.0])
    body = body_of(TopK(k=2), u)
    # Fixed width takes 6 bits, Rice (b = 1: gap 2 is 10 0, gap 2 again) 6 bits, bitmap 8.
    assert body[0] == 2
    assert body[1] == 2 | 5 << 3
    assert body[2:] == struct.pack("<ff", 1.5, -2.0)


def test_a_sign_body_is_scale_then_bits_in_rows_from_the_lowest() -> None:
    # Nine bits take two bytes, so byte 0 holds entries 0, 2, 4, 6, 8 and byte 1 holds 1, 3, 5, 7.
    u = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
    assert body_of(Sign(), u) == struct.pack("<f", 1.0) + bytes([0b10011, 0b1010])


def test_scales_come_one_a_block_or_two_and_before_all_codes() -> None:
    u = torch.tensor([4.0, 0.0, -4.0, 1.0, 3.0])
    body = body_of(QSGD(levels=1, norm="max", scale="none", bucket=3, coding="fixed"), u)
    assert body[:8] == struct.pack("<ff", 4.0, 3.0)
    codes = [body[8 + i % 2] >> i // 2 * 2 & 3 for i in range(5)]
    assert codes[:3] == [2, 1, 0]  # q + s, s = 1
    assert codes[4] == 2
    # Codes 0 and 4 of three bits: a plane of two bits, then one of a bit.
    two = body_of(Levels(levels=4, scale="none", coding="fixed"), torch.tensor([-1.0, 3.0]))
    assert two == struct.pack("<ff", -1.0, 1.0) + bytes([0, 0b10])


def test_an_identity_body_is_the_vector() -> None:
    u = torch.tensor([1.0, -0.0, 3.5])
    assert body_of(Identity(), u) == struct.pack("<fff", 1.0, -0.0, 3.5)


def test_randk_says_values_only() -> None:
    u = torch.arange(8.0)
    payload = RandK(k=3).compress(u, KEY)
    assert body_of(RandK(k=3), u) == struct.pack("<fff", *u[payload.index].tolist())


@pytest.mark.parametrize(
    ("C", "width"),
    [
        (Sign(), 1),
        (Ternary(), 2),
        (TwoLevel(), 2),
        *((QSGD(levels=s), math.ceil(math.log2(2 * s + 1))) for s in (1, 2, 3, 4, 7, 8, 32767)),
        *((Levels(levels=s), math.ceil(math.log2(s + 1))) for s in (1, 2, 3, 4, 255, 256, 65535)),
        (Rotated(levels=15, bucket=None), 4),
    ],
    ids=repr,
)
def test_a_code_has_the_stated_width(C, width: int) -> None:
    assert C.width == width
    assert C.top < 1 << width
    fixed = C if C.coding == "fixed" else replace(C, coding="fixed")
    assert len(body_of(fixed, torch.ones(64))) == 4 * C.scales + 64 * width // 8


# What a receiver refuses.

SPANS = Spans(("a", "b"), ((13,), (20,)))
OPERATORS = [
    Identity(),
    TopK(k=3),
    TopK(k=3, scope="global"),
    RandK(k=3),
    Sign(),
    QSGD(bits=3),
    Levels(levels=6),
    Rotated(levels=5),
    Ternary(bucket=4),
    TwoLevel(),
    QSGD(bits=4, coding="fixed"),
    TopK(k=4, scope="chunk", chunk=9) >> TwoLevel(coding="fixed"),
    TopK(k=3) >> Sign(),
    TopK(k=5) >> QSGD(levels=2),
    RandK(k=5) >> Levels(levels=4),
]
operators = pytest.mark.parametrize("C", OPERATORS, ids=repr)
U = torch.randn(33, generator=torch.Generator().manual_seed(1))


@operators
def test_bytes_left_over_are_refused(C: Compressor) -> None:
    body = body_of(C, U, SPANS)
    read(C, body, SPANS)
    refused(C, body + b"\0", SPANS, "1 bytes are left over")
    refused(C, body + body, SPANS, "left over")


@operators
def test_a_body_that_ends_early_is_refused_wherever_it_ends(C: Compressor) -> None:
    body = body_of(C, U, SPANS)
    for n in range(len(body)):
        refused(C, body[:n], SPANS, "needs|ends early|left")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@operators
def test_a_float_that_is_not_finite_is_refused_wherever_it_is(C: Compressor, bad: float) -> None:
    payload = C.compress(U, KEY, SPANS)
    floats = payload.values.scales if isinstance(payload.values, Codes) else payload.values
    for i in range(floats.numel()):
        kept = float(floats.view(-1)[i])
        floats.view(-1)[i] = bad
        refused(C, pack(payload, C), SPANS, "(scales|values) holds a NaN or an infinity")
        floats.view(-1)[i] = kept


@pytest.mark.parametrize(
    "C",
    [
        QSGD(levels=1),
        QSGD(levels=4),
        QSGD(bits=5),
        Levels(levels=4),
        Rotated(levels=4),
        Ternary(),
        TopK(k=5) >> QSGD(levels=5),
    ],
    ids=repr,
)
def test_a_code_above_the_top_is_refused(C: Compressor) -> None:
    payload = C.compress(U, KEY, SPANS)
    said = payload.values
    for i in (0, said.n - 1):
        for code in range(C.quantizer.top + 1, 1 << C.quantizer.width):
            codes = said.codes.clone()
            codes[i] = code
            packed = kernels.active().pack(codes, said.width)
            altered = replace(payload, values=replace(said, packed=packed))
            refused(C, pack(altered, C), SPANS, f"code {code} is above {C.quantizer.top}")


@pytest.mark.parametrize("C", [Sign(), QSGD(bits=3), Levels(levels=6), Ternary()], ids=repr)
def test_padding_after_the_codes_must_be_zero(C: Compressor) -> None:
    body = bytearray(body_of(C, U, SPANS))
    spares = [
        (at + spare % size, spare // size * p)
        for at, size, p in planes_of(33, C.quantizer.width, len(body))
        for spare in range(33, size * (8 // p))
    ]
    assert spares
    for at, bit in spares:
        altered = bytearray(body)
        altered[at] |= 1 << bit
        refused(C, bytes(altered), SPANS, "padding bits after the codes are not zero")


def planes_of(n: int, width: int, end: int) -> list[tuple[int, int, int]]:
    """Returns where each plane of n codes that end at `end` begins, its bytes and its bits."""
    bits = [p for p in (8, 4, 2, 1) if width & p]
    sizes = [-(-n * p // 8) for p in bits]
    return [(end - sum(sizes[i:]), sizes[i], p) for i, p in enumerate(bits)]


# Codes, entropy-coded where that is shorter.

ALL_SEVEN = struct.pack("<f", 1.0) + bytes([1, 0, 7, 0, 0, 0, 1])
"""33 codes of QSGD(bits=4) that are all 7: one code in the table, distance 8, one state."""


def test_a_table_a_state_and_no_word_say_that_all_codes_are_one() -> None:
    u = torch.zeros(33)
    body = body_of(QSGD(bits=4), u)
    assert body[4:] == ALL_SEVEN[4:] + b"\0"
    assert torch.equal(read(QSGD(bits=4), body, 33).values.codes, torch.full((33,), 7).int())


def test_codes_stay_as_they_are_where_a_stream_would_be_no_shorter() -> None:
    fixed = body_of(QSGD(bits=4, coding="fixed"), U)
    assert body_of(QSGD(bits=4), U) == fixed[:4] + b"\0" + fixed[4:]


@pytest.mark.parametrize(
    ("altered", "says"),
    [
        ({4: 2}, "unknown form 2 of the codes"),
        ({5: 255}, "a table of 256 codes, at most 16 are told apart"),
        ({6: 0b1111}, "a table holds a code above 14"),
        ({6: 255, 7: 255, 8: 255}, "a table holds a code above 14"),
        ({10: 0}, "a state lies outside its range"),
        ({8: 1}, "does not end as it began"),
    ],
)
def test_a_broken_entropy_coded_section_is_refused(altered: dict[int, int], says: str) -> None:
    body = bytearray(ALL_SEVEN + b"\0")
    for at, byte in altered.items():
        body[at] = byte
    refused(QSGD(bits=4), bytes(body), 33, says)


def test_shares_that_leave_nothing_for_the_last_code_are_refused() -> None:
    # Two codes, distance 1 each; the first share has e = 8: at least 256 of 256.
    bits = lowest_first(1, 8) + "0" + lowest_first(8, 4) + lowest_first(0, 8) + "0"
    body = struct.pack("<f", 1.0) + b"\1" + stream_of(bits) + bytes([0, 0, 0, 1, 0])
    refused(QSGD(bits=4), body, 33, "shares add up to more than 256")
    bits = lowest_first(1, 8) + "0" + lowest_first(7, 4) + lowest_first(0, 7) + "0" + "01"
    body = struct.pack("<f", 1.0) + b"\1" + stream_of(bits) + bytes([0, 0, 0, 1, 0])
    refused(QSGD(bits=4), body, 33, "padding bits are not zero")


def test_an_entropy_coded_stream_longer_than_the_packed_codes_is_refused() -> None:
    codes = torch.arange(33, dtype=torch.int32) % 15
    said = QSGD(bits=4).compress(U, KEY)
    section = kernels.active().encode_codes(kernels.active().pack(codes, 4), 33, 4)
    assert section[0] == 0
    shares = reference.entropy_shares(torch.bincount(codes).tolist(), 8)
    stream = b"\1" + reference._table(shares) + b"\0" * 40
    assert len(stream) > len(section)
    refused(QSGD(bits=4), as_bytes(said.values.scales) + stream, 33, "code stream ends early|state")


# The index section.


def index_body(tag: int, stream: bytes, k: int) -> bytes:
    return bytes([tag]) + stream + struct.pack(f"<{k}f", *range(1, k + 1))


def positions(tag: int, stream: bytes, k: int, d: int) -> list[int]:
    return read(TopK(k=k), index_body(tag, stream, k), d).index.tolist()


def stream_of(bits: str) -> bytes:
    """Bits in the order they are read, to bytes."""
    padded = bits + "0" * (-len(bits) % 8)
    return bytes(int(padded[i : i + 8][::-1], 2) for i in range(0, len(padded), 8))


def lowest_first(value: int, width: int) -> str:
    return "".join(str(value >> i & 1) for i in range(width))


def test_all_or_none_has_an_empty_stream() -> None:
    assert positions(0, b"", 4, 4) == [0, 1, 2, 3]
    refused(TopK(k=3), index_body(0, b"", 3), 4, "all-or-none")


def test_a_bitmap_has_one_bit_an_entry_and_exactly_k_ones() -> None:
    assert positions(1, stream_of("0110010000"), 3, 10) == [1, 2, 5]
    refused(TopK(k=3), index_body(1, stream_of("0110000000"), 3), 10, "2 ones, expected 3")
    refused(TopK(k=3), index_body(1, stream_of("0110011000"), 3), 10, "4 ones, expected 3")
    refused(TopK(k=3), index_body(1, stream_of("01100100001"), 3), 10, "padding")


def test_fixed_width_positions_ascend_inside_the_domain() -> None:
    def fixed(*at: int) -> bytes:
        return stream_of("".join(lowest_first(p, 4) for p in at))

    assert positions(2, fixed(1, 9), 2, 10) == [1, 9]
    refused(TopK(k=2), index_body(2, fixed(1, 10), 2), 10, "position 10 outside")
    refused(TopK(k=2), index_body(2, fixed(5, 5), 2), 10, "do not ascend")
    refused(TopK(k=2), index_body(2, fixed(5, 4), 2), 10, "do not ascend")
    refused(TopK(k=3), index_body(2, fixed(1, 2, 3, 8), 3), 10, "padding")


def test_rice_gaps_are_ones_a_zero_and_b_low_bits() -> None:
    # Gaps 5 and 0 with b = 2: 1 0 10 (5 = 1 * 4 + 1), then 0 00.
    stream = stream_of("10" + lowest_first(1, 2) + "0" + "00")
    assert positions(3 | 2 << 3, stream, 2, 30) == [5, 6]
    refused(TopK(k=2), index_body(3 | 2 << 3, stream, 2), 6, "outside|past")
    refused(TopK(k=2), index_body(3 | 2 << 3, stream_of("1" * 16), 2), 30, "past")
    refused(TopK(k=2), index_body(3 | 2 << 3, stream_of("1001000" + "1"), 2), 30, "padding")


@pytest.mark.parametrize("tag", [4, 5, 6, 7, 1 | 1 << 3, 2 | 31 << 3, 0 | 1 << 3])
def test_an_unknown_tag_is_refused(tag: int) -> None:
    refused(TopK(k=2), index_body(tag, b"\3\0\0", 2), 10, "unknown index code|unused bits")


def cheapest(at: list[int], d: int) -> tuple[int, int]:
    """(bits, tag) of the cheapest code of these positions, ties to the lower tag."""
    k, width = len(at), max(1, (d - 1).bit_length())
    if k in (0, d):
        return 0, 0
    gaps = [b - a - 1 for a, b in zip([-1, *at], at, strict=False)]
    costs = [(d, 1), (k * width, 2)]
    costs += [(sum((g >> b) + 1 + b for g in gaps), 3 | b << 3) for b in range(32)]
    return min(costs)


@pytest.mark.parametrize("seed", range(40))
def test_a_sender_takes_the_fewest_bits_and_the_lower_code_on_a_tie(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    d = int(torch.randint(1, 300, (1,), generator=g))
    k = int(torch.randint(1, d + 1, (1,), generator=g)) if seed % 2 else min(d, 1 + seed // 4)
    u = torch.randn(d, generator=g) * torch.linspace(0, 1, d) ** (seed % 5)
    payload = TopK(k=k).compress(u, KEY)
    bits, tag = cheapest(payload.index.tolist(), d)
    body = pack(payload, TopK(k=k))
    assert body[0] == tag
    assert len(body) == 1 + (bits + 7) // 8 + 4 * k
    assert torch.equal(read(TopK(k=k), body, d).index, payload.index)


def test_a_domain_is_a_tensor_or_with_scope_global_the_vector() -> None:
    by_tensor, whole = TopK(k=1), TopK(k=2, scope="global")
    u = torch.zeros(33)
    u[[3, 15]] = 1.0
    assert body_of(by_tensor, u, SPANS)[:4] == bytes([3 | 1 << 3, 0b101, 3, 0b011])
    assert body_of(whole, u, SPANS)[0] in (2, 3 | 2 << 3, 3 | 3 << 3)
    chunked = TopK(k=1, scope="chunk", chunk=10)
    payload = chunked.compress(U, KEY, SPANS)
    assert chunked.layout(SPANS).domains.tolist() == [0, 13, 33]
    assert torch.equal(read(chunked, pack(payload, chunked), SPANS).index, payload.index)


def test_fixed_width_positions_count_from_their_chunk() -> None:
    # Chunks of 10, 3 | 10, 10 entries, one kept of each: 4, 2 | 4, 4 bits.
    C = TopK(k=1, scope="chunk", chunk=10)
    stream = bytes([2]) + stream_of(lowest_first(9, 4) + lowest_first(2, 2))
    stream += bytes([2]) + stream_of(lowest_first(0, 4) + lowest_first(9, 4))
    body = stream + struct.pack("<4f", 1, 2, 3, 4)
    assert read(C, body, SPANS).index.tolist() == [9, 12, 13, 32]
    u = torch.zeros(33)
    u[[9, 12, 13, 32]] = torch.tensor([1.0, 2, 3, 4])
    assert body_of(C, u, SPANS) == body
    outside = bytes([2]) + stream_of(lowest_first(10, 4) + "00") + body[2:]
    refused(C, outside, SPANS, "position 10 outside a group of 10")
    outside = bytes([2]) + stream_of(lowest_first(9, 4) + "11") + body[2:]
    refused(C, outside, SPANS, "position 3 outside a group of 3")


# Sparse vectors.


def test_a_sparse_vector_is_count_index_values() -> None:
    body = pack_sparse(torch.tensor([1, 9]), torch.tensor([2.0, -3.0]), 10)
    assert body[:6] == (2).to_bytes(6, "little")
    assert body[-8:] == struct.pack("<ff", 2.0, -3.0)
    reader = Reader(body, "here")
    assert unpack_sparse(reader, 10).nonzero().flatten().tolist() == [1, 9]
    reader.end()


@pytest.mark.parametrize("n", [11, 1 << 20, (1 << 48) - 1])
def test_a_count_above_d_or_above_the_bytes_is_refused(n: int) -> None:
    body = n.to_bytes(6, "little") + b"\0" * 40
    with pytest.raises(FrameError, match=f"{n} entries are announced"):
        unpack_sparse(Reader(body, "here"), 10)
    with pytest.raises(FrameError, match=f"{n} entries are announced"):
        unpack_sparse(Reader(body, "here"), 1 << 50)


def test_the_helper_that_writes_streams_writes_what_is_read() -> None:
    assert stream_of("10000000" + "01") == bytes([1, 2])
    assert stream_of(lowest_first(6, 4)) == bytes([6])
    with pytest.raises(AssertionError):
        assert positions(2, stream_of("0110"), 1, 10) == [1]
