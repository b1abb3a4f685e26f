"""Measures of each group in Numba: norms, extrema, and whether everything is finite.

Sums run over lanes of float64 in chunks, so they vectorise, have one order, and chunks may be
summed at the same time: piece (g, c) of group g in chunk c has the slot g + c of its own.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.numba_support import Array, Number, array, bits, group_of, kernel, prefetch
from thinwire.kernels.parallel import each_stretch

_LANES = reference.LANES
_CHUNK = reference.CHUNK
_MAGNITUDE = np.uint32(reference.MAGNITUDE)
_BELOW_SIGN = np.int32(reference.MAGNITUDE)
_INFINITY = np.uint32(0x7F800000)
_FLOAT32_MAX = host.LARGEST
L1, _L2, _MAX = range(3)
_AHEAD = 8192


@kernel
def largest_magnitude(bits: Array) -> Number:
    """Returns the largest magnitude as its bits, uint32."""
    largest = np.uint32(0)
    for i in range(bits.size):
        largest = max(largest, np.uint32(bits[i] & _MAGNITUDE))
    return largest


@kernel
def _first_nonfinite(bits: Array, starts: Array) -> Number:
    for g in range(starts.size - 1):
        if largest_magnitude(bits[starts[g] : starts[g + 1]]) >= _INFINITY:
            return g
    return -1


def first_nonfinite(u: torch.Tensor, starts: torch.Tensor) -> int:
    """Agrees with `reference.first_nonfinite`."""
    checks.check_vector(u, starts)
    return int(_first_nonfinite(bits(u), array(starts)))


@kernel
def _divide(total: Array, count: Number) -> Number:
    broken = np.uint32(0)
    for i in range(total.size):
        x = np.float32(np.float32(total[i] / count) + np.float32(0))
        total[i] = x
        broken |= np.uint32(not abs(x) <= _FLOAT32_MAX)
    return broken


def divide(total: torch.Tensor, count: int, starts: torch.Tensor) -> int:
    """Agrees bit for bit with `reference.divide`."""
    checks.check_vector(total, starts)
    x, by, broken = array(total), np.float32(count), []
    each_stretch(len(x), lambda low, high: broken.append(_divide(x[low:high], by)))
    return first_nonfinite(total, starts) if any(broken) else -1


@kernel
def total(lanes: Array) -> Number:
    """Adds up the lanes, from 0 on."""
    answer = 0.0
    for j in range(_LANES):
        answer += lanes[j]
    return answer


@kernel
def dot(a: Array, b: Array, first: Number, lanes: Array) -> Number:
    """Returns <a, b> of one piece that begins at flat position `first`, in float64."""
    lanes[:] = 0.0
    head = min(a.size, -first % _LANES)
    for i in range(head):
        lanes[(first + i) % _LANES] += np.float64(a[i]) * np.float64(b[i])
    whole = head + (a.size - head) // _LANES * _LANES
    for i in range(head, whole, _LANES):
        x = a[i : i + _LANES]
        y = b[i : i + _LANES]
        for j in range(_LANES):
            lanes[j] += np.float64(x[j]) * np.float64(y[j])
    for i in range(whole, a.size):
        lanes[i - whole] += np.float64(a[i]) * np.float64(b[i])
    return total(lanes)


@kernel
def add_up(a: Array, first: Number, squared: Number, lanes: Array) -> None:
    """Adds one piece's magnitudes or squares, from flat position `first` on, to the lanes."""
    head = min(a.size, -first % _LANES)
    for i in range(head):
        x = np.float64(a[i])
        lanes[(first + i) % _LANES] += x * x if squared else abs(x)
    # Four rows at a time: the lanes leave memory and come back a quarter as often.
    fours = head + (a.size - head) // (4 * _LANES) * (4 * _LANES)
    ahead = a.ctypes.data + _AHEAD
    for i in range(head, fours, 4 * _LANES):
        for j in range(0, 16 * _LANES, 64):
            prefetch(ahead + 4 * i + j)
        row0 = a[i : i + _LANES]
        row1 = a[i + _LANES : i + 2 * _LANES]
        row2 = a[i + 2 * _LANES : i + 3 * _LANES]
        row3 = a[i + 3 * _LANES : i + 4 * _LANES]
        for j in range(_LANES):
            w, x, y, z = (
                np.float64(row0[j]),
                np.float64(row1[j]),
                np.float64(row2[j]),
                np.float64(row3[j]),
            )
            if squared:
                lanes[j] = (((lanes[j] + w * w) + x * x) + y * y) + z * z
            else:
                lanes[j] = (((lanes[j] + abs(w)) + abs(x)) + abs(y)) + abs(z)
    for i in range(fours, a.size):
        x = np.float64(a[i])
        lanes[(i - fours) % _LANES] += x * x if squared else abs(x)


