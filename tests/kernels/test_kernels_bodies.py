"""Bodies of many messages, read and subtracted together: as the definition does it, bit for bit."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import same

import thinwire as tw
from thinwire.compress import Compressor
from thinwire.flat import Spans
from thinwire.hub.steps import Steps
from thinwire.kernels import BodyShape, Marked, cpu, reference
from thinwire.wire.body import Reader, pack, unpack

SPANS = Spans(("w", "b", "none"), ((40, 30), (9,), (0,)))
OPERATORS: list[Compressor] = [
    tw.TopK(k=5) >> tw.Sign(),
    tw.TopK(density=0.1, scope="global") >> tw.Sign(bucket=7),
    tw.TopK(k=3, scope="chunk", chunk=64) >> tw.QSGD(bits=3, coding="fixed"),
    tw.TopK(k=6) >> tw.Levels(7, coding="fixed"),
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
    """The shape that a hub finds for the operator."""
    shape = Steps(C, SPANS, True)._shape
    assert shape is not None
    return shape


def altered(body: bytes, place: int, how: int) -> bytes:
    at = place % len(body)
    if how == 0:
        return body[:at]
    if how == 1:
        return body + b"\0"
    return body[:at] + bytes([body[at] ^ 1 << how - 2]) + body[at + 1 :]


def read(C: Compressor, bodies: list[bytes]) -> tuple[torch.Tensor, torch.Tensor, BodyShape]:
    return *laid_out(bodies), shape_of(C)


def both_step(given: tuple, divisors: torch.Tensor, room: float, how: str) -> list[float]:
    """Steps by both tables from one x, and asks that they agree; returns the sizes."""
    d, starts = given[2].d, given[2].starts
    x, answers = torch.randn(d, generator=torch.Generator().manual_seed(1)), []
    for table in (cpu, reference):
        marked = Marked.over(x.clone(), starts)
        marked.limits.fill_(0.7)
        touched = torch.zeros(d, dtype=torch.int64) if how == "touched" else None
        on = marked if how == "marked" else marked.x
        sizes = table.subtract_bodies(on, *given, divisors, room, touched, 5)
        answers.append((sizes, marked.x, marked.marks, touched))
    for mine, defined in zip(*answers, strict=True):
        assert mine is defined is None or same(mine, defined) is None
    return answers[0][0].tolist()


@pytest.mark.parametrize("C", OPERATORS, ids=repr)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_altered_bodies_end_what_is_taken(C: Compressor, data) -> None:
    bodies = bodies_of(C, 4)
    for f in range(4):
        if data.draw(st.integers(0, 2)) == 0:
            places = st.integers(0, 10_000)
            bodies[f] = altered(bodies[f], data.draw(places), data.draw(st.integers(0, 9)))
    how = data.draw(st.sampled_from(["plain", "marked", "touched"]))
    both_step(read(C, bodies), torch.tensor([3.0, 7.1, 1.0, float("inf")]), float("inf"), how)


@pytest.mark.parametrize("how", ["plain", "marked", "touched"])
@pytest.mark.parametrize("C", OPERATORS, ids=repr)
def test_bodies_step_as_one_after_the_other_would(C: Compressor, how: str) -> None:
    bodies, divisors = bodies_of(C, 4), torch.tensor([3.0, 7.1, 1.0, float("inf")])
    given = read(C, bodies)
    sizes = both_step(given, divisors, float("inf"), how)
    assert len(sizes) == 4
    x = torch.randn(SPANS.d, generator=torch.Generator().manual_seed(1))
    alone = x.clone()
    cpu.subtract_bodies(x, *given, divisors, float("inf"), None, 0)
    for n, body in enumerate(bodies):
        payload = unpack(Reader(body, "body"), C, SPANS, tw.Key(1, n, 2))
        step = C.values(payload) / float(divisors[n])
        assert float(step.abs().max()) == sizes[n]
        reference.accumulate(alone, payload.index, step, -1.0)
    same(x, alone)


@pytest.mark.parametrize("how", ["plain", "marked", "touched"])
def test_runs_of_any_length_are_read_side_by_side(how: str) -> None:
    spans, C = Spans(("w", "v"), ((40_000,), (30_000,))), tw.TopK(k=201) >> tw.Sign()
    shape = Steps(C, spans, True)._shape
    assert shape is not None
    places = [
        torch.arange(0, 40_000, 199)[:201],
        torch.arange(201),
        torch.tensor([*range(100), *range(29_899, 30_000)]),
        torch.tensor([*range(200), 29_999]),
        torch.arange(29_799, 30_000),
    ]
    bodies = []
    for n, first in enumerate(places):
        u = torch.zeros(spans.d)
        u[first], u[40_000 + places[n - 1] % 30_000] = 1.0, 2.0
        bodies.append(pack(C.compress(u, tw.Key(1, n, 2), spans), C))
    for order in ([0, 1, 2, 3, 4], [1, 0, 3, 2], [3, 4, 1], [2]):
        chosen = [bodies[n] for n in order]
        assert len(both_step((*laid_out(chosen), shape), torch.ones(len(order)), 1e9, how)) == len(
            order
        )
    for n in range(len(bodies[3])):
        chosen = [bodies[0], altered(bodies[3], n, 2 + n % 8), bodies[1]]
        both_step((*laid_out(chosen), shape), torch.ones(3), 1e9, how)


def test_what_goes_too_far_ends_it() -> None:
    C = OPERATORS[0]
    given, one = read(C, bodies_of(C, 3)), torch.ones(3)
    first, second, _ = both_step(given, one, float("inf"), "plain")
    assert both_step(given, one, first + second, "marked") == [first, second]
    assert both_step(given, one, 0.0, "marked") == []


def test_what_does_not_fit_is_refused() -> None:
    C = OPERATORS[0]
    data, ends, shape = read(C, bodies_of(C, 2))
    x, one = torch.zeros(SPANS.d), torch.ones(2)
    for table in (cpu, reference):
        step = table.subtract_bodies
        with pytest.raises(ValueError, match="ascend"):
            step(x, data, ends - 1, shape, one, 9.0, None, 0)
        with pytest.raises(ValueError, match="contiguous"):
            step(x[1:], data, ends, shape, one, 9.0, None, 0)
        with pytest.raises(ValueError, match="touched"):
            step(x, data, ends, shape, one, 9.0, x, 0)
        with pytest.raises(ValueError, match="divisors"):
            step(x, data, ends, shape, one.double(), 9.0, None, 0)
        with pytest.raises(ValueError, match="divisors"):
            step(x, data, ends, shape, one[:1], 9.0, None, 0)
        marked = Marked.over(x, shape.starts)
        with pytest.raises(ValueError, match="marked, or told"):
            step(marked, data, ends, shape, one, 9.0, x.long(), 0)
    with pytest.raises(ValueError, match="units"):
        replace(shape, units=shape.units.float())


def test_a_value_that_is_not_finite_ends_it() -> None:
    C = OPERATORS[0]
    bodies = bodies_of(C, 3)
    at = len(bodies[1]) - shape_of(C).code_bytes - shape_of(C).scale_bytes
    for wrong in (float("inf"), float("nan"), -float("inf")):
        bad = bodies[1][:at] + struct.pack("<f", wrong) + bodies[1][at + 4 :]
        given = read(C, [bodies[0], bad, bodies[2]])
        assert len(both_step(given, torch.ones(3), 1e30, "plain")) == 1
    divisors = torch.tensor([1.0, 1.0, 0.0])
    assert len(both_step(read(C, bodies), divisors, 1e30, "touched")) == 2


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_of_two_pieces_are_that_of_both(first: bytes, second: bytes) -> None:
    both = zlib.crc32(first + second)
    given = zlib.crc32(first), zlib.crc32(second), len(second)
    assert cpu.join_crc(*given) == reference.join_crc(*given) == both
    assert cpu.join_crc(given[0], both, given[2]) == given[1]
