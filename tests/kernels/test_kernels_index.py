"""The index codec: exact, never longer than its bound, and safe on any bytes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, KEY, same, some_counts

from thinwire.kernels import Kernels, cpu, index_bytes_bound, reference


def tensor(values: bytes | list[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(list(values), dtype=dtype)


def octets(*values: int) -> torch.Tensor:
    return tensor(bytes(values), torch.uint8)


@st.composite
def chosen(draw: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws groups and some positions in each, from a few in many to all."""
    index, counts, starts = [], [], [0]
    for _ in range(draw(st.integers(0, 4))):
        length = draw(st.sampled_from([0, 1, 2, 3, 8, 9, 100, 700]))
        most = draw(st.sampled_from([0, 1, 3, 40, length]))
        some = draw(st.sets(st.integers(0, length - 1), max_size=most)) if length else set()
        if draw(st.booleans()) and length:
            some = set(range(length)) - some
        index += [starts[-1] + p for p in sorted(some)]
        counts.append(len(some))
        starts.append(starts[-1] + length)
    return tensor(index), tensor(counts), tensor(starts)


@settings(max_examples=150, deadline=None)
@given(chosen(), st.binary(max_size=3))
def test_indices_come_back_and_later_bytes_are_left_alone(
    case: tuple[torch.Tensor, torch.Tensor, torch.Tensor], rest: bytes
) -> None:
    index, counts, starts = case
    data = cpu.encode_index(index, counts, starts)
    same(data, reference.encode_index(index, counts, starts))
    assert data.numel() <= index_bytes_bound(counts, starts)
    longer = torch.cat([data, octets(*rest)])
    for table in (cpu, reference):
        back, used, problem = table.decode_index(longer, counts, starts)
        assert back is not None
        assert (used, problem) == (data.numel(), "")
        same(back, index)


@pytest.mark.parametrize(("v", "starts"), CASES[:40])
def test_encoders_agree_on_what_is_really_selected(v: torch.Tensor, starts: torch.Tensor) -> None:
    for share in (2, 10, 100):
        counts = some_counts(starts, share)
        index = reference.randk(starts, counts, KEY)
        data = reference.encode_index(index, counts, starts)
        same(cpu.encode_index(index, counts, starts), data)
        assert data.numel() <= index_bytes_bound(counts, starts)
        back, used, problem = cpu.decode_index(data, counts, starts)
        assert back is not None
        assert (used, problem) == (data.numel(), "")
        same(back, index)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.integers(1, 3000))
def test_the_rice_parameter_is_the_true_minimum(gaps: list[int], spare: int) -> None:
    positions, at = [], -1
    for gap in gaps:
        at += gap + 1
        positions.append(at)
    counts, starts = tensor([len(gaps)]), tensor([0, at + 1 + spare])
    best = min(sum((gap >> b) + 1 + b for gap in gaps) for b in range(32))
    best = min(best, at + 1 + spare, len(gaps) * max(1, (at + spare).bit_length()))
    assert cpu.encode_index(tensor(positions), counts, starts).numel() == 1 + (best + 7) // 8


SHARES = (1e-4, 1e-3, 1e-2, 1 / 64, 0.02, 0.03, 0.05, 0.0575, 0.08, 0.1)


def check_near_entropy(data: torch.Tensor, n: int, k: int) -> None:
    """Asserts that a section takes at most 3 % more than log2 C(n, k) bits."""
    entropy = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
    assert entropy <= 8 * data.numel() <= 1.03 * entropy, 8 * data.numel() / entropy
    assert data.numel() <= 1 + (k * (n - 1).bit_length() + 7) // 8


def near_entropy(n: int) -> None:
    for share in SHARES:
        k = int(n * share)
        counts, starts = tensor([k]), tensor([0, n])
        index = cpu.randk(starts, counts, KEY)
        check_near_entropy(cpu.encode_index(index, counts, starts), n, k)


def test_uniform_positions_cost_within_three_percent_of_their_entropy() -> None:
    near_entropy(1_000_000)


@pytest.mark.slow
def test_uniform_positions_of_resnet50_cost_within_three_percent_of_their_entropy() -> None:
    near_entropy(25_557_032)


def test_the_entropy_check_notices_four_percent_and_too_little() -> None:
    counts, starts = tensor([10_000]), tensor([0, 1_000_000])
    data = cpu.encode_index(cpu.randk(starts, counts, KEY), counts, starts)
    check_near_entropy(data, 1_000_000, 10_000)
    for size in (int(data.numel() * 0.99), int(data.numel() * 1.03)):
        with pytest.raises(AssertionError):
            check_near_entropy(data.new_zeros(size), 1_000_000, 10_000)


