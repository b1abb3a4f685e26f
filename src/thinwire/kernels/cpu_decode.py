"""Decoding in Numba: codes to values, added where they belong without a vector in between."""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.cpu_codes import block_bytes, get_block
from thinwire.kernels.cpu_measure import dot
from thinwire.kernels.numba_support import (
    EARLY,
    Array,
    Number,
    array,
    group_of,
    kernel,
    prefetch,
)
from thinwire.kernels.parallel import each_stretch

_BLOCK = reference.BLOCK
_CHUNK = reference.CHUNK
_LANES = reference.LANES
_U64 = np.uint64


@kernel
def _offset(low: Number, step: Number) -> Number:
    """Returns how many whole steps `low` lies below zero, -1 where that is no such number.

    Then (code - offset) step is one float32 product, rounded as the float64 sum would be.
    """
    if step <= 0 or np.float64(np.float32(step)) != step:
        return -1
    offset = np.rint(-low / step)
    return np.int64(offset) if offset * step == -low and 0 <= offset < 65536 else -1


@kernel
def _values(codes: Array, width: Number, low: Number, step: Number, out: Array) -> None:
    """Writes float32(low + code step) for uint16 codes, exactly as float64 would round it."""
    if width == 1:
        zero = np.float32(low + 0.0 * step)
        one = np.float32(low + step)
        for j in range(codes.size):
            out[j] = one if codes[j] else zero
        return
    unit = np.float32(step)
    offset = _offset(low, step)
    if offset >= 0:
        origin = np.int32(offset)
        for j in range(codes.size):
            out[j] = np.float32(np.int32(np.int32(codes[j]) - origin)) * unit
        return
    for j in range(codes.size):
        out[j] = np.float32(low + np.float64(codes[j]) * step)


@kernel
def _decode_block(
    packed: Array, width: Number, starts: Array, lows: Array, steps: Array,
    first: Number, g: Number, codes: Array, out: Array,
) -> Number:  # fmt: skip
    """Decodes one block, from code `first` on, into out; returns the group it ends in."""
    m = out.size
    at = first // 8 * width
    get_block(packed[at : at + block_bytes(m, width)], width, codes[:m])
    at = 0
    while at < m:
        while starts[g + 1] <= first + at:
            g += 1
        upto = min(m, starts[g + 1] - first)
        _values(codes[at:upto], width, lows[g], steps[g], out[at:upto])
        at = upto
    return g


@kernel
def decode_stretch(
    packed: Array, width: Number, starts: Array, lows: Array, steps: Array,
    low: Number, high: Number, out: Array,
) -> None:  # fmt: skip
    """Decodes the codes from low, where a block begins, to high."""
    codes = np.empty(_BLOCK, np.uint16)
    g = group_of(starts, low)
    for first in range(low, high, _BLOCK):
        block = out[first : min(high, first + _BLOCK)]
        g = _decode_block(packed, width, starts, lows, steps, first, g, codes, block)


def decode(
    packed: torch.Tensor,
    width: int,
    starts: torch.Tensor,
    lows: torch.Tensor,
    steps: torch.Tensor,
) -> torch.Tensor:
    """Agrees bit for bit with `reference.decode`."""
    checks.check_coded(packed, width, starts, lows, steps)
    out = host.empty(int(starts[-1]))
    given = array(packed), width, array(starts), array(lows), array(steps)
    values = out.numpy()
    each_stretch(out.numel(), lambda low, high: decode_stretch(*given, low, high, values))
    return out


@kernel
def _add_values(
    codes: Array,
    width: Number,
    low: Number,
    step: Number,
    weight: Number,
    values: Array,
    acc: Array,
) -> None:
    """Adds weight times what uint16 codes stand for to acc."""
    unit = np.float32(step)
    offset = _offset(low, step)
    if offset >= 0 and width > 1 and weight == 1:
        # The common case once more, without a stop between decoding and adding.
        zero = np.int32(offset)
        for j in range(codes.size):
            acc[j] += np.float32(np.int32(np.int32(codes[j]) - zero)) * unit
        return
    _values(codes, width, low, step, values)
    for j in range(codes.size):
        acc[j] += values[j] * weight


@kernel
def _accumulate_codes(
    acc: Array, packed: Array, width: Number, starts: Array, lows: Array, steps: Array,
    weight: Number, low: Number, high: Number,
) -> None:  # fmt: skip
    codes = np.empty(_BLOCK, np.uint16)
    values = np.empty(_BLOCK, np.float32)
    g = group_of(starts, low)
    for first in range(low, high, _BLOCK):
        m = min(_BLOCK, high - first)
        at = first // 8 * width
        get_block(packed[at : at + block_bytes(m, width)], width, codes[:m])
        at = 0
        while at < m:
            while starts[g + 1] <= first + at:
                g += 1
            upto = min(m, starts[g + 1] - first)
            sums = acc[first + at : first + upto]
            _add_values(codes[at:upto], width, lows[g], steps[g], weight, values[at:upto], sums)
            at = upto


