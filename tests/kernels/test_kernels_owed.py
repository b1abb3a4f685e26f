"""What is owed: formed nowhere, and the same bits as if it had been."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import same

from thinwire.kernels import Owed, cpu, reference

SIZES = [(0,), (5, 0, 7), (5000, 3, 9000), (70_000,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def owed(sizes: tuple[int, ...], dtype: torch.dtype, scale: float, decay: float | None) -> Owed:
    g = torch.Generator().manual_seed(sum(sizes))
    anchor = torch.randn(sum(sizes), generator=g) * scale
    params = [p + 0.01 * scale * torch.randn(p.shape, generator=g) for p in anchor.split(sizes)]
    residual = torch.randn(len(anchor), generator=g) * 0.01 * scale
    held = tuple(p.to(dtype) for p in params)
    return Owed(anchor, held, None if decay is None else residual, decay or 1.0)


def kept(sizes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    counts = [n // 50 if n > 60 else n // 2 for n in sizes]
    return torch.tensor([0, *sizes]).cumsum(0), torch.tensor(counts)


@pytest.mark.parametrize("decay", [None, 1.0, 0.95])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4, 1e-40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_what_is_owed_agrees(
    sizes: tuple[int, ...], dtype: torch.dtype, scale: float, decay: float | None
) -> None:
    source = owed(sizes, dtype, scale, decay)
    same(cpu.owe(source), reference.owe(source))
    index, values = cpu.pick(source, *kept(sizes))
    defined = reference.pick(source, *kept(sizes))
    same(index, defined[0])
    same(values, defined[1])
    if decay is not None:
        settled = [owed(sizes, dtype, scale, decay) for _ in range(2)]
        cpu.settle(settled[0], index, values * 0.5)
        reference.settle(settled[1], index, values * 0.5)
        same(settled[0].residual, settled[1].residual)


def test_every_float16_is_widened_as_torch_does() -> None:
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    halves = halves[halves.isfinite()]
    source = Owed(torch.zeros(len(halves)), (halves,))
    same(cpu.owe(source), reference.owe(source))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_float32_is_narrowed_as_torch_does(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    drawn = torch.randint(0, 2**31 - 1, (200_000,), dtype=torch.int32, generator=g)
    ties = torch.arange(0, 2**31 - 1, 1 << 12, dtype=torch.int64).to(torch.int32)
    x = torch.cat([drawn, ties]).view(torch.float32)
    x = x[x.isfinite() & (x.abs() < 60000)]
    source = Owed(x, (torch.zeros(len(x), dtype=dtype),))
    same(cpu.owe(source), reference.owe(source))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sums_taken_where_the_parameters_lie_agree(sizes: tuple[int, ...]) -> None:
    mine, defined = (owed(sizes, torch.float32, 1.0, None) for _ in range(2))
    index, values = reference.pick(mine, *kept(sizes))
    cpu.scatter(mine.params, index, values)
    reference.scatter(defined.params, index, values)
    cpu.land(mine.anchor, mine.params, 3, 0.7)
    reference.land(defined.anchor, defined.params, 3, 0.7)
    same(mine.anchor, defined.anchor)
    for p, at, low in zip(mine.params, defined.params, kept(sizes)[0], strict=False):
        same(p, at)
        same(p, mine.anchor[low : low + len(p)])


def test_a_tensor_that_is_not_contiguous_is_read_all_the_same() -> None:
    p = torch.arange(12.0).view(3, 4).t()
    source = Owed(torch.zeros(12), (p,))
    assert cpu.owe(source).tolist() == (-p.reshape(-1)).tolist()
    with pytest.raises(ValueError, match="contiguous"):
        cpu.scatter((p,), torch.tensor([0]), torch.ones(1))


@pytest.mark.parametrize("table", [cpu, reference], ids=["cpu", "reference"])
def test_what_does_not_fit_together_is_refused(table: object) -> None:
    a = torch.zeros(4)
    for source, says in (
        (Owed(a, (torch.zeros(3),)), "3 entries, not 4"),
        (Owed(a, (torch.zeros(4),), torch.zeros(3)), "one length"),
        (Owed(a.double(), (torch.zeros(4),)), "float32"),
        (Owed(a, (torch.zeros(4).double(),)), "float32, bfloat16 or float16"),
        (Owed(torch.zeros(8)[::2], (torch.zeros(4),)), "contiguous"),
    ):
        with pytest.raises(ValueError, match=says):
            table.owe(source)
    with pytest.raises(IndexError):
        table.scatter((torch.zeros(2),), torch.tensor([2]), torch.ones(1))
