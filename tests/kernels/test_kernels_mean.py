"""What the kernels mean, by witnesses that share no code with either table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, KEY, NAMED, same, some_counts

from thinwire import kernels
from thinwire.kernels import Kernels, cpu

ONE_GROUP_OF_5000 = torch.tensor([0, 5000])
FROM_MINUS_15 = torch.tensor([-15.0]).double(), torch.tensor([1.0]).double()


def noise(n: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def word_by_hand(i: int, k0: int, k1: int) -> int:
    x = (i * 0x9E3779B1 + k0) % 2**32
    x ^= x >> 16
    x = (x * 0x7FEB352D + k1) % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


@pytest.mark.parametrize("key", [(0, 0), KEY, (2**32 - 1, 2**32 - 1)])
def test_words_follow_the_formula_in_plain_integers(table: Kernels, key: tuple[int, int]) -> None:
    expected = [word_by_hand(i, *key) for i in range(300)]
    assert table.words(300, key).tolist() == expected


def test_words_are_uniform_in_every_byte() -> None:
    # Chi-square with 255 degrees of freedom lies in 150..390 with probability above 1 - 1e-6.
    for key in [(0, 0), (0, 1), KEY]:
        drawn = cpu.words(1 << 18, key).numpy()
        for shift in (0, 8, 16, 24):
            seen = np.bincount(drawn >> shift & 255, minlength=256)
            assert 150 < float(((seen - 1024) ** 2 / 1024).sum()) < 390


def test_words_under_unrelated_keys_are_not_correlated() -> None:
    # 120 pairs of near normal z: 6 bounds them all at a confidence above 1 - 1e-6.
    n = 1 << 16
    keys = np.random.default_rng(5).integers(0, 2**32, (16, 2)).tolist()
    rows = np.stack([cpu.words(n, (k0, k1)).numpy() / 2**32 - 0.5 for k0, k1 in keys])
    z = rows @ rows.T * 12 / math.sqrt(n)
    assert float(np.abs(z - np.diag(np.diag(z))).max()) < 6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_first_nonfinite_names_the_first_bad_group(table: Kernels, bad: float) -> None:
    starts = torch.tensor([0, 10, 10, 90, 100])
    for place, group in [(0, 0), (10, 2), (89, 2), (99, 3)]:
        v = noise(100)
        v[place] = bad
        v[99] = math.nan
        assert table.first_nonfinite(v, starts) == group


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sum_is_divided_once_and_its_first_bad_group_named(table: Kernels, bad: float) -> None:
    n = 100_000
    starts = torch.tensor([0, 10, 10, 90_000, n])
    total = noise(n)
    total[:4] = torch.tensor([-0.0, -1e-45, 3e38, -3e38])
    expected = (total.double() / 7).float().numpy() + np.float32(0.0)
    mean = total.clone()
    assert table.divide(mean, 7, starts) == -1
    same(mean, torch.from_numpy(expected))
    assert not bool(torch.signbit(mean[:2]).any())
    for place, group in [(0, 0), (10, 2), (89_999, 2), (n - 1, 3)]:
        broken = total.clone()
        broken[place] = broken[n - 1] = bad
        assert table.divide(broken, 7, starts) == group
        same(broken[4:10], mean[4:10])


def test_topk_keeps_what_torch_topk_keeps() -> None:
    v = noise(5000)
    for k in (1, 50, 2500, 4999):
        expected = torch.topk(v.abs(), k).indices.sort().values
        same(cpu.topk(v, ONE_GROUP_OF_5000, torch.tensor([k])), expected)


@pytest.mark.parametrize(("v", "starts"), CASES)
def test_topk_agrees_with_a_stable_numpy_sort(v: torch.Tensor, starts: torch.Tensor) -> None:
    counts = some_counts(starts, 7)
    expected: list[int] = []
    for lo, hi, k in zip(starts[:-1].tolist(), starts[1:].tolist(), counts.tolist(), strict=True):
        order = np.argsort(-np.abs(v[lo:hi].numpy()), kind="stable")[:k]
        expected += (np.sort(order) + lo).tolist()
    assert cpu.topk(v, starts, counts).tolist() == expected


def test_topk_breaks_ties_by_lower_index(table: Kernels) -> None:
    v = torch.tensor([1.0, -2.0, 2.0, -2.0, 1.0, 2.0])
    kept = [table.topk(v, torch.tensor([0, 6]), torch.tensor([k])).tolist() for k in (2, 5)]
    assert kept == [[1, 2], [0, 1, 2, 3, 5]]


def test_topk_counts_both_zeros_as_equal(table: Kernels) -> None:
    v = torch.tensor([-0.0, 0.0, -0.0, 0.0])
    assert table.topk(v, torch.tensor([0, 4]), torch.tensor([3])).tolist() == [0, 1, 2]


def test_randk_keeps_every_entry_equally_often() -> None:
    # 400 draws of 100 in 1000: each count is binomial, and 6 standard deviations bound them all.
    seen = torch.zeros(1000)
    for k0 in range(400):
        seen[cpu.randk(torch.tensor([0, 1000]), torch.tensor([100]), (k0, 3))] += 1
    assert float((seen - 40).abs().max()) < 6 * math.sqrt(400 * 0.1 * 0.9)


def test_norms_agree_with_exact_sums(table: Kernels) -> None:
    v = noise(1000)
    starts = torch.tensor([0, 1000])
    exact = [float(x) for x in v]
    assert table.norms(v, starts, "l1").item() == np.float32(math.fsum(map(abs, exact)))
    assert table.norms(v, starts, "l2").item() == np.float32(
        math.sqrt(math.fsum(x * x for x in exact))
    )
    assert table.norms(v, starts, "max").item() == max(map(abs, exact))


def test_norms_add_sixty_four_lanes_in_each_chunk_in_order(table: Kernels) -> None:
    n, first = 140_000, 100
    v = noise(n) * torch.exp2(30 * noise(n, 8))
    total = 0.0
    for chunk in range(0, n, 65536):
        lanes = [0.0] * 64
        for i in range(max(chunk, first), min(n, chunk + 65536)):
            lanes[i % 64] += abs(float(v[i]))
        part = 0.0
        for lane in lanes:
            part += lane
        total += part
    starts = torch.tensor([0, first, n])
    assert table.norms(v, starts, "l1")[1].item() == np.float32(total)


def test_norms_of_finite_values_stay_finite(table: Kernels) -> None:
    v = torch.full((100,), 3e38)
    for kind in ("l1", "l2", "max"):
        assert math.isfinite(table.norms(v, torch.tensor([0, 100]), kind).item())


def test_norms_of_empty_groups_are_zero(table: Kernels) -> None:
    starts = torch.tensor([0, 0, 2, 2])
    for kind in ("l1", "l2", "max"):
        assert table.norms(torch.ones(2), starts, kind)[[0, 2]].tolist() == [0, 0]
    for bound in table.extrema(-torch.ones(2), starts):
        assert bound.tolist() == [0, -1, 0]


def test_extrema_answer_a_positive_zero(table: Kernels) -> None:
    for v in (torch.tensor([-0.0, 0.0]), torch.tensor([0.0, -0.0]), torch.tensor([-0.0])):
        for bound in table.extrema(v, torch.tensor([0, v.numel()])):
            assert math.copysign(1, bound.item()) == 1


def signed(packed: torch.Tensor, n: int, levels: int) -> torch.Tensor:
    return cpu.unpack(packed, n, (2 * levels).bit_length()) - levels


@pytest.mark.parametrize("scale", [1.0, 1e-41, 1e-30, 1e37])
@pytest.mark.parametrize("levels", [1, 15])
def test_quantize_is_unbiased(scale: float, levels: int) -> None:
    # Each z is near normal: 5.5 bounds 8 of them at a confidence above 1 - 1e-6.
    n, keys = 1000, 200
    v = noise(n) * scale
    starts = torch.tensor([0, n])
    norm = cpu.norms(v, starts, "max")
    y = v.double() / norm.double() * levels
    total = torch.zeros(n, dtype=torch.float64)
    for k0 in range(keys):
        total += signed(cpu.quantize(v, starts, norm, levels, (k0, 11)), n, levels).double()
    fraction = y.abs() - y.abs().floor()
    spread = (keys * fraction * (1 - fraction)).sum().sqrt()
    assert abs(float(((total - keys * y) * y.sign()).sum() / spread)) < 5.5
    assert float((total / keys - y).abs().max()) < 5.5 * 0.5 / math.sqrt(keys)


def test_quantize_levels_is_unbiased() -> None:
    n, keys, levels = 1000, 200, 15
    v, starts = noise(n), torch.tensor([0, n])
    lo, hi = cpu.extrema(v, starts)
    step = (hi - lo) / levels
    y = (v.double() - lo.double()) / step.double()
    total = torch.zeros(n, dtype=torch.float64)
    for k0 in range(keys):
        packed = cpu.quantize_levels(v, starts, lo, step, levels, (k0, 12))
        total += cpu.unpack(packed, n, 4).double()
    fraction = y - y.floor()
    spread = (keys * fraction * (1 - fraction)).sum().sqrt()
    assert abs(float((total - keys * y).sum() / spread)) < 5.5


def test_quantize_never_moves_a_code_further_than_one(table: Kernels) -> None:
    # The interpreter is slow: a few of them there.
    for _, v, starts in NAMED[:: 15 if table.name == "gpu" else 1]:
        norm = table.norms(v, starts, "max")
        each = norm.repeat_interleave(starts.diff()).double()
        exact = torch.where(each > 0, v.double().abs() / each * 15, 0)
        codes = signed(table.quantize(v, starts, norm, 15, KEY), v.numel(), 15).double()
        assert bool(((codes.abs() - exact).abs() < 1.00001).all())
        assert bool((codes * v >= 0).all())


def test_quantize_answers_zero_for_a_zero_norm(table: Kernels) -> None:
    packed = table.quantize(torch.zeros(3), torch.tensor([0, 3]), torch.zeros(1), 7, KEY)
    assert signed(packed, 3, 7).tolist() == [0, 0, 0]


def test_quantize_levels_covers_the_whole_float32_range(table: Kernels) -> None:
    v = torch.tensor([-3.4e38, 0.0, 3.4e38])
    step = torch.tensor([3.4e38])
    packed = table.quantize_levels(v, torch.tensor([0, 3]), v[:1], step, 2, KEY)
    assert table.unpack(packed, 3, 2).tolist() == [0, 1, 2]


def test_quantize_levels_covers_the_smallest_steps(table: Kernels) -> None:
    unit = 2.0**-149
    v = torch.tensor([0.0, unit, 2 * unit, 3 * unit])
    packed = table.quantize_levels(
        v, torch.tensor([0, 4]), torch.zeros(1), torch.tensor([unit]), 3, KEY
    )
    assert table.unpack(packed, 4, 2).tolist() == [0, 1, 2, 3]


def test_fit_leaves_a_residual_orthogonal_to_the_codes(table: Kernels) -> None:
    v = noise(5000)
    codes = (noise(5000, 9) * 4).clamp(-15, 15).to(torch.int32)
    unit = table.fit(v, table.pack(codes + 15, 5), 5, ONE_GROUP_OF_5000, *FROM_MINUS_15)
    residual = v.double() - unit.double() * codes.double()
    assert abs(float(residual @ codes.double())) < 1e-3


def test_fit_of_codes_that_are_all_zero_is_zero(table: Kernels) -> None:
    packed = table.pack(torch.tensor([15, 15], dtype=torch.int32), 5)
    starts = torch.tensor([0, 2])
    assert table.fit(torch.ones(2), packed, 5, starts, *FROM_MINUS_15).tolist() == [0.0]


def test_signs_call_both_zeros_positive(table: Kernels) -> None:
    packed, _ = table.signs(torch.tensor([0.0, -0.0, 1e-45, -1e-45]), torch.tensor([0, 4]))
    assert table.unpack(packed, 4, 1).tolist() == [1, 1, 1, 0]


def test_hadamard_keeps_lengths_and_comes_back(table: Kernels) -> None:
    v, starts = noise(1100), torch.tensor([0, 1000, 1000, 1001, 1100])
    padded = torch.tensor([0, 1024, 1024, 1025, 1153])
    turned = table.hadamard(v, starts, padded, KEY, False)
    torch.testing.assert_close(
        table.norms(turned, padded, "l2"), table.norms(v, starts, "l2"), rtol=1e-6, atol=0
    )
    back = table.hadamard(turned, starts, padded, KEY, True)
    torch.testing.assert_close(back, v, rtol=0, atol=1e-5)


def test_hadamard_is_the_matrix_of_its_name(table: Kernels) -> None:
    matrix = torch.ones(1, 1)
    for _ in range(5):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    flips = 1.0 - 2.0 * (cpu.words(32, KEY) & 1)
    v, starts = noise(32), torch.tensor([0, 32])
    expected = matrix @ (v * flips) / math.sqrt(32)
    torch.testing.assert_close(table.hadamard(v, starts, starts, KEY, False), expected)


def packed_by_hand(codes: list[int], width: int) -> list[int]:
    out: list[int] = []
    for first in range(0, len(codes), 4096):
        block, shift = codes[first : first + 4096], 0
        for p in [8] * (width // 8) + [q for q in (4, 2, 1) if width & q]:
            size = -(-len(block) * p // 8)
            plane = [0] * size
            for i, code in enumerate(block):
                plane[i % size] |= (code >> shift & (1 << p) - 1) << i // size * p
            out += plane
            shift += p
    return out


@pytest.mark.parametrize("width", range(1, 17))
def test_pack_lays_out_planes_of_blocks(table: Kernels, width: int) -> None:
    codes = (torch.arange(5001, dtype=torch.int32) * 40503) & ((1 << width) - 1)
    assert table.pack(codes, width).tolist() == packed_by_hand(codes.tolist(), width)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.data())
def test_unpack_reads_back_what_pack_wrote(width: int, data: Any) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=60))
    packed = cpu.pack(torch.tensor(codes, dtype=torch.int32), width)
    assert packed.numel() == kernels.packed_bytes(len(codes), width)
    assert 0 <= packed.numel() - math.ceil(len(codes) * width / 8) <= 2
    assert cpu.unpack(packed, len(codes), width).tolist() == codes


def test_unpack_refuses_another_number_of_bytes(table: Kernels) -> None:
    for size in (0, 4, 6):
        with pytest.raises(ValueError, match="need 5 uint8 bytes"):
            table.unpack(torch.zeros(size, dtype=torch.uint8), 10, 4)


def test_accumulate_refuses_indices_outside_the_vector(table: Kernels) -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError):
            table.accumulate(torch.zeros(3), torch.tensor([index]), torch.ones(1), 1.0)
        with pytest.raises(IndexError):
            table.gather(torch.zeros(3), torch.tensor([index]))


def test_layouts_that_do_not_fit_are_refused(table: Kernels) -> None:
    v = torch.ones(4)
    for starts in ([0, 3], [1, 4], [0, 5], [0, 3, 2, 4], []):
        with pytest.raises(ValueError, match="starts"):
            table.norms(v, torch.tensor(starts, dtype=torch.int64), "l2")
    for count in (-1, 5):
        with pytest.raises(ValueError, match="count"):
            table.topk(v, torch.tensor([0, 4]), torch.tensor([count]))
    with pytest.raises(ValueError, match="power of two"):
        table.hadamard(v[:3], torch.tensor([0, 3]), torch.tensor([0, 3]), KEY, False)
    with pytest.raises(ValueError, match="float32"):
        table.topk(v.double(), torch.tensor([0, 4]), torch.tensor([1]))


def test_use_switches_the_table_and_puts_it_back() -> None:
    assert kernels.active().name == "cpu"
    with kernels.use("reference") as table:
        assert kernels.active() is table
        assert table.name == "reference"
    assert kernels.active().name == "cpu"


def test_use_names_the_choices_when_it_refuses() -> None:
    with pytest.raises(ValueError, match="reference, cpu"), kernels.use("fpga"):
        pass


def test_importing_the_kernels_does_not_import_numba() -> None:
    import subprocess
    import sys

    check = "import sys, thinwire.kernels as k; k.Kernels; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
