"""The same work in plain torch, as one would write it without kernels: what ours is beside."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def qsgd(v: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Returns (scale, packed 4-bit codes) of v by its l2 norm.

    Args:
        v: (n,) float32.
        levels: magnitude of the largest code.
    """
    scale = v.norm() / levels
    codes = ((v / scale + torch.rand_like(v)).floor_().clamp_(-levels, levels) + levels).byte()
    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    pairs = codes.view(2, -1)
    return scale, pairs[0] | pairs[1] << 4


def unpack_add(total: Tensor, packed: Tensor, scale: float, levels: int) -> None:
    """Adds what packed 4-bit codes stand for to total, in place."""
    codes = torch.cat([packed & 15, packed >> 4])[: len(total)]
    total += (codes.float() - levels) * scale


def sign(v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (mean magnitude, packed signs) of v."""
    bits = torch.cat([v >= 0, torch.zeros(-len(v) % 8, dtype=torch.bool)]).byte().view(8, -1)
    packed = bits[0].clone()
    for row in range(1, 8):
        packed |= bits[row] << row
    return v.abs().mean(), packed


def topk_each(v: Tensor, starts: Tensor, counts: Tensor) -> list[Tensor]:
    """Returns each group's largest entries, one `torch.topk` a group."""
    groups = zip(pairwise(starts.tolist()), counts.tolist(), strict=True)
    return [torch.topk(v[low:high].abs(), k).indices for (low, high), k in groups]


def step(
    anchor: Tensor,
    params: tuple[Tensor, ...],
    residual: Tensor,
    starts: Tensor,
    counts: Tensor,
    levels: int,
) -> int:
    """Compresses anchor - params + residual, keeps what is not said, and returns the bytes.

    Args:
        anchor: (d,) float32.
        params: d entries in all.
        residual: (d,) float32; changed.
        starts: (T + 1,) int64.
        counts: (T,) int64, entries kept of each tensor.
        levels: magnitude of the largest code.
    """
    u = anchor - torch.cat([p.reshape(-1) for p in params]) + residual
    sent = 0
    for (low, high), index in zip(
        pairwise(starts.tolist()), topk_each(u, starts, counts), strict=True
    ):
        group = u[low:high]
        kept = group[index]
        scale, packed = qsgd(kept, levels)
        sent += 4 * len(index) + len(packed) + 4
        codes = torch.cat([packed & 15, packed >> 4])[: len(kept)]
        group[index] -= (codes.float() - levels) * scale
    residual.copy_(u)
    return sent
