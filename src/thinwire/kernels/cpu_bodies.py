"""Many bodies of one operator in Numba, read and subtracted in one go: a hub's work."""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import reference
from thinwire.kernels.bodies import BodyShape, check_bodies, check_levels_of, check_rows
from thinwire.kernels.cpu_codes import largest_packed, padding_set
from thinwire.kernels.cpu_decode import decode_stretch
from thinwire.kernels.cpu_index_decode import read_index
from thinwire.kernels.marked import Marked
from thinwire.kernels.numba_support import Array, Number, array, copy, kernel, prefetch

_EARLY = 64
_FINE = reference.FINE
_MAGNITUDE = np.uint32(reference.MAGNITUDE)
_INFINITE = np.uint32(0x7F800000)


@kernel
def _read_body(
    body: Array, cut: Array, starts: Array, domains: Array, most: Number, n: Number,
    width: Number, top: Number, words: Array, index: Array, scales: Array, packed: Array,
) -> Number:  # fmt: skip
    """Reads one body; returns whether all of it is as it should be."""
    size = min(body.size, most)
    words[size >> 3 : (size >> 3) + 4] = 0
    copy(words.view(np.uint8)[:size], body)
    none = np.empty((0, 6), np.int64)
    status, _, _, used, _ = read_index(words, size, cut, starts, domains, False, none, index)
    if status != _FINE or used + 4 * scales.size + packed.size != body.size:
        return False
    copy(scales.view(np.uint8), body[used:])
    copy(packed, body[used + 4 * scales.size :])
    for bits in scales.view(np.uint32):
        if np.uint32(bits & _MAGNITUDE) >= _INFINITE:
            return False
    if top == (1 << width) - 1:
        return not padding_set(packed, n, width)
    return 0 <= largest_packed(packed, n, width) <= top


@kernel
def _read_bodies(
    data: Array, ends: Array, cut: Array, starts: Array, domains: Array, most: Number, n: Number,
    width: Number, top: Number, index: Array, scales: Array, packed: Array, fine: Array,
) -> None:  # fmt: skip
    words = np.empty(most // 8 + 5, np.uint64)
    for f in range(fine.size):
        body = data[ends[f - 1] if f else 0 : ends[f]]
        fine[f] = _read_body(
            body, cut, starts, domains, most, n, width, top, words, index[f], scales[f], packed[f]
        )


def read_bodies(
    data: torch.Tensor, ends: torch.Tensor, shape: BodyShape
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.read_bodies`, where a body is fine."""
    check_bodies(data, ends)
    F, n = len(ends), shape.n
    index = host.empty(F * n, torch.int32).view(F, n)
    said = host.empty(F * shape.scales).view(F, shape.scales)
    packed = host.empty(F * shape.code_bytes, torch.uint8).view(F, shape.code_bytes)
    fine = np.empty(F, np.bool_)
    _read_bodies(
        array(data), array(ends), array(shape.counts), array(shape.starts), array(shape.domains),
        shape.index_bytes, n, shape.width, shape.top, index.numpy(), said.numpy(), packed.numpy(),
        fine,
    )  # fmt: skip
    return torch.from_numpy(fine), index, said, packed


@kernel
def _decode_bodies(
    packed: Array, width: Number, starts: Array, lows: Array, steps: Array, out: Array, tops: Array
) -> None:
    for f in range(tops.size):
        values = out[f]
        decode_stretch(packed[f], width, starts, lows[f], steps[f], 0, values.size, values)
        keys, largest = values.view(np.uint32), np.uint32(0)
        for j in range(keys.size):
            key = np.uint32(keys[j] & _MAGNITUDE)
            largest = key if key > largest else largest
        tops[f] = largest


def decode_bodies(
    packed: torch.Tensor, shape: BodyShape, lows: torch.Tensor, steps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.decode_bodies`; what is NaN is NaN."""
    check_levels_of(packed, shape, lows, steps)
    F, n = len(packed), shape.n
    out, tops = host.empty(F * n).view(F, n), np.empty(F, np.uint32)
    given = array(packed), shape.width, array(shape.blocks), array(lows), array(steps)
    _decode_bodies(*given, out.numpy(), tops)
    return out, torch.from_numpy(tops.view(np.float32))


@kernel
def _subtract_bodies(
    x: Array, index: Array, values: Array, rows: Array, divisors: Array, touched: Array,
    version: Number,
) -> None:  # fmt: skip
    last = index.shape[1] - 1
    for r in range(rows.size):
        at, said, divisor = index[rows[r]], values[rows[r]], divisors[r]
        for j in range(at.size):
            # The places lie far apart: what is asked for early is there when its turn comes.
            prefetch(x.ctypes.data + 4 * np.int64(at[min(j + _EARLY, last)]))
            x[at[j]] -= said[j] / divisor
        if touched.size:
            for j in range(at.size):
                prefetch(touched.ctypes.data + 8 * np.int64(at[min(j + _EARLY, last)]))
                touched[at[j]] = version + r


@kernel
def _subtract_marked(
    x: Array, index: Array, values: Array, rows: Array, divisors: Array, starts: Array,
    limits: Array, marks: Array,
) -> None:  # fmt: skip
    last = index.shape[1] - 1
    for r in range(rows.size):
        at, said, divisor = index[rows[r]], values[rows[r]], divisors[r]
        g, limit = 0, limits[0]
        for j in range(at.size):
            prefetch(x.ctypes.data + 4 * np.int64(at[min(j + _EARLY, last)]))
            i = np.int64(at[j])
            while i >= starts[g + 1]:
                g += 1
                limit = limits[g]
            left = x[i] - np.float32(said[j] / divisor)
            x[i] = left
            if not abs(left) < limit:
                marks[i >> 6] |= np.uint64(1) << np.uint64(i & 63)


def subtract_bodies(
    x: torch.Tensor | Marked,
    index: torch.Tensor,
    values: torch.Tensor,
    rows: torch.Tensor,
    divisors: torch.Tensor,
    touched: torch.Tensor | None,
    version: int,
) -> None:
    """Agrees bit for bit with `reference.subtract_bodies`."""
    check_rows(x, index, values, rows, divisors, touched)
    given = array(index), array(values), array(rows), array(divisors)
    if isinstance(x, Marked):
        marks = array(x.starts), array(x.limits), array(x.marks).view(np.uint64)
        _subtract_marked(array(x.x), *given, *marks)
    else:
        news = np.empty(0, np.int64) if touched is None else array(touched)
        _subtract_bodies(array(x), *given, news, version)
