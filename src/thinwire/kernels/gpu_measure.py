"""Measures of each group in Triton: norms, extrema, and whether everything is finite.

Sums have the order of `reference.norms`: a program takes the 64 lanes of one chunk, a second
kernel adds the lanes from 0 to 63, and the host adds the few chunks. So they agree bit for bit.
"""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.gpu_support import (
    LANES,
    SPAN,
    TILE,
    Number,
    Pointer,
    kernel,
    launch,
    pieces,
    programs,
)

ROWS: tl.constexpr = tl.constexpr(8)
"""Rows of lanes whose loads are under way at the same time."""
_INFINITY: tl.constexpr = tl.constexpr(0x7F800000)
_MAGNITUDE: tl.constexpr = tl.constexpr(reference.MAGNITUDE)


@kernel
def _first_bad(u: Pointer, n: Number, out: Pointer) -> None:
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    bits = tl.load(u + i, mask=i < n, other=0.0).to(tl.int32, bitcast=True)
    bad = (bits & _MAGNITUDE) >= _INFINITY
    tl.store(out + tl.program_id(0), tl.min(tl.where(bad, i, n), 0))


def first_nonfinite(u: torch.Tensor, starts: torch.Tensor) -> int:
    """Agrees with `reference.first_nonfinite`."""
    checks.check_vector(u, starts)
    n = u.numel()
    if not n:
        return -1
    firsts = host.empty(programs(n, TILE.value), torch.int64, u.device)
    launch(_first_bad, firsts.numel(), u.contiguous(), n, firsts)
    first = int(host.bring(firsts.min()))
    return int(torch.searchsorted(starts, first, right=True)) - 1 if first < n else -1


def divide(total: torch.Tensor, count: int, starts: torch.Tensor) -> int:
    """Agrees bit for bit with `reference.divide`."""
    total.div_(total.new_full((), count)).add_(0.0)
    return first_nonfinite(total, starts)


@kernel
def _lanes(v: Pointer, cut: Pointer, count: Number, out: Pointer, SQUARED: tl.constexpr) -> None:
    piece = tl.program_id(0)
    low = tl.load(cut + piece)
    high = tl.load(cut + count + piece)
    lane = tl.arange(0, LANES)
    total = tl.zeros([LANES], tl.float64)
    for row in range(low // LANES * LANES, high, LANES * ROWS):
        for r in tl.static_range(ROWS):
            i = row + r * LANES + lane
            x = tl.load(v + i, mask=(i >= low) & (i < high), other=0.0).to(tl.float64)
            total += x * x if SQUARED else tl.abs(x)
    tl.store(out + lane.to(tl.int64) * count + piece, total)


@kernel
def _add_lanes(lanes: Pointer, count: Number, out: Pointer) -> None:
    piece = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.float64)
    at = lanes + piece
    for _ in range(LANES):
        total += tl.load(at, mask=piece < count, other=0.0)
        at += count
    tl.store(out + piece, total, mask=piece < count)


def fold(lanes: torch.Tensor, groups: torch.Tensor, G: int) -> torch.Tensor:
    """Adds the lanes of each piece in order, then the pieces of each group in order.

    Args:
        lanes: (64, P) float64, on the device.
        groups: (P,) int64, the group of each piece, on the host.
        G: groups in all.

    Returns:
        (G,) float64, on the host.
    """
    count = groups.numel()
    parts = host.empty(count, torch.float64, lanes.device)
    launch(_add_lanes, programs(count, TILE.value), lanes, count, parts)
    # A count of weighted bins adds each weight in its turn.
    total = np.bincount(groups.numpy(), host.bring(parts).numpy(), minlength=G)
    return torch.from_numpy(total.astype(np.float64))


def norms(v: torch.Tensor, starts: torch.Tensor, kind: str) -> torch.Tensor:
    """Agrees bit for bit with `reference.norms`; answers on the host."""
    checks.check_vector(v, starts)
    checks.check_kind(kind)
    if kind == "max":
        low, high = extrema(v, starts)
        return torch.maximum(-low, high) + 0.0
    cut = pieces(starts, reference.CHUNK)
    count = cut.shape[1]
    lanes = host.empty(LANES.value * count, torch.float64, v.device)
    sent = host.send(cut, v.device)
    launch(_lanes, count, v.contiguous(), sent, count, lanes, SQUARED=kind == "l2")
    total = fold(lanes, cut[2], starts.numel() - 1)
    return reference.float32(total.sqrt() if kind == "l2" else total)


@kernel
def _extremes(v: Pointer, cut: Pointer, count: Number, lows: Pointer, highs: Pointer) -> None:
    piece = tl.program_id(0)
    low = tl.load(cut + piece)
    high = tl.load(cut + count + piece)
    least = tl.full([TILE], float("inf"), tl.float32)
    greatest = tl.full([TILE], float("-inf"), tl.float32)
    for at in range(low, high, TILE):
        i = at + tl.arange(0, TILE)
        x = tl.load(v + i, mask=i < high, other=float("inf"))
        least = tl.minimum(least, x)
        greatest = tl.maximum(greatest, tl.where(i < high, x, float("-inf")))
    tl.store(lows + piece, tl.min(least, 0))
    tl.store(highs + piece, tl.max(greatest, 0))


def extrema(v: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.extrema`; answers on the host."""
    checks.check_vector(v, starts)
    cut = pieces(starts, SPAN)
    count = cut.shape[1]
    found = torch.empty(2, count, dtype=torch.float32, device=v.device)
    sent = host.send(cut, v.device)
    launch(_extremes, count, v.contiguous(), sent, count, found[0], found[1])
    lows, highs = host.bring(found)
    zeros = host.zeros(starts.numel() - 1)
    low = zeros.scatter_reduce(0, cut[2], lows, "amin", include_self=False)
    high = zeros.scatter_reduce(0, cut[2], highs, "amax", include_self=False)
    # Adding +0.0 turns -0.0 into +0.0.
    return low + 0.0, high + 0.0
