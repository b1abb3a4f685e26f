"""The kernels of `thinwire.kernels.reference` in Numba: same arguments, same bits, one core.

Numba widens uint32 arithmetic to 64 bits, so every step is wrapped in `np.uint32`. Fast math is
off throughout, because contracted multiply-adds would change the bits. Nothing here checks
bounds on its own: the wrappers check the layout, and the decoders check every byte they read.
"""

from __future__ import annotations

import fcntl
import os
import tempfile

import numba
import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.cpu_index import decode_index, encode_index
from thinwire.kernels.numba_support import Array, Number, array, bits, kernel
from thinwire.kernels.reference import Key

__all__ = [
    "accumulate",
    "decode",
    "decode_index",
    "encode_index",
    "extrema",
    "first_nonfinite",
    "fit",
    "hadamard",
    "norms",
    "pack",
    "quantize",
    "quantize_levels",
    "randk",
    "signs",
    "topk",
    "unpack",
    "warm",
    "words",
]

# Numba freezes module globals into the compiled code, so these names cost nothing.
_LANES = reference.LANES
_MAGNITUDE = np.uint32(reference.MAGNITUDE)
_EVERY_BIT = np.uint32(reference.MASK32)
_INFINITY = np.uint32(0x7F800000)
_FLOAT32_MAX = reference.FLOAT32_MAX
_BLOCK = 32


def _key(key: Key) -> tuple[np.uint32, np.uint32]:
    return np.uint32(key[0]), np.uint32(key[1])


@kernel
def _word(i: Number, k0: Number, k1: Number) -> Number:
    x = np.uint32(np.uint32(i * np.uint32(0x9E3779B1)) + k0)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
    x = np.uint32(np.uint32(x * np.uint32(0x7FEB352D)) + k1)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ np.uint32(x >> np.uint32(16)))


@kernel
def _fill_words(out: Array, first: Number, k0: Number, k1: Number) -> None:
    for i in range(out.size):
        out[i] = _word(np.uint32(first + np.uint32(i)), k0, k1)


def words(n: int, key: Key) -> torch.Tensor:
    """Agrees bit for bit with `reference.words`."""
    out = host.empty(n, torch.int64)
    _fill_words(out.numpy(), np.uint32(0), *_key(key))
    return out


@kernel
def _largest(bits: Array) -> Number:
    largest = np.uint32(0)
    for i in range(bits.size):
        largest = max(largest, np.uint32(bits[i] & _MAGNITUDE))
    return largest


@kernel
def _first_nonfinite(bits: Array, starts: Array) -> Number:
    for g in range(starts.size - 1):
        if _largest(bits[starts[g] : starts[g + 1]]) >= _INFINITY:
            return g
    return -1


def first_nonfinite(u: torch.Tensor, starts: torch.Tensor) -> int:
    """Agrees with `reference.first_nonfinite`."""
    checks.check_vector(u, starts)
    return int(_first_nonfinite(bits(u), array(starts)))


@kernel
def _holds(bits: Array, mask: Number, shift: Number, prefix: Number) -> Number:
    found = False
    for j in range(bits.size):
        found |= np.uint32(np.uint32(bits[j] & mask) >> shift) == prefix
    return found


@kernel
def _threshold(bits: Array, mask: Number, k: Number, histogram: Array) -> Number:
    """Finds the bin of keys that holds the k-th largest, for 0 < k <= bits.size.

    Returns:
        The bin's lowest key, how many low bits its keys may differ in, and how many of the k
        largest lie in it: all of its keys, or the first so many of keys that are equal.
    """
    # Short groups get small histograms, which would cost more to clear than the group to read.
    digit = 16 if bits.size >= 1 << 16 else (11 if bits.size >= 1 << 12 else 8)
    prefix = np.uint32(0)
    shift = 32
    need = k
    while shift > 0:
        step = min(digit, shift)
        below = np.uint32(shift - step)
        bins = 1 << step
        low = np.uint32(bins - 1)
        histogram[:bins] = 0
        if shift == 32:
            for j in range(bits.size):
                histogram[np.uint32(bits[j] & mask) >> below] += 1
        else:
            above = np.uint32(shift)
            for at in range(0, bits.size, _BLOCK):
                block = bits[at : at + _BLOCK]
                if _holds(block, mask, above, prefix):
                    for j in range(block.size):
                        key = np.uint32(block[j] & mask)
                        if np.uint32(key >> above) == prefix:
                            histogram[np.uint32(key >> below) & low] += 1
        chosen = bins - 1
        while histogram[chosen] < need:
            need -= histogram[chosen]
            chosen -= 1
        prefix = np.uint32(np.uint32(prefix << np.uint32(step)) | np.uint32(chosen))
        shift -= step
        if histogram[chosen] == need:
            break
    return np.uint32(prefix << np.uint32(shift)), shift, need