@kernel
def _add_at(acc: Array, index: Array, values: Array, weight: Number) -> None:
    last = _U64(index.size - 1)
    for j in range(_U64(index.size)):
        prefetch(acc.ctypes.data + 4 * index[min(j + _U64(EARLY), last)])
        acc[_U64(index[j])] += values[j] * weight


@kernel
def _accumulate_codes_at(
    acc: Array, index: Array, packed: Array, width: Number, starts: Array, lows: Array,
    steps: Array, weight: Number,
) -> None:  # fmt: skip
    codes = np.empty(_BLOCK, np.uint16)
    values = np.empty(_BLOCK, np.float32)
    g = 0
    for first in range(0, index.size, _BLOCK):
        at = index[first : first + _BLOCK]
        block = values[: at.size]
        g = _decode_block(packed, width, starts, lows, steps, first, g, codes, block)
        _add_at(acc, at, block, weight)


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
    """Agrees bit for bit with `reference.accumulate_codes`."""
    checks.check_coded(packed, width, starts, lows, steps)
    n = int(starts[-1])
    checks.check_index(index, acc, n)
    given = array(packed), width, array(starts), array(lows), array(steps), np.float32(weight)
    sums = array(acc)
    if index is None:
        each_stretch(n, lambda low, high: _accumulate_codes(sums, *given, low, high))
    else:
        _accumulate_codes_at(sums, array(index), *given)


@kernel
def _add(acc: Array, values: Array, weight: Number) -> None:
    if weight == 1:
        for j in range(acc.size):
            acc[j] += values[j]
    else:
        for j in range(acc.size):
            acc[j] += values[j] * weight


def accumulate(
    acc: torch.Tensor, index: torch.Tensor | None, values: torch.Tensor, weight: float
) -> None:
    """Agrees bit for bit with `reference.accumulate`."""
    checks.check_index(index, acc, values.numel())
    w = np.float32(weight)
    if index is None:
        _add(array(acc), array(values), w)
    else:
        _add_at(array(acc), array(index), array(values), w)


@kernel
def _fit(
    v: Array, packed: Array, width: Number, starts: Array, lows: Array, steps: Array,
    low: Number, high: Number, slots: Array,
) -> None:  # fmt: skip
    """Writes <v, x> and <x, x> of each group's piece in each chunk."""
    codes = np.empty(_BLOCK, np.uint16)
    values = np.empty(_CHUNK, np.float32)
    lanes = np.empty(_LANES, np.float64)
    g = group_of(starts, low)
    block_group = g
    for chunk in range(low, high, _CHUNK):
        m = min(_CHUNK, high - chunk)
        for at in range(0, m, _BLOCK):
            block = values[at : min(m, at + _BLOCK)]
            block_group = _decode_block(
                packed, width, starts, lows, steps, chunk + at, block_group, codes, block
            )
        at = 0
        while at < m:
            while starts[g + 1] <= chunk + at:
                g += 1
            upto = min(m, starts[g + 1] - chunk)
            x = values[at:upto]
            place = g + chunk // _CHUNK
            slots[place, 0] = dot(v[chunk + at : chunk + upto], x, chunk + at, lanes)
            slots[place, 1] = dot(x, x, chunk + at, lanes)
            at = upto


@kernel
def _factors(slots: Array, starts: Array, out: Array) -> None:
    for g in range(out.size):
        above, below = 0.0, 0.0
        if starts[g + 1] > starts[g]:
            for chunk in range(starts[g] // _CHUNK, (starts[g + 1] - 1) // _CHUNK + 1):
                above += slots[g + chunk, 0]
                below += slots[g + chunk, 1]
        out[g] = above / below if below != 0 else 0.0


def fit(
    v: torch.Tensor,
    packed: torch.Tensor,
    width: int,
    starts: torch.Tensor,
    lows: torch.Tensor,
    steps: torch.Tensor,
) -> torch.Tensor:
    """Agrees bit for bit with `reference.fit`."""
    checks.check_vector(v, starts)
    checks.check_coded(packed, width, starts, lows, steps)
    out, n = host.empty(starts.numel() - 1), v.numel()
    given = array(v), array(packed), width, array(starts), array(lows), array(steps)
    slots = np.empty((out.numel() + n // _CHUNK + 1, 2), np.float64)
    each_stretch(n, lambda low, high: _fit(*given, low, high, slots))
    _factors(slots, array(starts), out.numpy())
    return out
