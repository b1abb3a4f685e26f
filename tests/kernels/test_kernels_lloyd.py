"""Two magnitudes a group: both tables agree, and a brute force finds no much better pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_cases import CASES, same

from thinwire.kernels import Kernels, cpu, reference


@pytest.mark.parametrize(("v", "starts"), CASES)
def test_two_levels_agree(v: torch.Tensor, starts: torch.Tensor) -> None:
    mine, defined = cpu.two_levels(v, starts), reference.two_levels(v, starts)
    for a, b in zip(mine, defined, strict=True):
        same(a, b)
    books = torch.cat([-mine[1], mine[1]], 1)
    looked_up = cpu.look_up(mine[0], 2, starts, books)
    same(looked_up, reference.look_up(mine[0], 2, starts, books))


def test_two_levels_agree_over_chunks() -> None:
    v = torch.randn(200_000, generator=torch.Generator().manual_seed(4))
    starts = torch.tensor([0, 65_000, 65_000, 65_600, 200_000])
    for a, b in zip(cpu.two_levels(v, starts), reference.two_levels(v, starts), strict=True):
        same(a, b)


def lost(v: torch.Tensor, table: Kernels) -> float:
    """Returns ||v - Q(v)||^2 of one group."""
    packed, levels = table.two_levels(v, torch.tensor([0, len(v)]))
    books = torch.cat([-levels, levels], 1)
    said = table.look_up(packed, 2, torch.tensor([0, len(v)]), books)
    return float(((v - said).double() ** 2).sum())


def least(v: torch.Tensor) -> float:
    """The least loss of any two magnitudes: some split of the sorted magnitudes has it."""
    m = np.sort(v.double().abs().numpy())
    splits = [m[:i] for i in range(1, len(m) + 1)], [m[i:] for i in range(1, len(m) + 1)]
    return min(
        sum(float(((part - part.mean()) ** 2).sum()) for part in (low, high) if len(part))
        for low, high in zip(*splits, strict=True)
    )


@pytest.mark.parametrize("seed", range(8))
def test_no_other_pair_is_much_better_on_smooth_values(table: Kernels, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(400, generator=g)
    tail = v[v.abs() > 1]
    for x in (v, tail, torch.rand(300, generator=g) - 0.5):
        assert least(x) * 0.999999 <= lost(x, table) <= 1.03 * least(x)


def test_a_pair_is_never_worse_than_one_magnitude(table: Kernels) -> None:
    for v, starts in ((p.values[0], p.values[1]) for p in CASES):
        if len(starts) == 2 and len(v) and float(v.abs().max()) < 1e18:
            one = float(((v.double().abs() - v.double().abs().mean()) ** 2).sum())
            assert lost(v, table) <= one * (1 + 1e-5) + 1e-90


@pytest.mark.parametrize(
    ("v", "levels", "codes"),
    [
        ([], [0.0, 0.0], []),
        ([-3.0], [3.0, 3.0], [0]),
        ([0.0, -0.0], [0.0, 0.0], [2, 2]),
        ([0.3, -0.3, 0.3], [0.3, 0.3], [2, 0, 2]),
        ([1.0, -5.0], [1.0, 5.0], [2, 1]),
        ([0.0, 0.0, 3e38], [0.0, 3e38], [2, 2, 3]),
        ([3.4e38, -3.4e38], [3.4e38, 3.4e38], None),
        ([1e-45, 0.0], [0.0, 1e-45], [3, 2]),
    ],
)
def test_odd_groups_have_the_levels_one_expects(
    table: Kernels, v: list[float], levels: list[float], codes: list[int] | None
) -> None:
    packed, found = table.two_levels(torch.tensor(v), torch.tensor([0, len(v)]))
    assert found.tolist() == [torch.tensor(levels).tolist()]
    assert codes is None or table.unpack(packed, len(v), 2).tolist() == codes


def test_books_of_another_shape_are_refused(table: Kernels) -> None:
    packed, starts = table.pack(torch.zeros(3, dtype=torch.int32), 2), torch.tensor([0, 3])
    for books in (torch.zeros(1, 3), torch.zeros(2, 4), torch.zeros(1, 4).double()):
        with pytest.raises(ValueError, match="4 float32 values"):
            table.look_up(packed, 2, starts, books)


def test_the_brute_force_finds_two_clusters() -> None:
    assert least(torch.tensor([1.0, -1.0, 5.0, 5.0])) == 0.0
    assert least(torch.tensor([1.0, 2.0, 9.0])) == pytest.approx(0.5)
