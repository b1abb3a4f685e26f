"""Threads share vectors, segments and pieces: no bit changes, and no refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from kernel_cases import KEY, same

from thinwire.kernels import cpu, reference

N = 2 * reference.SEGMENT + 70_001
GENERATOR = torch.Generator().manual_seed(3)
V = torch.randn(N, generator=GENERATOR)
STARTS = torch.tensor([0, 5, 5, 700_000, 700_001, 2_000_000, N])
COUNTS = torch.tensor([2, 0, 300_000, 1, 1_200_000, 60_000])
WIDE = [(1 << (n - 1).bit_length()) if n else 0 for n in STARTS.diff().tolist()]
PADDED = torch.tensor([0, *WIDE]).cumsum(0)
CODES = cpu.pack((V * 2 + 7).round().clamp(0, 14).to(torch.int32), 4)
LOWS = torch.full((6,), -7.0, dtype=torch.float64)
STEPS = torch.full((6,), 0.25, dtype=torch.float64)
CODED = cpu.encode_codes(CODES, N, 4)
INDEX = cpu.randk(STARTS, COUNTS, KEY)
PLACES = cpu.encode_index(INDEX, COUNTS, STARTS)
TURNED = cpu.hadamard(V, STARTS, PADDED, KEY, False)


def added() -> torch.Tensor:
    acc = V.clone()
    cpu.accumulate_codes(acc, None, CODES, 4, STARTS, LOWS, STEPS, 1.0)
    return acc


OPERATIONS: dict[str, Callable[[], Any]] = {
    "norms": lambda: cpu.norms(V, STARTS, "l2"),
    "extrema": lambda: cpu.extrema(V, STARTS),
    "quantize": lambda: cpu.quantize(V, STARTS, cpu.norms(V, STARTS, "max"), 7, KEY),
    "signs": lambda: cpu.signs(V, STARTS),
    "two_levels": lambda: cpu.two_levels(V, STARTS),
    "fit": lambda: cpu.fit(V, CODES, 4, STARTS, LOWS, STEPS),
    "decode": lambda: cpu.decode(CODES, 4, STARTS, LOWS, STEPS),
    "accumulate_codes": added,
    "topk": lambda: cpu.topk(V, STARTS, COUNTS),
    "topk of equals": lambda: cpu.topk(torch.ones(N), STARTS, COUNTS),
    "randk": lambda: cpu.randk(STARTS, COUNTS, KEY),
    "hadamard": lambda: cpu.hadamard(V, STARTS, PADDED, KEY, False),
    "hadamard back": lambda: cpu.hadamard(TURNED, STARTS, PADDED, KEY, True),
    "encode_codes": lambda: cpu.encode_codes(CODES, N, 4),
    "decode_codes": lambda: cpu.decode_codes(CODED, N, 4, 14)[0],
    "encode_index": lambda: cpu.encode_index(INDEX, COUNTS, STARTS),
    "decode_index": lambda: cpu.decode_index(PLACES, COUNTS, STARTS)[0],
}


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_threads_change_no_bit(name: str) -> None:
    alone = OPERATIONS[name]()
    for n in (2, 3):
        with threads(n):
            shared = OPERATIONS[name]()
        for one, other in zip(
            alone if isinstance(alone, tuple) else [alone],
            shared if isinstance(shared, tuple) else [shared],
            strict=True,
        ):
            same(one, other)


def test_rand_k_of_threads_is_that_of_the_definition() -> None:
    same(INDEX, reference.randk(STARTS, COUNTS, KEY))
    assert len(INDEX) > 1 << 20, "the index of these tests must be long enough for threads"


def test_long_streams_of_gaps_are_those_of_the_definition() -> None:
    starts, counts = (
        torch.tensor([0, 500_000, 500_100, 900_000]),
        torch.tensor([140_000, 7, 70_000]),
    )
    index = cpu.randk(starts, counts, KEY)
    for domains in (starts, torch.tensor([0, 900_000])):
        data = cpu.encode_index(index, counts, starts, domains)
        same(data, reference.encode_index(index, counts, starts, domains))
        back, used, problem = reference.decode_index(data, counts, starts, domains)
        assert (used, problem) == (data.numel(), "")
        same(back, index)
        for at in (1, 5, 9, 13, 14, 20_000, data.numel() // 2, data.numel() - 9):
            damaged = data.clone()
            damaged[at] ^= 0x55
            answers = [t.decode_index(damaged, counts, starts, domains) for t in (cpu, reference)]
            assert answers[0][1:] == answers[1][1:], at
        for size in (0, 1, 4, 12, 13, 30_000, data.numel() - 1):
            cut = data[:size]
            answers = [t.decode_index(cut, counts, starts, domains) for t in (cpu, reference)]
            assert answers[0][1:] == answers[1][1:] == (0, "index stream ends early"), size


def test_threads_refuse_as_one_does() -> None:
    draw = torch.Generator().manual_seed(9)
    refused = 0
    for _ in range(60):
        places, codes = PLACES.clone(), CODED.clone()
        for data in (places, codes):
            where = int(torch.randint(len(data), (1,), generator=draw))
            data[where] ^= 1 << int(torch.randint(8, (1,), generator=draw))
        with threads(2):
            many = cpu.decode_index(places, COUNTS, STARTS), cpu.decode_codes(codes, N, 4, 14)
        alone = cpu.decode_index(places, COUNTS, STARTS), cpu.decode_codes(codes, N, 4, 14)
        for a, b in zip(many, alone, strict=True):
            assert a[1:] == b[1:]
            if b[0] is None:
                refused += 1
            else:
                same(a[0], b[0])
    assert refused > 60, "most altered streams are refused"


@pytest.mark.parametrize("where", [26, 30, 34, 400_000])
def test_segments_of_codes_are_refused_alike(where: int) -> None:
    n = reference.SEGMENT + 5000
    data = cpu.encode_codes(cpu.pack(cpu.unpack(CODES, N, 4)[:n], 4), n, 4)
    data[where] ^= 0x11
    assert cpu.decode_codes(data, n, 4, 14)[1:] == reference.decode_codes(data, n, 4, 14)[1:]


def test_segments_of_codes_are_those_of_the_definition() -> None:
    n = reference.SEGMENT + 5000
    packed = cpu.pack(cpu.unpack(CODES, N, 4)[:n], 4)
    data = cpu.encode_codes(packed, n, 4)
    same(data, reference.encode_codes(packed, n, 4))
    back, used, problem = reference.decode_codes(data, n, 4, 14)
    assert (used, problem) == (data.numel(), "")
    same(back, packed)


def test_a_segment_that_is_said_to_be_longer_is_refused_by_its_number() -> None:
    said = [int.from_bytes(CODED[at : at + 4].numpy().tobytes(), "little") for at in range(100)]
    # The first number that could be the bytes of a segment is.
    at = next(at for at, size in enumerate(said) if 300_000 < size < 600_000)
    end = at + 8 + said[at]
    longer = torch.cat([CODED[:end], CODED.new_zeros(2), CODED[end:]])
    longer[at : at + 4] = torch.tensor(list((said[at] + 2).to_bytes(4, "little")))
    problem = cpu.decode_codes(longer, N, 4, 14)[2]
    assert problem == "segment 0 of the codes ends before its words"
