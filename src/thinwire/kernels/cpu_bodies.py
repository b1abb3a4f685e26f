"""Many bodies of one operator in Numba, read and subtracted one after the other: a hub's work."""

from __future__ import annotations

import numpy as np
import torch

from thinwire.kernels import reference
from thinwire.kernels.bodies import BodyShape, check_bodies, check_steps
from thinwire.kernels.cpu_codes import largest_packed, padding_set
from thinwire.kernels.cpu_decode import decode_stretch
from thinwire.kernels.cpu_index_decode import read_index
from thinwire.kernels.marked import Marked
from thinwire.kernels.numba_support import Array, Number, array, copy, kernel, prefetch

_EARLY = 64
_FINE = reference.FINE
_MAGNITUDE = np.uint32(reference.MAGNITUDE)
_INFINITE = np.uint32(0x7F800000)
_NONE = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.uint64)


@kernel
def _read_body(
    body: Array, cut: Array, starts: Array, domains: Array, most: Number, width: Number,
    top: Number, words: Array, ahead: Number, index: Array, scales: Array, packed: Array,
) -> Number:  # fmt: skip
    """Reads one body; returns whether all of it is as it should be."""
    size = min(body.size, most)
    words[size >> 3 : (size >> 3) + 4] = 0
    copy(words.view(np.uint8)[:size], body)
    none = np.empty((0, 6), np.int64)
    given = words, size, cut, starts, domains, False, none, index, ahead
    status, _, _, used, _ = read_index(*given)
    if status != _FINE or used + 4 * scales.size + packed.size != body.size:
        return False
    copy(scales.view(np.uint8), body[used:])
    copy(packed, body[used + 4 * scales.size :])
    for bits in scales.view(np.uint32):
        if np.uint32(bits & _MAGNITUDE) >= _INFINITE:
            return False
    if top == (1 << width) - 1:
        return not padding_set(packed, index.size, width)
    return 0 <= largest_packed(packed, index.size, width) <= top


@kernel
def _spread(scales: Array, units: Array, lows: Array, steps: Array) -> None:
    """Writes what each block's scales say of its codes."""
    c = len(units)
    for b in range(lows.size):
        low = step = 0.0
        for i in range(c):
            low += np.float64(scales[b * c + i]) * units[i, 0]
            step += np.float64(scales[b * c + i]) * units[i, 1]
        lows[b], steps[b] = low, step


@kernel
def _divide(values: Array, divisor: Number) -> Number:
    """Divides in place; returns the bits of the largest magnitude."""
    keys, largest = values.view(np.uint32), np.uint32(0)
    for j in range(values.size):
        values[j] = values[j] / divisor
        key = np.uint32(keys[j] & _MAGNITUDE)
        largest = key if key > largest else largest
    return largest


@kernel
def _subtract(x: Array, index: Array, values: Array) -> None:
    last = index.size - 1
    for j in range(index.size):
        # The places lie far apart: what is asked for early is there when its turn comes.
        prefetch(x.ctypes.data + 4 * np.int64(index[min(j + _EARLY, last)]))
        x[index[j]] -= values[j]


@kernel
def _subtract_marked(
    x: Array, index: Array, values: Array, starts: Array, limits: Array, marks: Array
) -> None:
    last = index.size - 1
    g, limit = 0, limits[0]
    for j in range(index.size):
        prefetch(x.ctypes.data + 4 * np.int64(index[min(j + _EARLY, last)]))
        i = np.int64(index[j])
        while i >= starts[g + 1]:
            g += 1
            limit = limits[g]
        left = x[i] - values[j]
        x[i] = left
        if not abs(left) < limit:
            marks[i >> 6] |= np.uint64(1) << np.uint64(i & 63)


@kernel
def _touch(touched: Array, index: Array, version: Number) -> None:
    last = index.size - 1
    for j in range(index.size):
        prefetch(touched.ctypes.data + 8 * np.int64(index[min(j + _EARLY, last)]))
        touched[index[j]] = version


@kernel
def _subtract_bodies(
    x: Array, data: Array, ends: Array, cut: Array, starts: Array, domains: Array, most: Number,
    units: Array, code_bytes: Number, width: Number, top: Number, blocks: Array, divisors: Array,
    room: Number, touched: Array, version: Number, groups: Array, limits: Array, marks: Array,
    sizes: Array,
) -> Number:  # fmt: skip
    n, many, total = blocks[-1], blocks.size - 1, 0.0
    words, packed = np.empty(most // 8 + 5, np.uint64), np.empty(code_bytes, np.uint8)
    index, values = np.empty(n, np.int32), np.empty(n, np.float32)
    scales = np.empty(many * len(units), np.float32)
    lows, steps = np.empty(many, np.float64), np.empty(many, np.float64)
    given = cut, starts, domains, most, width, top, words, x.ctypes.data, index, scales, packed
    for f in range(sizes.size):
        if not _read_body(data[ends[f - 1] if f else 0 : ends[f]], *given):
            return f
        _spread(scales, units, lows, steps)
        decode_stretch(packed, width, blocks, lows, steps, 0, n, values)
        sizes.view(np.uint32)[f] = _divide(values, divisors[f])
        if not (sizes[f] < np.inf and total + sizes[f] <= room):
            return f
        total += sizes[f]
        if limits.size:
            _subtract_marked(x, index, values, groups, limits, marks)
        else:
            _subtract(x, index, values)
        if touched.size:
            _touch(touched, index, version + f)
    return sizes.size


def subtract_bodies(
    x: torch.Tensor | Marked,
    data: torch.Tensor,
    ends: torch.Tensor,
    shape: BodyShape,
    divisors: torch.Tensor,
    room: float,
    touched: torch.Tensor | None,
    version: int,
) -> torch.Tensor:
    """Agrees bit for bit with `reference.subtract_bodies`."""
    check_bodies(data, ends)
    check_steps(x, shape, divisors, len(ends), touched)
    marks = _NONE
    if isinstance(x, Marked):
        marks = array(x.starts), array(x.limits), array(x.marks).view(np.uint64)
    sizes = np.empty(len(divisors), np.float32)
    done = _subtract_bodies(
        array(x.x if isinstance(x, Marked) else x), array(data), array(ends), array(shape.counts),
        array(shape.starts), array(shape.domains), shape.index_bytes, array(shape.units),
        shape.code_bytes, shape.width, shape.top, array(shape.blocks), array(divisors), room,
        _NONE[0] if touched is None else array(touched), version, *marks, sizes,
    )  # fmt: skip
    return torch.from_numpy(sizes[:done])
