"""Bodies of many messages, read and subtracted together: as the definition does it, bit for bit."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import same

import thinwire as tw
from thinwire import host
from thinwire.compress import Codes, Compressor
from thinwire.flat import Spans
from thinwire.kernels import BodyShape, cpu, packed_bytes, reference
from thinwire.wire.body import pack

SPANS = Spans(("w", "b", "none"), ((40, 30), (9,), (0,)))
OPERATORS: list[Compressor] = [
    tw.TopK(k=5) >> tw.Sign(),
    tw.TopK(density=0.1, scope="global") >> tw.Sign(bucket=7),
    tw.TopK(k=3, scope="chunk", chunk=64) >> tw.QSGD(bits=3, coding="fixed"),
    tw.TopK(density=1.0) >> tw.Sign(),
]


def bodies_of(C: Compressor, many: int) -> list[bytes]:
    g = torch.Generator().manual_seed(many)
    vectors = [torch.randn(SPANS.d, generator=g) for _ in range(many)]
    return [pack(C.compress(v, tw.Key(1, n, 2), SPANS), C) for n, v in enumerate(vectors)]


def laid_out(bodies: list[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    data = torch.frombuffer(bytearray().join(bodies) + b"x", dtype=torch.uint8)[:-1]
    return data, torch.tensor([len(body) for body in bodies], dtype=torch.int64).cumsum(0)


def shape_of(C: Compressor) -> BodyShape:
    at, quantizer = C.layout(SPANS), C.quantizer
    cut = at.counts, at.groups, at.domains, at.index_bytes
    codes = quantizer.scales * at.n_blocks, quantizer.width, quantizer.top
    return BodyShape(*cut, *codes, at.blocks)


def altered(body: bytes, place: int, how: int) -> bytes:
    at = place % len(body)
    if how == 0:
        return body[:at]
    if how == 1:
        return body + b"\0"
    return body[:at] + bytes([body[at] ^ 1 << how - 2]) + body[at + 1 :]


@pytest.mark.parametrize("C", OPERATORS, ids=repr)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_altered_bodies_are_told_from_good_ones(C: Compressor, data) -> None:
    bodies = bodies_of(C, 4)
    for f in range(4):
        if data.draw(st.booleans()):
            places = st.integers(0, 10_000)
            bodies[f] = altered(bodies[f], data.draw(places), data.draw(st.integers(0, 9)))
    given = *laid_out(bodies), shape_of(C)
    mine, defined = cpu.read_bodies(*given), reference.read_bodies(*given)
    fine = defined[0]
    assert mine[0].tolist() == fine.tolist()
    for ours, theirs in zip(mine[1:], defined[1:], strict=True):
        assert torch.equal(ours[fine], theirs[fine])


@pytest.mark.parametrize("C", OPERATORS, ids=repr)
def test_bodies_step_as_one_after_the_other_would(C: Compressor) -> None:
    bodies, at = bodies_of(C, 5), C.layout(SPANS)
    fine, index, scales, packed = cpu.read_bodies(*laid_out(bodies), shape_of(C))
    assert fine.all()
    said = Codes(packed, at.kept, C.quantizer.width, scales.view(-1, C.quantizer.scales))
    steps = C.quantizer.steps(said, at)
    assert steps is not None
    given = packed, shape_of(C), steps.lows.view(5, -1), steps.steps.view(5, -1)
    mine, defined = cpu.decode_bodies(*given), reference.decode_bodies(*given)
    same(mine[0], defined[0])
    same(mine[1], defined[1])
    rows, divisors = torch.tensor([3, 0, 0, 4]), torch.tensor([3.0, 7.1, 1.0, float("inf")])
    for touched in (None, torch.zeros(SPANS.d, dtype=torch.int64)):
        x = torch.randn(SPANS.d, generator=torch.Generator().manual_seed(1))
        ours, theirs = x.clone(), x.clone()
        marks = [None if touched is None else touched.clone() for _ in range(2)]
        cpu.subtract_bodies(ours, index, mine[0], rows, divisors, marks[0], 5)
        reference.subtract_bodies(theirs, index, mine[0], rows, divisors, marks[1], 5)
        same(ours, theirs)
        if touched is not None:
            assert torch.equal(marks[0], marks[1])


def test_what_does_not_fit_is_refused() -> None:
    C = OPERATORS[0]
    data, ends = laid_out(bodies_of(C, 2))
    x, index, values = host.zeros(9), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3)
    rows, divisors = torch.tensor([0]), torch.ones(1)
    for table in (cpu, reference):
        with pytest.raises(ValueError, match="ascend"):
            table.read_bodies(data, ends - 1, shape_of(C))
        with pytest.raises(IndexError):
            table.subtract_bodies(x, index + 9, values, rows, divisors, None, 0)
        with pytest.raises(IndexError):
            table.subtract_bodies(x, index, values, rows + 2, divisors, None, 0)
        with pytest.raises(ValueError, match="together"):
            table.subtract_bodies(x, index, values[:, 1:], rows, divisors, None, 0)


def test_a_value_that_is_not_finite_is_seen() -> None:
    packed, cut = torch.zeros(2, packed_bytes(3, 1), dtype=torch.uint8), torch.tensor([0, 3])
    shape = BodyShape(cut[1:], cut, cut, 9, 1, 1, 1, cut)
    lows = torch.tensor([[float("inf")], [-2.0]], dtype=torch.float64)
    for table in (cpu, reference):
        _, tops = table.decode_bodies(packed, shape, lows, lows * 0 + 1.0)
        assert not tops[0].isfinite()
        assert float(tops[1]) == 2.0


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_of_two_pieces_are_that_of_both(first: bytes, second: bytes) -> None:
    both = zlib.crc32(first + second)
    given = zlib.crc32(first), zlib.crc32(second), len(second)
    assert cpu.join_crc(*given) == reference.join_crc(*given) == both
    assert cpu.join_crc(given[0], both, given[2]) == given[1]
