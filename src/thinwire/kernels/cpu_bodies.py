"""Many bodies of one operator in Numba, read and subtracted one after the other: a hub's work."""

from __future__ import annotations

import numpy as np
import torch

from thinwire.kernels import reference
from thinwire.kernels.bodies import BodyShape, check_bodies, check_steps
from thinwire.kernels.cpu_codes import largest_packed, padding_set
from thinwire.kernels.cpu_decode import decode_stretch
from thinwire.kernels.cpu_index_sections import read_index
from thinwire.kernels.marked import Marked
from thinwire.kernels.numba_support import (
    EARLY,
    Array,
    Number,
    array,
    copy,
    group_of,
    kernel,
    prefetch,
)

_FINE = reference.FINE
_MAGNITUDE = np.uint32(reference.MAGNITUDE)
_INFINITE = np.uint32(0x7F800000)
_U64 = np.uint64
_NONE = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.uint64)


@kernel
def _read_indices(
    data: Array, ends: Array, first: Number, cut: Array, starts: Array, domains: Array,
    most: Number, words: Array, index: Array, used: Array,
) -> Number:  # fmt: skip
    """Reads the index sections of bodies from `first` on, a row each; are all of them fine?"""
    sizes, none = np.empty(used.size, np.int64), np.empty((0, 6), np.int64)
    for i in range(used.size):
        f, row = first + i, words[i]
        body = data[ends[f - 1] if f else 0 : ends[f]]
        sizes[i] = size = min(body.size, most)
        row[size >> 3 : (size >> 3) + 4] = 0
        copy(row.view(np.uint8)[:size], body)
    given = words[: used.size], sizes, cut, starts, domains, False, none, index[: used.size], used
    return read_index(*given)[0] == _FINE


@kernel
def _read_rest(
    rest: Array, n: Number, width: Number, top: Number, scales: Array, packed: Array
) -> Number:
    """Reads what follows an index section; returns whether it is as it should be, and no more."""
    if 4 * scales.size + packed.size != rest.size:
        return False
    copy(scales.view(np.uint8), rest)
    copy(packed, rest[4 * scales.size :])
    for bits in scales.view(np.uint32):
        if np.uint32(bits & _MAGNITUDE) >= _INFINITE:
            return False
    if top == (1 << width) - 1:
        return not padding_set(packed, n, width)
    return 0 <= largest_packed(packed, n, width) <= top


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
    for j in range(_U64(values.size)):
        prefetch(x.ctypes.data + 4 * np.int64(index[j + _U64(EARLY)]))
        x[index[j]] -= values[j]


@kernel
def _subtract_marked(
    x: Array, index: Array, values: Array, starts: Array, limits: Array, marks: Array
) -> None:
    n, low = values.size, np.int64(0)
    g = group_of(starts, index[0])
    while low < n:
        while index[low] >= starts[g + 1]:
            g += 1
        high, limit = n, limits[g]
        if index[n - 1] >= starts[g + 1]:
            high = low + 1
            while index[high] < starts[g + 1]:
                high += 1
        for j in range(_U64(low), _U64(high)):
            prefetch(x.ctypes.data + 4 * np.int64(index[j + _U64(EARLY)]))
            i = _U64(index[j])
            left = x[i] - values[j]
            x[i] = left
            if not abs(left) < limit:
                marks[i >> _U64(6)] |= _U64(1) << (i & _U64(63))
        low = high


@kernel
def _touch(touched: Array, index: Array, n: Number, version: Number) -> None:
    for j in range(_U64(n)):
        prefetch(touched.ctypes.data + 8 * np.int64(index[j + _U64(EARLY)]))
        touched[index[j]] = version


@kernel
def _subtract_bodies(
    x: Array, data: Array, ends: Array, cut: Array, starts: Array, domains: Array, most: Number,
    units: Array, code_bytes: Number, width: Number, top: Number, blocks: Array, divisors: Array,
    room: Number, touched: Array, version: Number, groups: Array, limits: Array, marks: Array,
    sizes: Array,
) -> Number:  # fmt: skip
    n, many, total = blocks[-1], blocks.size - 1, 0.0
    words, used = np.empty((2, most // 8 + 5), np.uint64), np.empty(2, np.int64)
    # Unsigned, since Numba asks of others whether they count from the end; and longer by entries
    # that are asked for when all are.
    index, values = np.zeros((2, n + EARLY), np.uint32), np.empty(n, np.float32)
    scales, packed = np.empty(many * len(units), np.float32), np.empty(code_bytes, np.uint8)
    lows, steps = np.empty(many, np.float64), np.empty(many, np.float64)
    read = 0
    for f in range(sizes.size):
        if f == read:
            read = min(f + 2, sizes.size)
            given = data, ends, f, cut, starts, domains, most, words, index[:, :n]
            if not _read_indices(*given, used[: read - f]):
                read = f + 1
                if not _read_indices(*given, used[:1]):
                    return f
            first = f
        body = data[ends[f - 1] if f else 0 : ends[f]]
        if not _read_rest(body[used[f - first] :], n, width, top, scales, packed):
            return f
        _spread(scales, units, lows, steps)
        decode_stretch(packed, width, blocks, lows, steps, 0, n, values)
        sizes.view(np.uint32)[f] = _divide(values, divisors[f])
        if not (sizes[f] < np.inf and total + sizes[f] <= room):
            return f
        total += sizes[f]
        if n == 0:
            continue
        if limits.size:
            _subtract_marked(x, index[f - first], values, groups, limits, marks)
        else:
            _subtract(x, index[f - first], values)
        if touched.size:
            _touch(touched, index[f - first], n, version + f)
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
    counts, starts, domains, units, blocks = shape.arrays
    done = _subtract_bodies(
        array(x.x if isinstance(x, Marked) else x), array(data), array(ends), counts, starts,
        domains, shape.index_bytes, units, shape.code_bytes, shape.width, shape.top, blocks,
        array(divisors), room, _NONE[0] if touched is None else array(touched), version, *marks,
        sizes,
    )  # fmt: skip
    return torch.from_numpy(sizes[:done])