@kernel
def _collect(
    bits: Array, mask: Number, k: Number, histogram: Array, first: Number, out: Array
) -> None:
    """Writes the flat indices of the k largest keys, ties by lower index, to out, of size k."""
    if k == bits.size:
        for j in range(k):
            out[j] = first + j
        return
    if k == 0:
        return
    edge, shift, quota = _threshold(bits, mask, k, histogram)
    last = np.uint32(edge + np.uint32((np.int64(1) << shift) - 1))
    m = 0
    for at in range(0, bits.size, _BLOCK):
        block = bits[at : at + _BLOCK]
        largest = np.uint32(0)
        for j in range(block.size):
            largest = max(largest, np.uint32(block[j] & mask))
        if largest < edge:
            continue
        for j in range(block.size):
            key = np.uint32(block[j] & mask)
            if key > last:
                out[m] = first + at + j
                m += 1
            elif key >= edge and quota > 0:
                quota -= 1
                out[m] = first + at + j
                m += 1
                if m == k:
                    return


@kernel
def _topk(bits: Array, starts: Array, counts: Array, out: Array) -> None:
    histogram = np.empty(1 << 16, np.int64)
    at = 0
    for g in range(counts.size):
        k = counts[g]
        group = bits[starts[g] : starts[g + 1]]
        _collect(group, _MAGNITUDE, k, histogram, starts[g], out[at : at + k])
        at += k


