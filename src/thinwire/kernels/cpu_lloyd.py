"""Two magnitudes a group in Numba: Lloyd's iteration over lanes, and codes that stand for values.

Sums have the order of `thinwire.kernels.cpu_measure`, so chunks may be summed at the same time.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.cpu_codes import block_bytes, get_block, put_block
from thinwire.kernels.cpu_measure import next_piece, total
from thinwire.kernels.numba_support import Array, Number, array, group_of, kernel
from thinwire.kernels.parallel import each_stretch

_LANES = reference.LANES
_CHUNK = reference.CHUNK
_BLOCK = reference.BLOCK
_ROUNDS = reference.LLOYD_ROUNDS
_STILL = reference.LLOYD_STILL


@kernel
def _split(a: Array, first: Number, t: Number, lanes: Array) -> Number:
    """Returns the sums of the magnitudes up to t and above it, and how many are above."""
    lanes[:] = 0.0
    low = lanes[0]
    high = lanes[1]
    many = 0
    head = min(a.size, -first % _LANES)
    for i in range(head):
        m = abs(np.float64(a[i]))
        many += m > t
        (high if m > t else low)[(first + i) % _LANES] += m
    whole = head + (a.size - head) // _LANES * _LANES
    for i in range(head, whole, _LANES):
        x = a[i : i + _LANES]
        for j in range(_LANES):
            m = abs(np.float64(x[j]))
            low[j] += 0.0 if m > t else m
        for j in range(_LANES):
            m = abs(np.float64(x[j]))
            high[j] += m if m > t else 0.0
        for j in range(_LANES):
            many += abs(np.float64(x[j])) > t
    for i in range(whole, a.size):
        m = abs(np.float64(a[i]))
        many += m > t
        (high if m > t else low)[i - whole] += m
    return total(low), total(high), many


@kernel
def _split_stretch(
    v: Array, starts: Array, t: Array, low: Number, high: Number, slots: Array
) -> None:
    lanes = np.empty((2, _LANES), np.float64)
    g = group_of(starts, low)
    at = low
    while at < high:
        g, upto = next_piece(starts, g, at, high)
        chunk = at // _CHUNK
        a, b, many = _split(v[at:upto], at, t[g], lanes)
        slots[g + chunk, 0] = a
        slots[g + chunk, 1] = b
        slots[g + chunk, 2] = many
        at = upto


@kernel
def _move(slots: Array, starts: Array, t: Array, levels: Array, again: Number) -> Number:
    """Takes both means of each group; returns whether a threshold moved, none if not `again`."""
    moved = False
    for g in range(t.size):
        low = high = many = 0.0
        n = np.float64(starts[g + 1] - starts[g])
        if n == 0:
            continue
        for chunk in range(starts[g] // _CHUNK, (starts[g + 1] - 1) // _CHUNK + 1):
            low += slots[g + chunk, 0]
            high += slots[g + chunk, 1]
            many += slots[g + chunk, 2]
        b = high / many if many else low / n
        a = low / (n - many) if many < n else b
        levels[g, 0] = a
        levels[g, 1] = b
        middle = (a + b) / 2
        if again and (t[g] == np.inf or abs(middle - t[g]) > _STILL * t[g]):
            t[g] = middle
            moved = True
    return moved


@kernel
def _assign(v: Array, starts: Array, t: Array, low: Number, high: Number, packed: Array) -> None:
    scratch = np.empty(_BLOCK, np.uint16)
    g = group_of(starts, low)
    for first in range(low, high, _BLOCK):
        x = v[first : min(high, first + _BLOCK)]
        codes = scratch[: x.size]
        at = 0
        while at < x.size:
            while starts[g + 1] <= first + at:
                g += 1
            upto = min(x.size, starts[g + 1] - first)
            for j in range(at, upto):
                codes[j] = 2 * (x[j] >= 0) + (abs(np.float64(x[j])) > t[g])
            at = upto
        begin = first // 8 * 2
        put_block(codes, 2, packed[begin : begin + block_bytes(x.size, 2)])


def two_levels(v: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.two_levels`."""
    checks.check_vector(v, starts)
    n, groups = v.numel(), starts.numel() - 1
    a, cuts = array(v), array(starts)
    t, levels = np.full(groups, np.inf), np.zeros((groups, 2))
    slots = np.empty((groups + n // _CHUNK + 1, 3), np.float64)
    for again in range(_ROUNDS - 1, -1, -1):
        each_stretch(n, lambda low, high: _split_stretch(a, cuts, t, low, high, slots))
        if not _move(slots, cuts, t, levels, again):
            break
    packed = host.empty(checks.packed_bytes(n, 2), torch.uint8)
    out = packed.numpy()
    each_stretch(n, lambda low, high: _assign(a, cuts, t, low, high, out))
    return packed, torch.from_numpy(levels).to(torch.float32)


@kernel
def _look_up(
    packed: Array, width: Number, starts: Array, books: Array, low: Number, high: Number,
    out: Array,
) -> None:  # fmt: skip
    scratch = np.empty(_BLOCK, np.uint16)
    g = group_of(starts, low)
    for first in range(low, high, _BLOCK):
        values = out[first : min(high, first + _BLOCK)]
        codes = scratch[: values.size]
        at = first // 8 * width
        get_block(packed[at : at + block_bytes(codes.size, width)], width, codes)
        at = 0
        while at < values.size:
            while starts[g + 1] <= first + at:
                g += 1
            upto = min(values.size, starts[g + 1] - first)
            book = books[g]
            for j in range(at, upto):
                values[j] = book[codes[j]]
            at = upto


def look_up(
    packed: torch.Tensor, width: int, starts: torch.Tensor, books: torch.Tensor
) -> torch.Tensor:
    """Agrees with `reference.look_up`."""
    checks.check_books(packed, width, starts, books)
    out = host.empty(int(starts[-1]))
    given = array(packed), width, array(starts), array(books)
    values = out.numpy()
    each_stretch(out.numel(), lambda low, high: _look_up(*given, low, high, values))
    return out
