"""Packed codes in Triton: rounding into planes, planes back into codes.

One program takes a block of 4096 codes. It makes each plane's bytes from their codes in
registers, so nothing but the packed bytes is written; a code of several planes is rounded again
for each, which costs less than a vector of codes in memory.
"""

from __future__ import annotations

import torch
import triton.language as tl

from thinwire import host
from thinwire.kernels import checks, cpu_codes
from thinwire.kernels.gpu_support import (
    BLOCK,
    Number,
    Pointer,
    bounds,
    group_of,
    kernel,
    launch,
    programs,
)
from thinwire.kernels.gpu_words import uniform

GIVEN: tl.constexpr = tl.constexpr(0)
"""Where a code comes from: given as int32, the sign, rounded around zero, rounded upwards."""
SIGN: tl.constexpr = tl.constexpr(1)
SIGNED: tl.constexpr = tl.constexpr(2)
UPWARDS: tl.constexpr = tl.constexpr(3)


@kernel
def _code(
    v: Pointer, position: Number, inside: Number, starts: Pointer, low: Number, high: Number,
    scales: Pointer, groups: Number, top: Number, k0: Number, k1: Number, KIND: tl.constexpr,
) -> Number:  # fmt: skip
    """Returns the codes of the entries at these positions, int32."""
    x = tl.load(v + position, mask=inside, other=0)
    if KIND == GIVEN:
        code = x
    elif KIND == SIGN:
        code = (x >= 0).to(tl.int32)
    else:
        g = group_of(starts, low, high, position)
        r = uniform(position, k0, k1)
        a = tl.load(scales + g)
        b = tl.load(scales + groups + g)
        most = top.to(tl.float32)
        # Compiled, a floor takes what is subnormal for 0. Nothing is: r is a whole number of 2**-17
        # above 0, so a sum with it that is not 0 is at least 2**-42.
        if KIND == SIGNED:
            q = tl.floor(x * a * b + r)
            q = tl.minimum(tl.maximum(q, -most), most)
            code = q.to(tl.int32) + top
        else:
            width = tl.load(scales + 2 * groups + g)
            y = tl.div_rn(x * a - b, tl.where(width == 0, 1.0, width))
            y = tl.minimum(tl.maximum(y, 0.0), most)
            y = tl.minimum(tl.floor(y + r), most)
            code = tl.where(width == 0, 0, y.to(tl.int32))
    return code


