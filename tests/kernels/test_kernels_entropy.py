"""The entropy coder: the smaller form wins, near the entropy, and any bytes are safe."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_cases import same

from thinwire.kernels import Kernels, cpu, packed_bytes, reference


def octets(data: bytes) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


def drawn(n: int, width: int, power: float, seed: int = 1) -> torch.Tensor:
    """Codes of which the low ones are the more likely, the greater the power."""
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (uniform**power * (1 << width)).to(torch.int32)


def entropy_bytes(codes: torch.Tensor) -> float:
    p = torch.bincount(codes).double() / len(codes)
    return float(-(p * p.clamp(min=1e-300).log2()).sum()) * len(codes) / 8


def check_near_entropy(data: torch.Tensor, codes: torch.Tensor, share: float) -> None:
    """Asserts that the section is within `share` of the codes' entropy, table and states apart."""
    kinds = int((torch.bincount(codes) > 0).sum())
    segments = -(-len(codes) // reference.SEGMENT)
    extra = 1 + 44 * segments + 1 + kinds * (4 + 15 + 17) / 8
    assert entropy_bytes(codes) * 0.999 - 1 < data.numel(), "fewer bytes than there can be"
    assert data.numel() <= (1 + share) * entropy_bytes(codes) + extra, data.numel()


def there_and_back(codes: torch.Tensor, width: int, *tables: Kernels) -> torch.Tensor:
    packed = cpu.pack(codes, width)
    data = cpu.encode_codes(packed, len(codes), width)
    longer = torch.cat([data, octets(b"\7\0")])
    for table in tables:
        back, used, problem = table.decode_codes(longer, len(codes), width, (1 << width) - 1)
        assert (used, problem) == (data.numel(), "")
        assert back is not None
        same(back, packed)
    return data


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 9, 16])
@pytest.mark.parametrize("n", [0, 1, 7, 300, 4095, 4097, 9000])
def test_codes_come_back_and_both_tables_write_the_same(n: int, width: int) -> None:
    for power in (0.0, 1.0, 3.0, 30.0):
        codes = drawn(n, width, power).clamp(max=(1 << width) - 1)
        data = there_and_back(codes, width, cpu, reference)
        same(reference.encode_codes(reference.pack(codes, width), n, width), data)
        assert data.numel() <= 1 + packed_bytes(n, width)


def test_eight_lanes_agree_with_the_definition() -> None:
    for n in (1 << 16, (1 << 16) + 5):
        codes = drawn(n, 3, 4.0)
        data = there_and_back(codes, 3, cpu, reference)
        assert data[0] == reference.AS_ENTROPY
        same(reference.encode_codes(reference.pack(codes, 3), n, 3), data)


@pytest.mark.parametrize(("width", "power"), [(2, 2.0), (2, 9.0), (4, 1.5), (4, 8.0), (8, 2.0)])
def test_a_stream_is_near_the_entropy(width: int, power: float) -> None:
    codes = drawn(200_000, width, power)
    check_near_entropy(there_and_back(codes, width, cpu), codes, 0.002)


@pytest.mark.parametrize("rare", [1e-3, 2e-4])
def test_a_stream_of_nearly_all_zeros_is_near_the_entropy_too(rare: float) -> None:
    n = 2_000_000
    codes = 1 + (drawn(n, 16, 1.0) < rare * 65536) - (drawn(n, 16, 1.0, 2) < rare * 65536).int()
    data = there_and_back(codes.int(), 2, cpu)
    check_near_entropy(data, codes, 0.01)
    assert data.numel() < n / 8 * 0.03


def test_the_entropy_check_notices_too_many_and_too_few_bytes() -> None:
    codes = drawn(100_000, 4, 3.0)
    data = cpu.encode_codes(cpu.pack(codes, 4), len(codes), 4)
    check_near_entropy(data, codes, 0.002)
    with pytest.raises(AssertionError):
        check_near_entropy(torch.cat([data, data[:2000]]), codes, 0.002)
    with pytest.raises(AssertionError, match="can be"):
        check_near_entropy(data[:-2000], codes, 0.002)


def test_packed_codes_stay_where_no_stream_is_shorter(table: Kernels) -> None:
    flat = torch.arange(4096, dtype=torch.int32) % 16
    for codes in (flat, flat[:3]):
        packed = table.pack(codes, 4)
        same(table.encode_codes(packed, len(codes), 4), torch.cat([octets(b"\0"), packed]))
    # Three hundred different codes are more than 256 that a table tells apart.
    many = torch.arange(70_000, dtype=torch.int32) % 300
    assert cpu.encode_codes(cpu.pack(many, 16), 70_000, 16)[0] == reference.AS_PACKED


