"""Decoding in Triton: codes to values, added where they belong without a vector in between."""

from __future__ import annotations

import torch
import triton.language as tl

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.gpu_codes import get
from thinwire.kernels.gpu_measure import ROWS, fold
from thinwire.kernels.gpu_support import (
    BLOCK,
    LANES,
    TILE,
    Number,
    Pointer,
    bounds,
    group_of,
    kernel,
    launch,
    pieces,
    programs,
)


@kernel
def _values(
    packed: Pointer, first: Number, i: Number, m: Number, g: Number, steps: Pointer,
    groups: Number, WIDTH: tl.constexpr,
) -> Number:  # fmt: skip
    """Returns float32(low + code step) of codes of one block, g their groups."""
    code = get(packed, first, i, m, WIDTH).to(tl.float64)
    return (tl.load(steps + g) + code * tl.load(steps + groups + g)).to(tl.float32)


@kernel
def _decode(
    packed: Pointer, n: Number, starts: Pointer, bounds: Pointer, steps: Pointer, groups: Number,
    to: Pointer, index: Pointer, weight: Number,
    WIDTH: tl.constexpr, ADD: tl.constexpr, INDEXED: tl.constexpr,
) -> None:  # fmt: skip
    part = tl.program_id(0).to(tl.int64) * TILE
    first = part // BLOCK * BLOCK
    m = tl.minimum(n - first, BLOCK).to(tl.int32)
    i = (part - first).to(tl.int32) + tl.arange(0, TILE)
    low = tl.load(bounds + first // BLOCK)
    high = tl.load(bounds + first // BLOCK + 1)
    g = group_of(starts, low, high, first + tl.minimum(i, m - 1))
    x = _values(packed, first, i, m, g, steps, groups, WIDTH)
    place = first + i
    if INDEXED:
        place = tl.load(index + place, mask=i < m, other=0)
    if ADD:
        x = tl.load(to + place, mask=i < m, other=0.0) + x * weight
    tl.store(to + place, x, mask=i < m)


def _decode_to(
    to: torch.Tensor, index: torch.Tensor | None, packed: torch.Tensor, width: int,
    starts: torch.Tensor, lows: torch.Tensor, steps: torch.Tensor, weight: float | None,
) -> None:  # fmt: skip
    n = int(starts[-1])
    if not n:
        return
    cuts = host.send(starts, to.device)
    scales = host.send(torch.stack([lows, steps]), to.device)
    places = to if index is None else index.contiguous()
    launch(
        _decode, programs(n, TILE.value), packed.contiguous(), n, cuts, bounds(cuts, n), scales,
        starts.numel() - 1, to, places, float(host.float_(weight or 0.0)),
        WIDTH=width, ADD=weight is not None, INDEXED=index is not None,
    )  # fmt: skip


def decode(
    packed: torch.Tensor,
    width: int,
    starts: torch.Tensor,
    lows: torch.Tensor,
    steps: torch.Tensor,
) -> torch.Tensor:
    """Agrees bit for bit with `reference.decode`; lows and steps are on the host."""
    checks.check_coded(packed, width, starts, lows, steps)
    out = host.empty(int(starts[-1]), torch.float32, packed.device)
    _decode_to(out, None, packed, width, starts, lows, steps, None)
    return out


def accumulate_codes(
    acc: torch.Tensor,
    index: torch.Tensor | None,
    packed: torch.Tensor,
    width: int,
    starts: torch.Tensor,
    lows: torch.Tensor,
    steps: torch.Tensor,
    weight: float,
) -> None:
    """Agrees bit for bit with `reference.accumulate_codes`; lows and steps are on the host."""
    checks.check_coded(packed, width, starts, lows, steps)
    checks.check_index(index, acc, int(starts[-1]))
    _decode_to(acc, index, packed, width, starts, lows, steps, weight)


@kernel
def _add(
    acc: Pointer, index: Pointer, values: Pointer, n: Number, weight: Number,
    INDEXED: tl.constexpr,
) -> None:  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    place = i
    if INDEXED:
        place = tl.load(index + i, mask=i < n, other=0)
    x = tl.load(values + i, mask=i < n, other=0.0) * weight
    tl.store(acc + place, tl.load(acc + place, mask=i < n, other=0.0) + x, mask=i < n)


def accumulate(
    acc: torch.Tensor, index: torch.Tensor | None, values: torch.Tensor, weight: float
) -> None:
    """Agrees bit for bit with `reference.accumulate`."""
    n = values.numel()
    checks.check_index(index, acc, n)
    places = acc if index is None else index.contiguous()
    launch(
        _add, programs(n, TILE.value), acc, places, values.contiguous(), n,
        float(host.float_(weight)), INDEXED=index is not None,
    )  # fmt: skip


@kernel
def _products(
    v: Pointer, packed: Pointer, n: Number, cut: Pointer, count: Number, steps: Pointer,
    groups: Number, above: Pointer, below: Pointer, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    piece = tl.program_id(0)
    low = tl.load(cut + piece)
    high = tl.load(cut + count + piece)
    g = tl.load(cut + 2 * count + piece)
    lane = tl.arange(0, LANES)
    vx = tl.zeros([LANES], tl.float64)
    xx = tl.zeros([LANES], tl.float64)
    for rows in range(low // LANES * LANES, high, LANES * ROWS):
        for r in tl.static_range(ROWS):
            row = rows + r * LANES
            inside = (row + lane >= low) & (row + lane < high)
            first = row // BLOCK * BLOCK
            # A row beyond the vector reads nothing, and no block is empty.
            m = tl.maximum(tl.minimum(n - first, BLOCK), 1).to(tl.int32)
            i = (row - first).to(tl.int32) + lane
            x = _values(packed, first, i, tl.where(row < high, m, 1), g, steps, groups, WIDTH)
            x = tl.where(inside, x, 0.0).to(tl.float64)
            a = tl.load(v + row + lane, mask=inside, other=0.0).to(tl.float64)
            vx += a * x
            xx += x * x
    tl.store(above + lane.to(tl.int64) * count + piece, vx)
    tl.store(below + lane.to(tl.int64) * count + piece, xx)


def fit(
    v: torch.Tensor,
    packed: torch.Tensor,
    width: int,
    starts: torch.Tensor,
    lows: torch.Tensor,
    steps: torch.Tensor,
) -> torch.Tensor:
    """Agrees bit for bit with `reference.fit`; lows and steps are on the host, and the answer."""
    checks.check_vector(v, starts)
    checks.check_coded(packed, width, starts, lows, steps)
    cut, G = pieces(starts, reference.CHUNK), starts.numel() - 1
    count = cut.shape[1]
    lanes = torch.empty(2, LANES.value * count, dtype=torch.float64, device=v.device)
    sent = host.send(cut, v.device), count, host.send(torch.stack([lows, steps]), v.device), G
    launch(
        _products, count, v.contiguous(), packed.contiguous(), v.numel(), *sent,
        lanes[0], lanes[1], WIDTH=width,
    )  # fmt: skip
    above, below = (fold(part, cut[2], G) for part in lanes)
    quotient = above / torch.where(below == 0, 1.0, below)
    return torch.where(below == 0, 0.0, quotient).to(torch.float32)