@settings(max_examples=150, deadline=None)
@given(chosen(), st.integers(0, 15))
def test_a_section_is_never_above_fixed_width(
    case: tuple[torch.Tensor, torch.Tensor, torch.Tensor], joined: int
) -> None:
    index, counts, starts = case
    # Some of the groups are joined into one domain, whose chunks they then are.
    inner = [int(s) for i, s in enumerate(starts[1:-1]) if not joined >> i & 1]
    domains = tensor([0, *inner, *starts[-1:].tolist()]) if len(starts) > 1 else starts
    data = cpu.encode_index(index, counts, starts, domains)
    same(data, reference.encode_index(index, counts, starts, domains))
    assert data.numel() <= index_bytes_bound(counts, starts, domains)
    for table in (cpu, reference):
        back, used, problem = table.decode_index(data, counts, starts, domains)
        assert back is not None
        assert (used, problem) == (data.numel(), "")
        same(back, index)
    widths = [(length - 1).bit_length() if length else 0 for length in starts.diff().tolist()]
    fixed = sum(k * width for k, width in zip(counts.tolist(), widths, strict=True))
    assert data.numel() <= 2 * (len(domains) - 1) + (fixed + 7) // 8


def test_positions_inside_chunks_win_where_chunks_keep_one_or_two() -> None:
    n, chunk = 1 << 20, 4096
    starts, domains = torch.arange(0, n + 1, chunk), tensor([0, n])
    for k, code in ((1, reference.FIXED), (2, reference.FIXED), (8, reference.RICE)):
        counts = torch.full((n // chunk,), k)
        index = cpu.randk(starts, counts, KEY)
        data = cpu.encode_index(index, counts, starts, domains)
        assert int(data[0]) & 7 == code
        if code == reference.FIXED:
            assert data.numel() == 1 + 12 * k * (n // chunk) // 8
        back, _, _ = cpu.decode_index(data, counts, starts, domains)
        assert back is not None
        same(back, index)


def test_a_domain_that_cuts_a_group_is_refused(table: Kernels) -> None:
    counts, starts = tensor([1, 1]), tensor([0, 8, 16])
    for domains in ([0, 7, 16], [0, 15], [1, 16], [0, 16, 8]):
        with pytest.raises(ValueError, match=r"domain must start|starts must ascend"):
            table.encode_index(tensor([1, 9]), counts, starts, tensor(domains))
        with pytest.raises(ValueError, match=r"domain must start|starts must ascend"):
            table.decode_index(octets(2, 0), counts, starts, tensor(domains))


@pytest.mark.parametrize(
    ("positions", "length", "code"),
    [
        ([], 9, reference.ALL_OR_NONE),
        ([0, 1, 2], 3, reference.ALL_OR_NONE),
        ([1, 3, 5, 7, 9, 11, 13, 15], 16, reference.BITMAP),
        ([900], 1000, reference.FIXED),
        ([0, 30, 60, 90], 1000, reference.RICE),
        ([1], 2, reference.FIXED),
    ],
)
def test_each_code_is_chosen_where_it_is_shortest(
    table: Kernels, positions: list[int], length: int, code: int
) -> None:
    data = table.encode_index(tensor(positions), tensor([len(positions)]), tensor([0, length]))
    assert int(data[0]) & 7 == code


def test_a_tie_goes_to_the_lower_code(table: Kernels) -> None:
    # A bitmap takes 4 bits here, fixed width twice 2, and Rice with b = 0 one and a zero, twice.
    assert int(table.encode_index(tensor([1, 3]), tensor([2]), tensor([0, 4]))[0]) == 1


REFUSED = [
    ("index stream ends early", [], 2, 9),
    ("index stream ends early", [1, 0], 2, 9),
    ("index stream ends early", [2], 2, 9),
    ("index stream ends early", [3], 2, 9),
    ("index stream ends early", [3, 0b11110], 6, 900),
    ("index stream ends early", [3 | 9 << 3, 0], 2, 9),
    ("unknown index code 6", [6, 0], 2, 9),
    ("unknown index code 4", [0xFC], 2, 9),
    ("index tag 9 has unused bits set", [9, 0, 0], 2, 9),
    ("all-or-none code for 2 positions in a group of 9", [0], 2, 9),
    ("bitmap holds 3 ones, expected 2", [1, 7, 0], 2, 9),
    ("bitmap holds 1 ones, expected 2", [1, 1, 0], 2, 9),
    ("bitmap holds 1 ones, expected 2", [1, 1, 2], 2, 9),
    ("padding bits are not zero", [1, 3, 2], 2, 9),
    ("position 15 outside a group of 9", [2, 0xFF], 2, 9),
    ("index stream ends early", [3, *b"\xff" * 9], 2, 900),
    ("a gap runs past a group of 70", [3, *b"\xff" * 9], 2, 70),
    ("positions do not ascend", [2, 0x11], 2, 9),
    ("positions do not ascend", [2, 0x12], 2, 9),
    ("padding bits are not zero", [2, 0x83, 0x10], 2, 17),
    ("a gap runs past a group of 9", [3, 0xFF, 0xFF], 2, 9),
    ("a gap runs past a group of 9", [3 | 31 << 3, 0xFF, 0xFF], 2, 9),
    ("position 9 outside a group of 9", [3, 0xFF, 0x01], 2, 9),
    ("padding bits are not zero", [3, 0x80], 2, 9),
]


@pytest.mark.parametrize(("problem", "data", "k", "length"), REFUSED)
def test_a_broken_stream_is_refused_in_words(
    table: Kernels, problem: str, data: list[int], k: int, length: int
) -> None:
    answer = table.decode_index(octets(*data), tensor([k]), tensor([0, length]))
    assert answer == (None, 0, problem)


def test_a_second_group_is_refused_where_the_first_was_fine(table: Kernels) -> None:
    counts, starts = tensor([2, 1]), tensor([0, 9, 12])
    assert table.decode_index(octets(3, 6), counts, starts)[2] == "index stream ends early"
    assert table.decode_index(octets(3, 6, 7), counts, starts)[2] == "unknown index code 7"


def test_positions_in_another_chunk_than_the_counts_say_are_refused(table: Kernels) -> None:
    counts, starts, domains = tensor([1, 1]), tensor([0, 8, 16]), tensor([0, 16])
    for stream, p in ((octets(1, 3, 0), 1), (octets(1, 0, 3), 8), (octets(3, 0), 1)):
        problem = f"position {p} lies in another chunk than the counts say"
        assert table.decode_index(stream, counts, starts, domains) == (None, 0, problem)
        assert table.decode_index(stream, tensor([2]), domains)[2] == ""


def test_indices_that_do_not_ascend_are_not_encoded(table: Kernels) -> None:
    counts, starts = tensor([0, 2]), tensor([0, 5, 10])
    for index in ([4, 6], [6, 6], [7, 6], [6, 10], [-1, 6]):
        with pytest.raises(ValueError, match="ascend"):
            table.encode_index(tensor(index), counts, starts)
    with pytest.raises(ValueError, match="add up"):
        table.encode_index(tensor([6]), counts, starts)


TAGS = st.sampled_from([0, 1, 2, 3, 3 | 1 << 3, 3 | 5 << 3, 3 | 31 << 3, 9, 255])


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(TAGS, st.binary(max_size=6)), max_size=4),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), max_size=3),
    st.booleans(),
)
@example([(3, b"\xff" * 6)], [(1, 40)], False)
@example([(3 | 31 << 3, b"\xff" * 6)], [(12, 12)], True)
def test_any_bytes_are_decoded_alike_or_refused_alike(
    parts: list[tuple[int, bytes]], groups: list[tuple[int, int]], joined: bool
) -> None:
    data = octets(*b"".join(bytes([tag]) + stream for tag, stream in parts))
    counts = tensor([min(k, length) for k, length in groups])
    starts = tensor([0, *(length for _, length in groups)]).cumsum(0)
    domains = starts[[0, -1]] if joined else starts
    given = data, counts, starts, domains
    index, used, problem = cpu.decode_index(*given)
    defined, defined_used, defined_problem = reference.decode_index(*given)
    assert (used, problem) == (defined_used, defined_problem)
    if problem:
        assert index is None
        assert used == 0
        return
    assert index is not None
    assert defined is not None
    same(index, defined)
    assert 0 <= used <= data.numel()
    # Encoding checks that positions ascend within their groups.
    most = index_bytes_bound(counts, starts, domains)
    assert cpu.encode_index(index, counts, starts, domains).numel() <= most


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 30))
def test_any_bytes_at_all_are_safe(garbage: bytes, k: int) -> None:
    counts, starts = tensor([k, k]), tensor([0, 30, 1 << 31])
    answer = cpu.decode_index(octets(*garbage), counts, starts)
    if not answer[2]:
        assert answer[0] is not None
        assert answer[0].numel() == 2 * k


def test_a_cut_stream_is_always_refused(table: Kernels) -> None:
    starts = tensor([0, 700, 800, 1000])
    counts = tensor([20, 50, 1])
    index = cpu.randk(starts, counts, KEY)
    data = cpu.encode_index(index, counts, starts)
    for size in range(data.numel()):
        assert table.decode_index(data[:size], counts, starts)[2] == "index stream ends early"