def test_the_smaller_form_wins_by_a_byte() -> None:
    sizes = {reference.AS_PACKED: 0, reference.AS_ENTROPY: 0}
    for n in range(20, 160):
        codes = drawn(n, 3, 5.0, n)
        packed = cpu.pack(codes, 3)
        coded = reference._entropy_coded(codes.tolist(), 3)
        data = cpu.encode_codes(packed, n, 3)
        best = packed.numel() if coded is None else min(packed.numel(), len(coded))
        assert data.numel() == 1 + best
        sizes[int(data[0])] += 1
    assert min(sizes.values()) > 5


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=16).filter(any), st.integers(8, 16))
def test_shares_are_of_the_whole_and_none_is_lost(counts: list[int], R: int) -> None:
    shares = reference.entropy_shares(counts, R)
    assert sum(shares) == 1 << R
    assert all((share >= 1) == (count > 0) for share, count in zip(shares, counts, strict=True))


def test_shares_stay_at_one_at_least_for_the_most_codes_there_may_be() -> None:
    for R in range(8, 17):
        m = 1 << R // 2
        for counts in ([1] * m, [1] * (m - 1) + [10**9], [1] * (m // 2) + [10**6] * (m - m // 2)):
            shares = reference.entropy_shares(counts, R)
            assert sum(shares) == 1 << R
            assert min(shares) >= 1


CASES = st.sampled_from([(33, 4, 14), (200, 2, 3), (150, 1, 1), (90, 8, 200), (60, 16, 65534)])


def agree(data: torch.Tensor, case: tuple[int, int, int]) -> None:
    """Asserts that both tables decode alike or refuse alike, and only what is sound."""
    n, width, top = case
    packed, used, problem = cpu.decode_codes(data, n, width, top)
    defined, defined_used, defined_problem = reference.decode_codes(data, n, width, top)
    assert (used, problem) == (defined_used, defined_problem)
    assert (packed is None) == bool(problem)
    if packed is not None and defined is not None:
        same(packed, defined)
        assert used <= data.numel()
        assert 0 <= cpu.largest_code(packed, n, width) <= top


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0, 1, 1, 1, 2]), st.binary(max_size=60), CASES)
@example(1, b"\0" + b"\xff" * 40, (33, 4, 14))
def test_any_bytes_are_decoded_alike_or_refused_alike(
    form: int, rest: bytes, case: tuple[int, int, int]
) -> None:
    agree(octets(bytes([form]) + rest), case)
    agree(octets(rest), case)


@settings(max_examples=300, deadline=None)
@given(st.data(), CASES, st.integers(0, 50))
def test_altered_streams_are_decoded_alike_or_refused_alike(
    data: Any, case: tuple[int, int, int], seed: int
) -> None:
    n, width, top = case
    codes = drawn(n, width, 6.0, seed).clamp(max=top)
    stream = bytearray(cpu.encode_codes(cpu.pack(codes, width), n, width).tolist())
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    agree(octets(bytes(stream[: data.draw(st.integers(1, len(stream)))])), case)
    agree(octets(bytes(stream)), case)


def test_a_cut_stream_is_refused_wherever_it_ends(table: Kernels) -> None:
    codes = drawn(300, 4, 6.0)
    data = table.encode_codes(table.pack(codes, 4), 300, 4)
    assert data[0] == reference.AS_ENTROPY
    for size in range(data.numel()):
        answer = table.decode_codes(data[:size], 300, 4, 15)
        assert answer == (None, 0, "code stream ends early")


def test_a_stream_that_ends_in_another_state_is_refused(table: Kernels) -> None:
    codes = drawn(300, 4, 6.0)
    data = table.encode_codes(table.pack(codes, 4), 300, 4)
    problem = "the code stream does not end as it began"
    assert table.decode_codes(data, 299, 4, 15)[2] == problem
    last = data.clone()
    last[-1] ^= 1
    assert table.decode_codes(last, 300, 4, 15)[2] == problem


def test_a_code_above_the_top_is_refused_in_either_form(table: Kernels) -> None:
    for codes in (torch.full((300,), 15, dtype=torch.int32), drawn(9, 4, 1.0) | 15):
        data = table.encode_codes(table.pack(codes, 4), len(codes), 4)
        assert table.decode_codes(data, len(codes), 4, 15)[2] == ""
        assert "above 14" in table.decode_codes(data, len(codes), 4, 14)[2]


def test_the_agreement_check_notices_a_table_of_another_mind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference, "STATE", 1 << 23)
    stream = cpu.encode_codes(cpu.pack(torch.full((300,), 3, dtype=torch.int32), 2), 300, 2)
    with pytest.raises(AssertionError):
        agree(stream, (300, 2, 3))


def test_one_code_alone_costs_a_table_and_a_state(table: Kernels) -> None:
    for n in (1000, 100_000) if table.name == "cpu" else (1000,):
        lanes = reference.entropy_shape(n)[1]
        data = table.encode_codes(table.pack(torch.full((n,), 2, dtype=torch.int32), 2), n, 2)
        assert data.numel() == 1 + 2 + 5 * lanes
    assert math.log2(reference.STATE) == 24