@kernel
def _put_plane(
    v: Pointer, first: Number, m: Number, starts: Pointer, low: Number, high: Number,
    scales: Pointer, groups: Number, top: Number, k0: Number, k1: Number, to: Pointer,
    KIND: tl.constexpr, P: tl.constexpr, SHIFT: tl.constexpr,
) -> Number:  # fmt: skip
    """Writes one plane of a block and returns where the next one goes."""
    S = (m * P + 7) // 8
    j = tl.arange(0, BLOCK // 8 * P)
    byte = tl.zeros([BLOCK // 8 * P], tl.int32)
    for row in tl.static_range(8 // P):
        i = row * S + j
        inside = (j < S) & (i < m)
        # Positions beyond the block look up the group of one inside.
        position = first + tl.minimum(i, m - 1)
        code = _code(
            v, position, inside, starts, low, high, scales, groups, top, k0, k1, KIND
        )  # fmt: skip
        plane = tl.where(inside, (code >> SHIFT) & ((1 << P) - 1), 0)
        byte = byte | (plane << (P * row))
    tl.store(to + j, byte.to(tl.uint8), mask=j < S)
    return to + S


@kernel
def _put(
    v: Pointer, n: Number, starts: Pointer, bounds: Pointer, scales: Pointer, groups: Number,
    top: Number, k0: Number, k1: Number, out: Pointer, KIND: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    block = tl.program_id(0)
    first = block.to(tl.int64) * BLOCK
    m = tl.minimum(n - first, BLOCK).to(tl.int32)
    low = tl.load(bounds + block)
    high = tl.load(bounds + block + 1)
    to = out + first // 8 * WIDTH
    for whole in tl.static_range(WIDTH // 8):
        to = _put_plane(
            v, first, m, starts, low, high, scales, groups, top, k0, k1, to, KIND, 8, 8 * whole
        )  # fmt: skip
    if WIDTH & 4:
        to = _put_plane(
            v, first, m, starts, low, high, scales, groups, top, k0, k1, to, KIND, 4,
            WIDTH // 8 * 8,
        )  # fmt: skip
    if WIDTH & 2:
        to = _put_plane(
            v, first, m, starts, low, high, scales, groups, top, k0, k1, to, KIND, 2,
            WIDTH // 4 * 4,
        )  # fmt: skip
    if WIDTH & 1:
        to = _put_plane(
            v, first, m, starts, low, high, scales, groups, top, k0, k1, to, KIND, 1,
            WIDTH // 2 * 2,
        )  # fmt: skip


def put(
    v: torch.Tensor,
    starts: torch.Tensor,
    scales: torch.Tensor,
    top: int,
    width: int,
    keys: tuple[int, int],
    kind: tl.constexpr,
) -> torch.Tensor:
    """Packs the codes of v.

    Args:
        v: (n,) float32, or int32 where the codes are given.
        starts: (G + 1,) int64, on the host.
        scales: (c, G) float32, on the host: what `kind` needs of each group.
        top: the largest level.
        width: bits per code.
        keys: of the rounding, as `halves` gives them.
        kind: where codes come from.

    Returns:
        (packed_bytes(n, width),) uint8, on the device.
    """
    n = v.numel()
    out = host.empty(checks.packed_bytes(n, width), torch.uint8, v.device)
    if n:
        cuts = host.send(starts, v.device)
        given = cuts, bounds(cuts, n), host.send(scales, v.device), starts.numel() - 1, top
        launch(
            _put, programs(n, BLOCK.value), v.contiguous(), n, *given, *keys, out,
            KIND=kind.value, WIDTH=width,
        )  # fmt: skip
    return out


def pack(codes: torch.Tensor, width: int) -> torch.Tensor:
    """Agrees bit for bit with `reference.pack`."""
    checks.check_width(width)
    one = host.ints([0, codes.numel()])
    return put(codes, one, host.zeros(1), 0, width, (0, 0), GIVEN)


@kernel
def _plane(at: Pointer, i: Number, m: Number, P: tl.constexpr, SHIFT: tl.constexpr) -> Number:
    S = (m * P + 7) // 8
    byte = tl.load(at + i % S, mask=i < m, other=0).to(tl.int32)
    return ((byte >> (i // S * P)) & ((1 << P) - 1)) << SHIFT


@kernel
def get(packed: Pointer, first: Number, i: Number, m: Number, WIDTH: tl.constexpr) -> Number:
    """Returns codes of one block, int32.

    Args:
        packed: where all codes are.
        first: flat position of the block's first code.
        i: which codes of the block, int32; 0 is answered for those from m on.
        m: codes of the block, int32.
        WIDTH: bits per code.
    """
    at = packed + first // 8 * WIDTH
    code = tl.zeros_like(i)
    for whole in tl.static_range(WIDTH // 8):
        code = code | _plane(at, i, m, 8, 8 * whole)
        at = at + m
    if WIDTH & 4:
        code = code | _plane(at, i, m, 4, WIDTH // 8 * 8)
        at = at + (m * 4 + 7) // 8
    if WIDTH & 2:
        code = code | _plane(at, i, m, 2, WIDTH // 4 * 4)
        at = at + (m * 2 + 7) // 8
    if WIDTH & 1:
        code = code | _plane(at, i, m, 1, WIDTH // 2 * 2)
    return code


@kernel
def _unpack(packed: Pointer, n: Number, out: Pointer, WIDTH: tl.constexpr) -> None:
    first = tl.program_id(0).to(tl.int64) * BLOCK
    m = tl.minimum(n - first, BLOCK).to(tl.int32)
    i = tl.arange(0, BLOCK)
    tl.store(out + first + i, get(packed, first, i, m, WIDTH), mask=i < m)


def unpack(data: torch.Tensor, n: int, width: int) -> torch.Tensor:
    """Agrees bit for bit with `reference.unpack`."""
    checks.check_packed(data, n, width)
    out = host.empty(n, torch.int32, data.device)
    launch(_unpack, programs(n, BLOCK.value), data.contiguous(), n, out, WIDTH=width)
    return out


@kernel
def _largest(packed: Pointer, n: Number, out: Pointer, WIDTH: tl.constexpr) -> None:
    block = tl.program_id(0)
    code = get(packed, block.to(tl.int64) * BLOCK, tl.arange(0, BLOCK), BLOCK, WIDTH)
    tl.store(out + block, tl.max(code, 0))


def largest_code(data: torch.Tensor, n: int, width: int) -> int:
    """Agrees with `reference.largest_code`."""
    checks.check_packed(data, n, width)
    blocks, rest = divmod(n, BLOCK.value)
    # Only the last, shorter block has padding; its few bytes are looked at on the host.
    tail = host.bring(data[checks.packed_bytes(n - rest, width) :])
    last = cpu_codes.largest_code(tail, rest, width)
    if not blocks or last < 0:
        return last
    tops = host.empty(blocks, torch.int32, data.device)
    launch(_largest, blocks, data.contiguous(), n, tops, WIDTH=width)
    return max(last, int(host.bring(tops.max())))
