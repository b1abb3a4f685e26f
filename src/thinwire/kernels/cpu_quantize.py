"""Stochastic rounding in Numba: rounded in the cache and packed before the next block comes."""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.cpu_codes import put_block
from thinwire.kernels.cpu_measure import L1, add_up, combine, total
from thinwire.kernels.cpu_words import halves, word
from thinwire.kernels.numba_support import Array, Number, array, group_of, inlined, kernel, prefetch
from thinwire.kernels.parallel import each_stretch
from thinwire.kernels.reference import Key

_BLOCK = reference.BLOCK
_PAIR = reference.PAIR
_CHUNK = reference.CHUNK
_LANES = reference.LANES
_LOW = np.uint32(0xFFFF)
_SHIFT = np.uint32(7)
_HALFWAY = np.uint32(0x3F800040)
_ONE = np.float32(1)
# What is rounded at a time, and asked for ahead, so that all of it stays in the first cache.
_PART = 1024
_AHEAD = 8192
_SMALL = np.float32(2.0**-100)


@kernel
def _place(position: Number) -> Number:
    """Returns the number of the word that the entry at this position draws from."""
    return np.uint32(position // (2 * _PAIR) * _PAIR + position % _PAIR)


@kernel
def _uniform_bits(half: Number) -> Number:
    """Returns the bits of 1 + r, r the uniform number of these 16 random bits."""
    return np.uint32(np.uint32(half << _SHIFT) | _HALFWAY)


@kernel
def _fill_uniforms(first: Number, k0: Number, k1: Number, out: Array, ahead: Number) -> None:
    """Writes 1 + r for out.size entries from flat position `first` on, r the uniform numbers."""
    raw = out.view(np.uint32)
    n = out.size
    at = 0
    while at < n:
        position = first + at
        base = _place(position)
        if position % (2 * _PAIR) == 0 and at + 2 * _PAIR <= n:
            low = raw[at : at + _PAIR]
            high = raw[at + _PAIR : at + 2 * _PAIR]
            for j in range(_PAIR):
                w = word(np.uint32(base + np.uint32(j)), k0, k1)
                low[j] = _uniform_bits(np.uint32(w & _LOW))
                high[j] = _uniform_bits(np.uint32(w >> np.uint32(16)))
            for j in range(0, 8 * _PAIR, 64):
                prefetch(ahead + 4 * at + j)
            at += 2 * _PAIR
            continue
        # The rest of one half: its entries draw from words that follow each other.
        upto = min(n, at + _PAIR - position % _PAIR)
        part = raw[at:upto]
        lower = position // _PAIR % 2 == 0
        for j in range(part.size):
            w = word(np.uint32(base + np.uint32(j)), k0, k1)
            part[j] = _uniform_bits(np.uint32(w & _LOW) if lower else np.uint32(w >> np.uint32(16)))
        at = upto


@inlined
def _to_codes(x: Array, rate: Number, top: Number, r: Array, codes: Array, n: Number) -> None:
    for j in range(n):
        q = np.floor(np.float32(np.float32(x[j] * rate) + np.float32(r[j] - _ONE)))
        q = q if q < top else top
        q = q if q > -top else -top
        codes[j] = np.uint16(np.int32(q) + np.int32(top))


@kernel
def _round_signed(x: Array, norm: Number, top: Number, r: Array, codes: Array) -> None:
    levels = np.int32(top)
    if norm == 0:
        codes[:] = levels
        return
    lift = np.float32(2.0**100) if norm < _SMALL else _ONE
    rate = np.float32(top / np.float32(norm * lift))
    if lift != _ONE:
        for j in range(x.size):
            z = np.float32(np.float32(x[j] * lift) * rate)
            q = np.floor(np.float32(z + np.float32(r[j] - _ONE)))
            q = q if q < top else top
            q = q if q > -top else -top
            codes[j] = np.uint16(np.int32(q) + levels)
        return
    _to_codes(x, rate, top, r, codes, x.size)


@kernel
def _round_up(x: Array, lo: Number, step: Number, top: Number, r: Array, codes: Array) -> None:
    c = np.float32(0.5) if step >= _ONE else _ONE
    width = np.float32(step * c)
    origin = np.float32(lo * c)
    if width == 0:
        codes[:] = 0
        return
    zero = np.float32(0)
    for j in range(x.size):
        y = np.float32(np.float32(np.float32(x[j] * c) - origin) / width)
        y = y if y > zero else zero
        y = y if y < top else top
        y = np.floor(np.float32(y + np.float32(r[j] - _ONE)))
        codes[j] = np.uint16(np.int32(y if y < top else top))


@kernel
def _quantize(
    v: Array, starts: Array, lows: Array, scales: Array, top: Number, width: Number,
    k0: Number, k1: Number, low: Number, high: Number, out: Array,
) -> None:  # fmt: skip
    """Rounds and packs: by norms where there are no lows, else upwards from the lows by steps."""
    scratch = np.empty(_BLOCK, np.uint16)
    uniforms = np.empty(_PART, np.float32)
    ahead = v.ctypes.data + _AHEAD
    g = group_of(starts, low)
    for first in range(low, high, _BLOCK):
        m = min(_BLOCK, high - first)
        while starts[g + 1] <= first:
            g += 1
        if not lows.size and first + _BLOCK <= starts[g + 1] and scales[g] >= _SMALL:
            # The common case, a block of one group, in loops whose length is known.
            rate = np.float32(top / scales[g])
            for at in range(0, _BLOCK, _PART):
                _fill_uniforms(first + at, k0, k1, uniforms[:_PART], ahead + 4 * (first + at))
                x = v[first + at : first + at + _PART]
                _to_codes(x, rate, top, uniforms, scratch[at : at + _PART], _PART)
            put_block(scratch, width, out[first // 8 * width :])
            continue
        for at in range(0, m, _PART):
            r = uniforms[: min(_PART, m - at)]
            _fill_uniforms(first + at, k0, k1, r, ahead + 4 * (first + at))
            i = 0
            while i < r.size:
                while starts[g + 1] <= first + at + i:
                    g += 1
                upto = min(r.size, starts[g + 1] - first - at)
                x = v[first + at + i : first + at + upto]
                codes = scratch[at + i : at + upto]
                if lows.size:
                    _round_up(x, lows[g], scales[g], top, r[i:upto], codes)
                else:
                    _round_signed(x, scales[g], top, r[i:upto], codes)
                i = upto
        put_block(scratch[:m], width, out[first // 8 * width :])


def _rounded(
    v: torch.Tensor, starts: torch.Tensor, lows: Array, scales: torch.Tensor,
    levels: int, most: int, key: Key,
) -> torch.Tensor:  # fmt: skip
    width = most.bit_length()
    out = host.empty(checks.packed_bytes(v.numel(), width), torch.uint8)
    given = array(v), array(starts), lows, array(scales), np.float32(levels), width, *halves(key)
    data = out.numpy()
    each_stretch(v.numel(), lambda low, high: _quantize(*given, low, high, data))
    return out


def quantize(
    v: torch.Tensor, starts: torch.Tensor, norms: torch.Tensor, levels: int, key: Key
) -> torch.Tensor:
    """Agrees bit for bit with `reference.quantize`."""
    checks.check_vector(v, starts)
    checks.check_per_group(starts, norms)
    checks.check_levels(levels)
    return _rounded(v, starts, np.empty(0, np.float32), norms, levels, 2 * levels, key)


def quantize_levels(
    v: torch.Tensor,
    starts: torch.Tensor,
    lo: torch.Tensor,
    step: torch.Tensor,
    levels: int,
    key: Key,
) -> torch.Tensor:
    """Agrees bit for bit with `reference.quantize_levels`."""
    checks.check_vector(v, starts)
    checks.check_per_group(starts, lo, step)
    checks.check_unsigned_levels(levels)
    return _rounded(v, starts, array(lo), step, levels, levels, key)


@kernel
def _put_signs(x: Array, out: Array) -> None:
    """Packs the signs of one block, at most 4096 entries, as codes of one bit."""
    zero = np.float32(0)
    S = out.size
    if x.size < 8 * S:
        out[:] = 0
        for i in range(x.size):
            if x[i] >= zero:
                out[i % S] |= np.uint8(1 << i // S)
        return
    a, b, c, d = x[:S], x[S : 2 * S], x[2 * S : 3 * S], x[3 * S : 4 * S]
    e, f, g, h = x[4 * S : 5 * S], x[5 * S : 6 * S], x[6 * S : 7 * S], x[7 * S : 8 * S]
    for j in range(S):
        bits = np.uint8(1) if a[j] >= zero else np.uint8(0)
        bits |= np.uint8(2) if b[j] >= zero else np.uint8(0)
        bits |= np.uint8(4) if c[j] >= zero else np.uint8(0)
        bits |= np.uint8(8) if d[j] >= zero else np.uint8(0)
        bits |= np.uint8(16) if e[j] >= zero else np.uint8(0)
        bits |= np.uint8(32) if f[j] >= zero else np.uint8(0)
        bits |= np.uint8(64) if g[j] >= zero else np.uint8(0)
        bits |= np.uint8(128) if h[j] >= zero else np.uint8(0)
        out[j] = bits


@kernel
def _signs(v: Array, starts: Array, low: Number, high: Number, slots: Array, out: Array) -> None:
    # A block is packed while it is still in the cache from being summed up.
    lanes = np.zeros(_LANES, np.float64)
    g = group_of(starts, low)
    for first in range(low, high, _BLOCK):
        end = min(high, first + _BLOCK)
        at = first
        while at < end:
            while starts[g + 1] <= at:
                g += 1
            upto = min(end, starts[g + 1])
            add_up(v[at:upto], at, False, lanes)
            if upto == starts[g + 1] or upto % _CHUNK == 0:
                slots[g + at // _CHUNK] = total(lanes)
                lanes[:] = 0.0
            at = upto
        _put_signs(v[first:end], out[first // 8 : (end + 7) // 8])


def signs(v: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.signs`."""
    checks.check_vector(v, starts)
    out = host.empty(checks.packed_bytes(v.numel(), 1), torch.uint8)
    sums = host.empty(starts.numel() - 1)
    a, cuts, data = array(v), array(starts), out.numpy()
    slots = np.empty(sums.numel() + v.numel() // _CHUNK + 1, np.float64)
    each_stretch(v.numel(), lambda low, high: _signs(a, cuts, low, high, slots, data))
    combine(slots, cuts, L1, sums.numpy())
    return out, sums