@kernel
def next_piece(starts: Array, g: Number, at: Number, high: Number) -> Number:
    """Returns the group from g on that holds a position, and where its piece of a chunk ends."""
    while starts[g + 1] <= at:
        g += 1
    return g, min(high, starts[g + 1], (at // _CHUNK + 1) * _CHUNK)


@kernel
def _measure(
    v: Array, bits: Array, starts: Array, kind: Number, low: Number, high: Number, slots: Array
) -> None:
    lanes = np.empty(_LANES, np.float64)
    g = group_of(starts, low)
    at = low
    while at < high:
        g, upto = next_piece(starts, g, at, high)
        chunk = at // _CHUNK
        if kind == _MAX:
            slots[g + chunk] = np.float64(largest_magnitude(bits[at:upto]))
        else:
            lanes[:] = 0.0
            add_up(v[at:upto], at, kind == _L2, lanes)
            slots[g + chunk] = total(lanes)
        at = upto


@kernel
def combine(slots: Array, starts: Array, kind: Number, out: Array) -> None:
    """Writes each group's norm, of what was measured of its piece in each chunk."""
    raw = out.view(np.uint32)
    for g in range(out.size):
        norm = 0.0
        if starts[g + 1] > starts[g]:
            for chunk in range(starts[g] // _CHUNK, (starts[g + 1] - 1) // _CHUNK + 1):
                part = slots[g + chunk]
                norm = max(norm, part) if kind == _MAX else norm + part
        if kind == _MAX:
            raw[g] = np.uint32(norm)
            continue
        norm = norm if kind == L1 else math.sqrt(norm)
        out[g] = _FLOAT32_MAX if _FLOAT32_MAX < norm < np.inf else norm


def norms(v: torch.Tensor, starts: torch.Tensor, kind: str) -> torch.Tensor:
    """Agrees bit for bit with `reference.norms`."""
    checks.check_vector(v, starts)
    checks.check_kind(kind)
    out = host.empty(starts.numel() - 1)
    place = checks.KINDS.index(kind)
    a, raw, cuts = array(v), bits(v), array(starts)
    slots = np.empty(out.numel() + v.numel() // _CHUNK + 1, np.float64)
    each_stretch(v.numel(), lambda low, high: _measure(a, raw, cuts, place, low, high, slots))
    combine(slots, cuts, place, out.numpy())
    return out


@kernel
def _ordered(bits: Number) -> Number:
    """Returns the int32 that stands among others as the float32 of these bits does; and back."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & _BELOW_SIGN))


@kernel
def _extrema(raw: Array, starts: Array, low: Number, high: Number, slots: Array) -> None:
    g = group_of(starts, low)
    at = low
    while at < high:
        g, upto = next_piece(starts, g, at, high)
        # As whole numbers: without fast math a minimum of floats does not vectorise.
        a = raw[at:upto]
        least = most = _ordered(a[0])
        for i in range(a.size):
            key = _ordered(a[i])
            least = min(least, key)
            most = max(most, key)
        place = g + at // _CHUNK
        slots[place, 0] = least
        slots[place, 1] = most
        at = upto


@kernel
def _widest(slots: Array, starts: Array, lows: Array, highs: Array) -> None:
    """Writes each group's extrema, of those of its piece in each chunk."""
    least, most = lows.view(np.int32), highs.view(np.int32)
    for g in range(lows.size):
        low, high = np.int32(0), np.int32(0)
        if starts[g + 1] > starts[g]:
            first = g + starts[g] // _CHUNK
            low, high = slots[first, 0], slots[first, 1]
            for place in range(first + 1, g + (starts[g + 1] - 1) // _CHUNK + 1):
                low = min(low, slots[place, 0])
                high = max(high, slots[place, 1])
        # Adding +0.0 turns -0.0 into +0.0.
        least[g], most[g] = _ordered(low), _ordered(high)
        lows[g] += np.float32(0)
        highs[g] += np.float32(0)


def extrema(v: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.extrema`."""
    checks.check_vector(v, starts)
    groups, n = starts.numel() - 1, v.numel()
    lows, highs = host.empty(groups), host.empty(groups)
    raw, cuts = bits(v).view(np.int32), array(starts)
    slots = np.empty((groups + n // _CHUNK + 1, 2), np.int32)
    each_stretch(n, lambda low, high: _extrema(raw, cuts, low, high, slots))
    _widest(slots, cuts, lows.numpy(), highs.numpy())
    return lows, highs
