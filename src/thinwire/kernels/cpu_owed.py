"""What is owed, in Numba: u block by block in the cache, the residual and the anchor in place.

Parameters are read where they lie, through their addresses, in their own dtypes: no flat copy of
them is made. The tensors are held while a kernel runs, and their layout is checked before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks
from thinwire.kernels.numba_support import (
    Array,
    Number,
    array,
    carray,
    copy,
    group_of,
    kernel,
    pointer,
    prefetch,
)
from thinwire.kernels.owed import Owed
from thinwire.kernels.parallel import each_stretch

_BLOCK = 1 << 14  # of u at a time: a cache holds it and what it is formed of
FLOAT32, _BFLOAT16, _FLOAT16 = range(3)
_KINDS = {torch.float32: FLOAT32, torch.bfloat16: _BFLOAT16, torch.float16: _FLOAT16}
_SIZES = np.array([4, 2, 2], np.int64)


class Source(NamedTuple):
    """An `Owed` as kernels take it: addresses[t] and kinds[t] of tensor t, where each starts."""

    anchor: Array
    addresses: Array
    kinds: Array
    starts: Array
    residual: Array
    decay: np.float32


NOTHING_OWED = Source(
    np.empty(0, np.float32),
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    np.zeros(1, np.int64),
    np.empty(0, np.float32),
    np.float32(1),
)


@contextmanager
def read(owed: Owed) -> Iterator[Source]:
    """Yields an owed vector as kernels take it, and holds its tensors until they are done."""
    held = [p.detach().contiguous() for p in owed.params]
    starts = np.zeros(len(held) + 1, np.int64)
    np.cumsum([p.numel() for p in held], out=starts[1:])
    yield Source(
        array(owed.anchor),
        np.array([p.data_ptr() for p in held], np.int64),
        np.array([_KINDS[p.dtype] for p in held], np.int64),
        starts,
        np.empty(0, np.float32) if owed.residual is None else array(owed.residual),
        np.float32(owed.decay),
    )
    del held


@kernel
def _narrow_bfloat16(bits: Number) -> Number:
    """Returns the bfloat16 bits nearest to these float32 bits, ties to even."""
    if np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint32(0x7FC0)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint32(np.uint32(bits + np.uint32(np.uint32(0x7FFF) + odd)) >> np.uint32(16))


@kernel
def _widen_float16(half: Number) -> Number:
    """Returns the float32 bits of these float16 bits."""
    sign = np.uint32(np.uint32(half & np.uint32(0x8000)) << np.uint32(16))
    exponent = np.uint32(np.uint32(half >> np.uint32(10)) & np.uint32(31))
    fraction = np.uint32(half & np.uint32(0x3FF))
    if exponent == 31:
        return np.uint32(sign | np.uint32(0x7F800000) | np.uint32(fraction << np.uint32(13)))
    if exponent == 0:
        if fraction == 0:
            return sign
        # A subnormal: shifted until its leading bit is the hidden one.
        exponent = np.uint32(113)
        while fraction < 1024:
            fraction = np.uint32(fraction << np.uint32(1))
            exponent = np.uint32(exponent - np.uint32(1))
        fraction = np.uint32(fraction & np.uint32(0x3FF))
    else:
        exponent = np.uint32(exponent + np.uint32(112))
    shifted = np.uint32(np.uint32(exponent << np.uint32(23)) | np.uint32(fraction << np.uint32(13)))
    return np.uint32(sign | shifted)


@kernel
def _narrow_float16(bits: Number) -> Number:
    """Returns the float16 bits nearest to these float32 bits, ties to even."""
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if magnitude > np.uint32(0x7F800000):
        return np.uint32(sign | np.uint32(0x7E00))
    if magnitude >= np.uint32(0x477FF000):
        return np.uint32(sign | np.uint32(0x7C00))
    if magnitude < np.uint32(0x38800000):
        if magnitude < np.uint32(0x33000000):
            return sign
        # A subnormal: the fraction with its hidden bit, shifted down to units of 2**-24.
        shift = np.uint32(np.uint32(126) - np.uint32(magnitude >> np.uint32(23)))
        fraction = np.uint32(np.uint32(magnitude & np.uint32(0x7FFFFF)) | np.uint32(0x800000))
        half = np.uint32(np.uint32(1) << np.uint32(shift - np.uint32(1)))
        kept = np.uint32(fraction >> shift)
        rest = np.uint32(fraction & np.uint32(np.uint32(half << np.uint32(1)) - np.uint32(1)))
        up = rest > half or (rest == half and kept & np.uint32(1))
        return np.uint32(sign | np.uint32(kept + np.uint32(up)))
    odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
    rounded = np.uint32(magnitude + np.uint32(np.uint32(0xFFF) + odd))
    return np.uint32(sign | np.uint32(np.uint32(rounded - np.uint32(0x38000000)) >> np.uint32(13)))


@kernel
def _narrow_delta(anchor: Array, params: Array, kind: Number, out: Array) -> None:
    a = anchor.view(np.uint32)
    raw = np.empty(2, np.uint32)
    floats = raw.view(np.float32)
    for j in range(out.size):
        if kind == _BFLOAT16:
            raw[0] = np.uint32(params[j]) << np.uint32(16)
            raw[1] = np.uint32(_narrow_bfloat16(a[j]) << np.uint32(16))
        else:
            raw[0] = _widen_float16(np.uint32(params[j]))
            raw[1] = _widen_float16(_narrow_float16(a[j]))
        moved = np.float32(anchor[j] - np.float32(floats[1] - floats[0]))
        out[j] = anchor[j] - moved


@kernel
def load(owed: Any, low: Number, out: Array) -> None:
    """Writes u[low : low + out.size] to out."""
    t = group_of(owed.starts, low)
    at = 0
    while at < out.size:
        while owed.starts[t + 1] <= low + at:
            t += 1
        upto = min(out.size, owed.starts[t + 1] - low)
        a = owed.anchor[low + at : low + upto]
        u = out[at:upto]
        kind = owed.kinds[t]
        address = owed.addresses[t] + (low + at - owed.starts[t]) * _SIZES[kind]
        if kind != FLOAT32:
            _narrow_delta(a, carray(pointer(address), u.size, np.uint16), kind, u)
        else:
            p = carray(pointer(address), u.size, np.float32)
            if owed.residual.size and owed.decay == 1:
                # The common case in one loop, which reads every stream of memory once.
                m = owed.residual[low + at : low + upto]
                for j in range(u.size):
                    u[j] = np.float32(a[j] - p[j]) + m[j]
                at = upto
                continue
            for j in range(u.size):
                u[j] = a[j] - p[j]
        if owed.residual.size:
            m = owed.residual[low + at : low + upto]
            for j in range(u.size):
                u[j] += m[j] * owed.decay
        at = upto


@kernel
def fetch(owed: Any, low: Number) -> None:
    """Asks for what 32 entries of u, from `low` on, are made of."""
    t = group_of(owed.starts, low)
    p = owed.addresses[t] + (low - owed.starts[t]) * _SIZES[owed.kinds[t]]
    for byte in (0, 64, 124):
        prefetch(owed.anchor.ctypes.data + 4 * low + byte)
        prefetch(p + byte)
        if owed.residual.size:
            prefetch(owed.residual.ctypes.data + 4 * low + byte)


@kernel
def _load_all(owed: Any, low: Number, high: Number, out: Array) -> None:
    for first in range(low, high, _BLOCK):
        load(owed, first, out[first : min(high, first + _BLOCK)])


def owe(owed: Owed) -> torch.Tensor:
    """Agrees bit for bit with `reference.owe`."""
    checks.check_owed(owed)
    out = host.empty(len(owed))
    with read(owed) as source:
        each_stretch(len(owed), lambda low, high: _load_all(source, low, high, out.numpy()))
    return out


@kernel
def _settle(owed: Any, low: Number, high: Number, index: Array, said: Array) -> None:
    scratch = np.empty(_BLOCK, np.float32)
    k = group_of(index, low - 1) + 1
    t = group_of(owed.starts, low)
    at = low
    while at < high:
        while owed.starts[t + 1] <= at:
            t += 1
        upto = min(high, owed.starts[t + 1], at + _BLOCK)
        m = owed.residual[at:upto]
        if owed.kinds[t] == FLOAT32:
            a = owed.anchor[at:upto]
            p = carray(pointer(owed.addresses[t] + 4 * (at - owed.starts[t])), m.size, np.float32)
            if owed.decay == 1:
                for j in range(m.size):
                    m[j] = np.float32(a[j] - p[j]) + m[j]
            else:
                for j in range(m.size):
                    m[j] = np.float32(a[j] - p[j]) + m[j] * owed.decay
        else:
            load(owed, at, scratch[: m.size])
            copy(m, scratch)
        while k < index.size and index[k] < upto:
            m[index[k] - at] -= said[k]
            k += 1
        at = upto


def settle(owed: Owed, index: torch.Tensor, said: torch.Tensor) -> None:
    """Agrees bit for bit with `reference.settle`."""
    checks.check_owed(owed)
    assert owed.residual is not None
    checks.check_index(index, owed.residual, said.numel())
    given = array(index), array(said)
    with read(owed) as source:
        each_stretch(len(owed), lambda low, high: _settle(source, low, high, *given))


@kernel
def _scatter(addresses: Array, starts: Array, index: Array, values: Array) -> None:
    t = 0
    k = 0
    while k < index.size:
        while starts[t + 1] <= index[k]:
            t += 1
        sums = carray(pointer(addresses[t]), starts[t + 1] - starts[t], np.float32)
        while k < index.size and index[k] < starts[t + 1]:
            sums[index[k] - starts[t]] += values[k]
            k += 1


def scatter(tensors: tuple[torch.Tensor, ...], index: torch.Tensor, values: torch.Tensor) -> None:
    """Agrees bit for bit with `reference.scatter`."""
    addresses, starts = _places(tensors)
    checks.check_inside(index, int(starts[-1]))
    _scatter(addresses, starts, array(index), array(values))


@kernel
def _land(
    anchor: Array, addresses: Array, starts: Array, count: Number, lr: Number,
    low: Number, high: Number,
) -> None:  # fmt: skip
    t = group_of(starts, low)
    at = low
    while at < high:
        while starts[t + 1] <= at:
            t += 1
        upto = min(high, starts[t + 1])
        address = addresses[t] + 4 * (at - starts[t])
        sums = carray(pointer(address), upto - at, np.float32)
        a = anchor[at:upto]
        for j in range(sums.size):
            mean = np.float32(np.float32(sums[j] / count) + np.float32(0))
            a[j] = a[j] - np.float32(mean * lr)
            sums[j] = a[j]
        at = upto


def land(anchor: torch.Tensor, sums: tuple[torch.Tensor, ...], count: int, lr: float) -> None:
    """Agrees bit for bit with `reference.land`."""
    addresses, starts = _places(sums)
    given = array(anchor), addresses, starts, np.float32(count), np.float32(lr)
    each_stretch(anchor.numel(), lambda low, high: _land(*given, low, high))


def _places(tensors: tuple[torch.Tensor, ...]) -> tuple[Array, Array]:
    checks.check_plain(tensors)
    starts = np.zeros(len(tensors) + 1, np.int64)
    np.cumsum([t.numel() for t in tensors], out=starts[1:])
    return np.array([t.data_ptr() for t in tensors], np.int64), starts
