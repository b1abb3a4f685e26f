"""Inputs by name, and the layouts that every kernel is tried on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

KEY = (0x12345678, 0x9ABCDEF0)
SIZES = (0, 1, 7, 1000, 5000)


def _two_valued(n: int, noise: torch.Tensor) -> torch.Tensor:
    return torch.where(noise > 0, 1.5, -0.25)


def _one_huge(n: int, noise: torch.Tensor) -> torch.Tensor:
    v = noise * 1e-3
    v[n // 2 : n // 2 + 1] = -3e38
    return v


def _opposite_huge(n: int, noise: torch.Tensor) -> torch.Tensor:
    v = noise.clone()
    v[:1], v[n - 1 :] = -3.4e38, 3.4e38
    return v


INPUTS: dict[str, Callable[[int, torch.Tensor], torch.Tensor]] = {
    "normal": lambda n, noise: noise,
    "wide": lambda n, noise: noise * torch.exp2(20 * noise),
    "all_zero": lambda n, noise: torch.zeros(n),
    "all_equal": lambda n, noise: torch.full((n,), 0.3),
    "two_valued": _two_valued,
    "one_huge": _one_huge,
    "opposite_huge": _opposite_huge,
    "subnormal": lambda n, noise: noise * 1e-41,
    "negative_zero": lambda n, noise: torch.where(noise > 0.5, noise, torch.tensor(-0.0)),
}


def vector(name: str, n: int) -> torch.Tensor:
    noise = torch.randn(n, generator=torch.Generator().manual_seed(n))
    return INPUTS[name](n, noise).to(torch.float32)


def layouts(n: int) -> dict[str, torch.Tensor]:
    cuts = torch.randint(0, n + 1, (20,), generator=torch.Generator().manual_seed(n + 1))
    edges = torch.cat([torch.tensor([0, n]), cuts, cuts[:3]]).sort().values
    return {
        "one": torch.tensor([0, n]),
        "ragged_with_empty": edges,
        "chunks_of_64": torch.cat([torch.arange(0, n, 64), torch.tensor([n])]),
        "empty_ends": torch.tensor([0, 0, n, n]),
    }


NAMED = [
    (f"{name}-{n}-{layout}", vector(name, n), starts)
    for name in INPUTS
    for n in SIZES
    for layout, starts in layouts(n).items()
]
CASES = [pytest.param(v, starts, id=name) for name, v, starts in NAMED]


def some_counts(starts: torch.Tensor, share: int) -> torch.Tensor:
    """Keeps none, one in `share`, or all of a group, by turns."""
    lengths = starts.diff()
    turn = torch.arange(lengths.numel()) % 5
    part = (lengths + share - 1) // share
    return torch.where(turn == 3, 0, torch.where(turn == 4, lengths, part))


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    """Asserts equal bits, so that -0.0 differs from 0.0."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    raw = {torch.float32: torch.int32}.get(a.dtype, a.dtype)
    assert torch.equal(a.view(raw), b.view(raw))