def topk(u: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Agrees bit for bit with `reference.topk`, by radix select."""
    checks.check_vector(u, starts)
    checks.check_counts(counts, starts)
    out = host.empty(int(counts.sum()), torch.int64)
    _topk(bits(u), array(starts), array(counts), out.numpy())
    return out


@kernel
def _randk(starts: Array, counts: Array, k0: Number, k1: Number, out: Array) -> None:
    histogram = np.empty(1 << 16, np.int64)
    longest = 0
    for g in range(counts.size):
        longest = max(longest, starts[g + 1] - starts[g])
    scratch = np.empty(longest, np.uint32)
    at = 0
    for g in range(counts.size):
        k = counts[g]
        group = scratch[: starts[g + 1] - starts[g]]
        if 0 < k < group.size:
            _fill_words(group, np.uint32(starts[g]), k0, k1)
            # The smallest words are the largest complements.
            for j in range(group.size):
                group[j] = ~group[j]
        _collect(group, _EVERY_BIT, k, histogram, starts[g], out[at : at + k])
        at += k


def randk(starts: torch.Tensor, counts: torch.Tensor, key: Key) -> torch.Tensor:
    """Agrees bit for bit with `reference.randk`."""
    checks.check_counts(counts, starts)
    out = host.empty(int(counts.sum()), torch.int64)
    _randk(array(starts), array(counts), *_key(key), out.numpy())
    return out


@kernel
def _total(lanes: Array) -> Number:
    total = 0.0
    for j in range(_LANES):
        total += lanes[j]
    return total


@kernel
def _dot(a: Array, b: Array, lanes: Array) -> Number:
    lanes[:] = 0.0
    whole = a.size // _LANES * _LANES
    for i in range(0, whole, _LANES):
        x = a[i : i + _LANES]
        y = b[i : i + _LANES]
        for j in range(_LANES):
            lanes[j] += np.float64(x[j]) * np.float64(y[j])
    for i in range(whole, a.size):
        lanes[i - whole] += np.float64(a[i]) * np.float64(b[i])
    return _total(lanes)


@kernel
def _sum_of_magnitudes(a: Array, lanes: Array) -> Number:
    lanes[:] = 0.0
    whole = a.size // _LANES * _LANES
    for i in range(0, whole, _LANES):
        x = a[i : i + _LANES]
        for j in range(_LANES):
            lanes[j] += abs(np.float64(x[j]))
    for i in range(whole, a.size):
        lanes[i - whole] += abs(np.float64(a[i]))
    return _total(lanes)


@kernel
def _norms(v: Array, bits: Array, starts: Array, kind: Number, out: Array) -> None:
    lanes = np.empty(_LANES, np.float64)
    raw = out.view(np.uint32)
    for g in range(out.size):
        x = v[starts[g] : starts[g + 1]]
        if kind == 2:
            raw[g] = _largest(bits[starts[g] : starts[g + 1]])
            continue
        norm = _sum_of_magnitudes(x, lanes) if kind == 0 else np.sqrt(_dot(x, x, lanes))
        out[g] = _FLOAT32_MAX if _FLOAT32_MAX < norm < np.inf else norm


def norms(v: torch.Tensor, starts: torch.Tensor, kind: str) -> torch.Tensor:
    """Agrees bit for bit with `reference.norms`."""
    checks.check_vector(v, starts)
    checks.check_kind(kind)
    out = host.empty(starts.numel() - 1)
    place = checks.KINDS.index(kind)
    _norms(array(v), bits(v), array(starts), place, out.numpy())
    return out


@kernel
def _extrema(v: Array, starts: Array, lows: Array, highs: Array) -> None:
    # Lanes again: without fast math a plain minimum does not vectorise.
    low = np.empty(_LANES, np.float32)
    high = np.empty(_LANES, np.float32)
    for g in range(lows.size):
        a = v[starts[g] : starts[g + 1]]
        low[:] = a[0] if a.size else np.float32(0)
        high[:] = low
        whole = a.size // _LANES * _LANES
        for i in range(0, whole, _LANES):
            x = a[i : i + _LANES]
            for j in range(_LANES):
                low[j] = x[j] if x[j] < low[j] else low[j]
            for j in range(_LANES):
                high[j] = x[j] if x[j] > high[j] else high[j]
        for i in range(whole, a.size):
            low[0] = min(low[0], a[i])
            high[0] = max(high[0], a[i])
        # Adding +0.0 turns -0.0 into +0.0.
        lows[g] = low.min() + np.float32(0)
        highs[g] = high.max() + np.float32(0)


def extrema(v: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.extrema`."""
    checks.check_vector(v, starts)
    lows, highs = host.empty(starts.numel() - 1), host.empty(starts.numel() - 1)
    _extrema(array(v), array(starts), lows.numpy(), highs.numpy())
    return lows, highs


@kernel
def _round(y: Number, word: Number) -> Number:
    floor = np.int32(y)
    chance = np.float32(np.float32(y - np.float32(floor)) * np.float32(16777216.0))
    uniform = np.float32(np.int32(np.uint32(word >> np.uint32(8))))
    return np.int32(floor + np.int32(uniform < chance))


@kernel
def _quantize(
    v: Array, starts: Array, norms: Array, top: Number, k0: Number, k1: Number, out: Array
) -> None:
    for g in range(norms.size):
        x = v[starts[g] : starts[g + 1]]
        codes = out[starts[g] : starts[g + 1]]
        norm = norms[g]
        if norm == 0:
            codes[:] = 0
            continue
        scale = np.float32(1.0) if norm >= np.float32(2.0**-100) else np.float32(2.0**100)
        rate = np.float32(top / np.float32(norm * scale))
        first = np.uint32(starts[g])
        for j in range(x.size):
            y = np.float32(np.float32(abs(x[j]) * scale) * rate)
            y = y if y < top else top
            code = _round(y, _word(np.uint32(first + np.uint32(j)), k0, k1))
            codes[j] = np.int16(-code if x[j] < 0 else code)


def quantize(
    v: torch.Tensor, starts: torch.Tensor, norms: torch.Tensor, levels: int, key: Key
) -> torch.Tensor:
    """Agrees bit for bit with `reference.quantize`."""
    checks.check_vector(v, starts)
    checks.check_per_group(starts, norms)
    checks.check_levels(levels)
    out = host.empty(v.numel(), torch.int16)
    top = np.float32(levels)
    _quantize(array(v), array(starts), array(norms), top, *_key(key), out.numpy())
    return out


@kernel
def _quantize_levels(
    v: Array, starts: Array, lo: Array, step: Array, top: Number, k0: Number, k1: Number, out: Array
) -> None:
    for g in range(lo.size):
        x = v[starts[g] : starts[g + 1]]
        codes = out[starts[g] : starts[g + 1]]
        c = np.float32(0.5) if step[g] >= np.float32(1) else np.float32(1)
        width = np.float32(step[g] * c)
        origin = np.float32(lo[g] * c)
        if width == 0:
            codes[:] = 0
            continue
        first = np.uint32(starts[g])
        for j in range(x.size):
            y = np.float32(np.float32(np.float32(x[j] * c) - origin) / width)
            y = y if y > np.float32(0) else np.float32(0)
            y = y if y < top else top
            codes[j] = _round(y, _word(np.uint32(first + np.uint32(j)), k0, k1))


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
    out = host.empty(v.numel(), torch.int32)
    top = np.float32(levels)
    arrays = array(v), array(starts), array(lo), array(step)
    _quantize_levels(*arrays, top, *_key(key), out.numpy())
    return out


@kernel
def _fit(v: Array, codes: Array, starts: Array, out: Array) -> None:
    lanes = np.empty(_LANES, np.float64)
    for g in range(out.size):
        q = codes[starts[g] : starts[g + 1]]
        below = _dot(q, q, lanes)
        out[g] = _dot(v[starts[g] : starts[g + 1]], q, lanes) / below if below != 0 else 0.0


def fit(v: torch.Tensor, codes: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Agrees bit for bit with `reference.fit`."""
    checks.check_vector(v, starts)
    checks.check_lengths(v, codes)
    out = host.empty(starts.numel() - 1)
    _fit(array(v), array(codes), array(starts), out.numpy())
    return out


@kernel
def _decode(codes: Array, starts: Array, units: Array, out: Array) -> None:
    for g in range(units.size):
        q = codes[starts[g] : starts[g + 1]]
        x = out[starts[g] : starts[g + 1]]
        unit = units[g]
        for j in range(q.size):
            x[j] = np.float32(q[j]) * unit


def decode(codes: torch.Tensor, starts: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Agrees bit for bit with `reference.decode`."""
    checks.check_starts(starts, codes.numel())
    checks.check_per_group(starts, units)
    out = host.empty(codes.numel())
    _decode(array(codes), array(starts), array(units), out.numpy())
    return out


@kernel
def _signs(v: Array, out: Array) -> None:
    for i in range(v.size):
        out[i] = np.int16(1) if v[i] >= 0 else np.int16(-1)


def signs(v: torch.Tensor) -> torch.Tensor:
    """Agrees bit for bit with `reference.signs`."""
    out = host.empty(v.numel(), torch.int16)
    _signs(array(v), out.numpy())
    return out


@kernel
def _level(x: Array, h: Number) -> None:
    for at in range(0, x.size, 2 * h):
        a = x[at : at + h]
        b = x[at + h : at + 2 * h]
        for j in range(h):
            total = a[j] + b[j]
            b[j] = a[j] - b[j]
            a[j] = total


@kernel
def _butterflies(x: Array) -> None:
    # The order of the blocks does not change a bit, so each runs all its levels in the cache.
    block = min(x.size, 4096)
    for at in range(0, x.size, block):
        piece = x[at : at + block]
        h = 1
        if block >= 4:
            for i in range(0, block, 4):
                a = piece[i] + piece[i + 1]
                b = piece[i] - piece[i + 1]
                c = piece[i + 2] + piece[i + 3]
                d = piece[i + 2] - piece[i + 3]
                piece[i] = a + c
                piece[i + 1] = b + d
                piece[i + 2] = a - c
                piece[i + 3] = b - d
            h = 4
        while h < block:
            _level(piece, h)
            h *= 2
    h = block
    while h < x.size:
        _level(x, h)
        h *= 2


@kernel
def _flip(x: Number, i: Number, k0: Number, k1: Number) -> Number:
    return -x if _word(i, k0, k1) & np.uint32(1) else x


@kernel
def _rotate(
    v: Array, starts: Array, out_starts: Array, k0: Number, k1: Number, inverse: Number, out: Array
) -> None:
    longest = 0
    for g in range(starts.size - 1):
        longest = max(longest, out_starts[g + 1] - out_starts[g])
    scratch = np.empty(longest if inverse else 0, np.float32)
    for g in range(starts.size - 1):
        length = starts[g + 1] - starts[g]
        if length == 0:
            continue
        size = out_starts[g + 1] - out_starts[g]
        first = np.uint32(out_starts[g])
        factor = np.float32(1.0 / np.sqrt(np.float64(size)))
        padded = v if inverse else out
        padded = padded[out_starts[g] : out_starts[g + 1]]
        plain = out if inverse else v
        plain = plain[starts[g] : starts[g + 1]]
        if inverse:
            work = scratch[:size]
            for j in range(size):
                work[j] = padded[j] * factor
            _butterflies(work)
            for j in range(length):
                plain[j] = _flip(work[j], np.uint32(first + np.uint32(j)), k0, k1)
        else:
            for j in range(length):
                x = np.float32(plain[j] * factor)
                padded[j] = _flip(x, np.uint32(first + np.uint32(j)), k0, k1)
            for j in range(length, size):
                padded[j] = _flip(np.float32(0), np.uint32(first + np.uint32(j)), k0, k1)
            _butterflies(padded)


def hadamard(
    v: torch.Tensor, starts: torch.Tensor, out_starts: torch.Tensor, key: Key, inverse: bool
) -> torch.Tensor:
    """Agrees bit for bit with `reference.hadamard`."""
    checks.check_rotation(starts, out_starts, v.numel(), inverse)
    out = host.empty(int(starts[-1] if inverse else out_starts[-1]))
    layout = array(starts), array(out_starts)
    _rotate(array(v), *layout, *_key(key), bool(inverse), out.numpy())
    return out


@kernel
def _pack(codes: Array, width: Number, out: Array) -> None:
    # The widths that divide a byte, or fill bytes, have loops that vectorise.
    n = codes.size
    done = 0
    if width == 16:
        for i in range(n):
            out[2 * i] = np.uint8(codes[i])
            out[2 * i + 1] = np.uint8(codes[i] >> 8)
        return
    if width == 8:
        for i in range(n):
            out[i] = np.uint8(codes[i])
        return
    if width == 4:
        done = n // 2 * 2
        for i in range(n // 2):
            out[i] = np.uint8((codes[2 * i] & 15) | codes[2 * i + 1] << 4)
    elif width == 2:
        done = n // 4 * 4
        for i in range(n // 4):
            low = (codes[4 * i] & 3) | (codes[4 * i + 1] & 3) << 2
            high = (codes[4 * i + 2] & 3) | (codes[4 * i + 3] & 3) << 2
            out[i] = np.uint8(low | high << 4)
    elif width == 1:
        done = n // 8 * 8
        for i in range(n // 8):
            byte = np.int32(0)
            for j in range(8):
                byte |= np.int32((codes[8 * i + j] & 1) << j)
            out[i] = np.uint8(byte)
    mask = (np.int64(1) << width) - 1
    at = done * width // 8
    held = np.int64(0)
    bits = 0
    for i in range(done, n):
        held |= (np.int64(codes[i]) & mask) << bits
        bits += width
        while bits >= 8:
            out[at] = np.uint8(held)
            at += 1
            held >>= 8
            bits -= 8
    if bits:
        out[at] = np.uint8(held)


def pack(codes: torch.Tensor, width: int) -> torch.Tensor:
    """Agrees bit for bit with `reference.pack`."""
    checks.check_width(width)
    out = host.empty((codes.numel() * width + 7) // 8, torch.uint8)
    _pack(array(codes), width, out.numpy())
    return out


@kernel
def _unpack(data: Array, width: Number, out: Array) -> None:
    n = out.size
    done = 0
    if width == 16:
        for i in range(n):
            out[i] = np.int32(data[2 * i]) | np.int32(data[2 * i + 1]) << 8
        return
    if width == 8:
        for i in range(n):
            out[i] = data[i]
        return
    if width == 4:
        done = n // 2 * 2
        for i in range(n // 2):
            out[2 * i] = data[i] & 15
            out[2 * i + 1] = data[i] >> 4
    elif width == 2:
        done = n // 4 * 4
        for i in range(n // 4):
            for j in range(4):
                out[4 * i + j] = data[i] >> (2 * j) & 3
    elif width == 1:
        done = n // 8 * 8
        for i in range(n // 8):
            for j in range(8):
                out[8 * i + j] = data[i] >> j & 1
    mask = (np.int64(1) << width) - 1
    # A code and its offset in a byte fit 23 bits, so three bytes hold it, if there are three.
    for i in range(done, n):
        at = i * width >> 3
        held = np.int64(data[at])
        if at + 2 < data.size:
            held |= np.int64(data[at + 1]) << 8 | np.int64(data[at + 2]) << 16
        elif at + 1 < data.size:
            held |= np.int64(data[at + 1]) << 8
        out[i] = held >> (i * width & 7) & mask


def unpack(data: torch.Tensor, n: int, width: int) -> torch.Tensor:
    """Agrees bit for bit with `reference.unpack`."""
    checks.check_packed(data, n, width)
    out = host.empty(n, torch.int32)
    _unpack(array(data), width, out.numpy())
    return out


@kernel
def _add_at(acc: Array, index: Array, values: Array) -> None:
    for j in range(index.size):
        acc[index[j]] += values[j]


@kernel
def _add(acc: Array, values: Array) -> None:
    for j in range(acc.size):
        acc[j] += values[j]


def accumulate(acc: torch.Tensor, index: torch.Tensor | None, values: torch.Tensor) -> None:
    """Agrees bit for bit with `reference.accumulate`."""
    checks.check_index(index, acc, values)
    if index is None:
        _add(array(acc), array(values))
    else:
        _add_at(array(acc), array(index), array(values))


def warm() -> None:
    """Compiles every kernel, or loads it from the cache, before anything has to be fast.

    Processes that start together on a cold cache take turns, so one compiles and the others load.
    """
    name = f"thinwire-{os.getuid()}-numba-{numba.__version__}.lock"
    # Links are not followed: in a shared folder another user could aim one at a file of ours.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(os.path.join(tempfile.gettempdir(), name), flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _call_each()
    finally:
        os.close(lock)


def _call_each() -> None:
    key = (1, 2)
    v = host.floats([1.0, -2.0, 3.0])
    starts, counts, padded = host.ints([0, 3]), host.ints([2]), host.ints([0, 4])
    words(3, key)
    first_nonfinite(v, starts)
    randk(starts, counts, key)
    norm, (lo, _) = norms(v, starts, "l2"), extrema(v, starts)
    codes = quantize(v, starts, norm, 4, key)
    levels = quantize_levels(v, starts, lo, norm, 4, key)
    fit(v, codes, starts)
    fit(v, v, starts)
    decode(codes, starts, norm)
    decode(levels, starts, norm)
    signs(v)
    hadamard(hadamard(v, starts, padded, key, False), starts, padded, key, True)
    unpack(pack(levels, 4), 3, 4)
    index = topk(v, starts, counts)
    decode_index(encode_index(index, counts, starts), counts, starts)
    accumulate(host.zeros(3), None, v)
    accumulate(host.zeros(3), index, v[:2])
