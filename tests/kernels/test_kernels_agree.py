"""The fast table agrees with the definition bit for bit, on every layout and every odd input."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import CASES, KEY, SIZES, same, some_counts

from thinwire import host
from thinwire.kernels import cpu, reference

cases = pytest.mark.parametrize(("v", "starts"), CASES)


@pytest.mark.parametrize("n", SIZES)
def test_words_agree(n: int) -> None:
    same(cpu.words(n, KEY), reference.words(n, KEY))


@cases
def test_selections_agree(v: torch.Tensor, starts: torch.Tensor) -> None:
    for share in (1, 2, 50):
        counts = some_counts(starts, share)
        same(cpu.topk(v, starts, counts), reference.topk(v, starts, counts))
        same(cpu.randk(starts, counts, KEY), reference.randk(starts, counts, KEY))


@pytest.mark.parametrize("n", [4095, 4096, 65535, 65536, 200_000])
@pytest.mark.parametrize("distinct", [1, 2, 300, 1 << 30])
def test_selections_agree_for_every_size_of_histogram(n: int, distinct: int) -> None:
    drawn = torch.randint(0, distinct, (n,), generator=torch.Generator().manual_seed(n))
    v = (drawn * 3).to(torch.int32).view(torch.float32).nan_to_num(0.5)
    starts = torch.tensor([0, n])
    for k in (1, n // 100, n // 2, n - 1):
        counts = torch.tensor([k])
        same(cpu.topk(v, starts, counts), reference.topk(v, starts, counts))
        same(cpu.randk(starts, counts, KEY), reference.randk(starts, counts, KEY))


@cases
def test_measures_agree(v: torch.Tensor, starts: torch.Tensor) -> None:
    for kind in ("l1", "l2", "max"):
        same(cpu.norms(v, starts, kind), reference.norms(v, starts, kind))
    for mine, defined in zip(cpu.extrema(v, starts), reference.extrema(v, starts), strict=True):
        same(mine, defined)
    assert cpu.first_nonfinite(v, starts) == reference.first_nonfinite(v, starts) == -1
    mine, defined = v.clone(), v.clone()
    assert cpu.divide(mine, 3, starts) == reference.divide(defined, 3, starts) == -1
    same(mine, defined)


@cases
def test_quantizers_agree(v: torch.Tensor, starts: torch.Tensor) -> None:
    for kind in ("l1", "l2", "max"):
        norm = reference.norms(v, starts, kind)
        for levels in (1, 15, 32767):
            packed = reference.quantize(v, starts, norm, levels, KEY)
            same(cpu.quantize(v, starts, norm, levels, KEY), packed)
            units = norm.double()
            agree_on_codes(v, packed, 2 * levels, starts, -levels * units, units)
    lo, hi = reference.extrema(v, starts)
    for levels in (1, 15, 65535):
        step = (hi / levels - lo / levels).clamp(max=host.LARGEST)
        packed = reference.quantize_levels(v, starts, lo, step, levels, KEY)
        same(cpu.quantize_levels(v, starts, lo, step, levels, KEY), packed)
        agree_on_codes(v, packed, levels, starts, lo.double(), step.double())
    for ours, theirs in zip(cpu.signs(v, starts), reference.signs(v, starts), strict=True):
        same(ours, theirs)


def agree_on_codes(
    v: torch.Tensor,
    packed: torch.Tensor,
    top: int,
    starts: torch.Tensor,
    lows: torch.Tensor,
    steps: torch.Tensor,
) -> None:
    coded = packed, top.bit_length(), starts, lows, steps
    same(cpu.fit(v, *coded), reference.fit(v, *coded))
    same(cpu.decode(*coded), reference.decode(*coded))
    largest = cpu.largest_code(packed, v.numel(), top.bit_length())
    assert largest == reference.largest_code(packed, v.numel(), top.bit_length())
    assert 0 <= largest <= top
    for index, weight in ((None, 1.0), (None, -0.3), (torch.arange(v.numel()), 0.7)):
        mine, defined = v.clone(), v.clone()
        cpu.accumulate_codes(mine, index, *coded, weight)
        reference.accumulate_codes(defined, index, *coded, weight)
        same(mine, defined)


def test_decoding_agrees_for_any_scales_a_frame_may_hold() -> None:
    drawn = torch.Generator().manual_seed(9)
    starts = torch.tensor([0, 100, 5000])
    for width in (1, 2, 3, 4, 8, 16):
        packed = reference.pack(
            torch.randint(0, 1 << width, (5000,), generator=drawn, dtype=torch.int32), width
        )
        for low in (-3.0, 0.0, -0.0, 0.1, -3.4e38):
            for step in (1.0, -1.0, 0.0, -0.0, 0.1, 1e-45, 3.4e38):
                lows = torch.tensor([low, -7 * step], dtype=torch.float64)
                steps = torch.tensor([step, step], dtype=torch.float64)
                same(
                    cpu.decode(packed, width, starts, lows, steps),
                    reference.decode(packed, width, starts, lows, steps),
                )


@cases
def test_rotations_agree(v: torch.Tensor, starts: torch.Tensor) -> None:
    # Sums of the huge inputs overflow in the definition too, and a NaN has no defined bits.
    v = v.clamp(-1e30, 1e30)
    sizes = [
        0 if length == 0 else 1 << (length - 1).bit_length() for length in starts.diff().tolist()
    ]
    padded = torch.tensor([0, *sizes]).cumsum(0)
    turned = reference.hadamard(v, starts, padded, KEY, False)
    same(cpu.hadamard(v, starts, padded, KEY, False), turned)
    back = reference.hadamard(turned, starts, padded, KEY, True)
    same(cpu.hadamard(turned, starts, padded, KEY, True), back)


@pytest.mark.parametrize("width", range(1, 17))
@pytest.mark.parametrize("n", [*range(10), 1000, 4096, 5003, 8192])
def test_packing_agrees(n: int, width: int) -> None:
    drawn = torch.Generator().manual_seed(n)
    codes = torch.randint(0, 1 << width, (n,), generator=drawn, dtype=torch.int32)
    data = reference.pack(codes, width)
    same(cpu.pack(codes, width), data)
    same(cpu.pack(codes | -(1 << width), width), data)
    same(reference.unpack(data, n, width), codes)
    same(cpu.unpack(data, n, width), codes)


def test_packing_reads_bytes_at_any_offset() -> None:
    codes = torch.arange(100, dtype=torch.int32)
    for width in (7, 8, 16):
        data = torch.cat([torch.zeros(3, dtype=torch.uint8), reference.pack(codes, width)])
        same(cpu.unpack(data[3:], 100, width), codes)


@cases
def test_accumulation_agrees(v: torch.Tensor, starts: torch.Tensor) -> None:
    index = reference.topk(v, starts, some_counts(starts, 10))
    mine, defined = v.clone(), v.clone()
    same(cpu.gather(v, index), reference.gather(v, index))
    for weight in (1.0, -1.0, 0.3):
        cpu.accumulate(mine, index, v[index], weight)
        reference.accumulate(defined, index, v[index], weight)
        same(mine, defined)
        cpu.accumulate(mine, None, v, weight)
        reference.accumulate(defined, None, v, weight)
        same(mine, defined)


def test_strided_inputs_give_the_same_bits_as_contiguous_ones() -> None:
    v = torch.randn(2000, generator=torch.Generator().manual_seed(3))
    starts, counts = torch.tensor([0, 1000]), torch.tensor([50])
    same(cpu.topk(v[::2], starts, counts), reference.topk(v[::2].clone(), starts, counts))
