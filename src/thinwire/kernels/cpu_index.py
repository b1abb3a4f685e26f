"""The index codec of `thinwire.kernels.reference` in Numba: same bytes, same refusals.

Nothing here checks bounds on its own: the encoder validates its indices while it chooses codes,
and the decoder looks at how many bytes are left before each one it reads.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import reference
from thinwire.kernels.checks import check_counts, check_typed
from thinwire.kernels.numba_support import Array, Number, array, kernel

# Numba freezes module globals into the compiled code, so these names cost nothing.
_ALL_OR_NONE = reference.ALL_OR_NONE
_BITMAP = reference.BITMAP
_FIXED = reference.FIXED
_RICE = reference.RICE
_FINE = reference.FINE
_ENDS_EARLY = reference.ENDS_EARLY
_UNKNOWN_CODE = reference.UNKNOWN_CODE
_UNUSED_BITS = reference.UNUSED_BITS
_NOT_ALL_OR_NONE = reference.NOT_ALL_OR_NONE
_WRONG_ONES = reference.WRONG_ONES
_OUTSIDE = reference.OUTSIDE
_GAP_OUTSIDE = reference.GAP_OUTSIDE
_NOT_ASCENDING = reference.NOT_ASCENDING
_PADDING = reference.PADDING


@kernel
def _fixed_width(length: Number) -> Number:
    width = 1
    while (length - 1) >> width > 0:
        width += 1
    return width


@kernel
def _rice_bits(index: Array, start: Number, b: Number) -> Number:
    total = (index[0] - start) >> b
    for j in range(1, index.size):
        total += (index[j] - index[j - 1] - 1) >> b
    return total + index.size * (1 + b)


@kernel
def _choose(index: Array, counts: Array, starts: Array, tags: Array) -> Number:
    """Chooses every group's tag; returns the bytes of it all, or -1 when indices do not ascend."""
    at = 0
    total = 0
    for g in range(counts.size):
        k = counts[g]
        length = starts[g + 1] - starts[g]
        chosen = index[at : at + k]
        at += k
        total += 1
        before = starts[g] - 1
        for j in range(k):
            if chosen[j] <= before:
                return -1
            before = chosen[j]
        if before >= starts[g + 1]:
            return -1
        tags[g] = _ALL_OR_NONE
        if k in (0, length):
            continue
        tags[g] = _BITMAP
        best = length
        if k * _fixed_width(length) < best:
            tags[g] = _FIXED
            best = k * _fixed_width(length)
        # Going from b to b + 1 saves the sum of (gap >> b) - (gap >> b + 1) bits, which falls as b
        # grows, and costs k: the size is convex in b, so the first minimum downhill is the one.
        b = 0
        while b < 31 and k << (b + 1) < length:
            b += 1
        bits = _rice_bits(chosen, starts[g], b)
        down = True
        while down and b > 0:
            other = _rice_bits(chosen, starts[g], b - 1)
            down = other <= bits
            if down:
                bits = other
                b -= 1
        up = True
        while up and b < 31:
            other = _rice_bits(chosen, starts[g], b + 1)
            up = other < bits
            if up:
                bits = other
                b += 1
        if bits < best:
            tags[g] = _RICE | b << 3
            best = bits
        total += (best + 7) // 8
    return total


@kernel
def _put(
    out: Array, at: Number, held: Number, bits: Number, value: Number, width: Number
) -> Number:
    """Appends `width` <= 32 bits to the stream; fewer than 8 are held back at any time."""
    held |= value << bits
    bits += width
    while bits >= 8:
        out[at] = np.uint8(held)
        at += 1
        held >>= 8
        bits -= 8
    return at, held, bits


@kernel
def _write(index: Array, counts: Array, starts: Array, tags: Array, out: Array) -> None:
    first = 0
    at = 0
    for g in range(counts.size):
        k = counts[g]
        length = starts[g + 1] - starts[g]
        chosen = index[first : first + k]
        first += k
        out[at] = tags[g]
        at += 1
        code = tags[g] & 7
        if code == _BITMAP:
            stream = out[at : at + (length + 7) // 8]
            stream[:] = 0
            for j in range(k):
                p = chosen[j] - starts[g]
                stream[p >> 3] |= np.uint8(1 << (p & 7))
            at += stream.size
            continue
        if code == _ALL_OR_NONE:
            continue
        held = np.int64(0)
        bits = np.int64(0)
        if code == _FIXED:
            width = _fixed_width(length)
            for j in range(k):
                p = chosen[j] - starts[g]
                at, held, bits = _put(out, at, held, bits, p, width)
        else:
            b = np.int64(tags[g] >> 3)
            before = starts[g] - 1
            for j in range(k):
                gap = chosen[j] - before - 1
                before = chosen[j]
                ones = gap >> b
                while ones >= 31:
                    at, held, bits = _put(out, at, held, bits, (1 << 31) - 1, 31)
                    ones -= 31
                at, held, bits = _put(out, at, held, bits, (1 << ones) - 1, ones + 1)
                at, held, bits = _put(out, at, held, bits, gap & ((1 << b) - 1), b)
        if bits:
            out[at] = np.uint8(held)
            at += 1


def encode_index(index: torch.Tensor, counts: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Agrees bit for bit with `reference.encode_index`."""
    check_counts(counts, starts)
    check_typed(index, torch.int64)
    if int(counts.sum()) != index.numel():
        raise ValueError(f"{index.numel()} indices for counts that add up to {int(counts.sum())}")
    flat, sizes, edges = array(index), array(counts), array(starts)
    tags = np.empty(sizes.size, np.uint8)
    size = _choose(flat, sizes, edges, tags)
    if size < 0:
        raise ValueError("indices must ascend within their groups")
    out = host.empty(size, torch.uint8)
    _write(flat, sizes, edges, tags, out.numpy())
    return out


@kernel
def _ones(byte: Number) -> Number:
    x = np.int64(byte)
    x = x - (x >> 1 & 0x55)
    x = (x & 0x33) + (x >> 2 & 0x33)
    return (x & 15) + (x >> 4)


@kernel
def _read_bitmap(
    data: Array, at: Number, k: Number, length: Number, first: Number, out: Array
) -> Number:
    size = (length + 7) // 8
    if size > data.size - at:
        return _ENDS_EARLY, 0, 0, 0
    stream = data[at : at + size]
    spare = size * 8 - length
    ones = 0
    for i in range(size):
        ones += _ones(stream[i])
    tail = np.int64(stream[size - 1]) >> (8 - spare) if spare else np.int64(0)
    ones -= _ones(tail)
    if ones != k:
        return _WRONG_ONES, ones, k, 0
    if tail:
        return _PADDING, 0, 0, 0
    m = 0
    for i in range(size):
        byte = np.int64(stream[i])
        if byte:
            for j in range(8):
                if byte >> j & 1:
                    out[m] = first + 8 * i + j
                    m += 1
    return _FINE, 0, 0, at + size


@kernel
def _refill(data: Array, at: Number, held: Number, bits: Number) -> Number:
    """Loads whole bytes until at least 49 bits are held or the data is at its end."""
    while bits <= 48 and at < data.size:
        held |= np.int64(data[at]) << bits
        bits += 8
        at += 1
    return at, held, bits


@kernel
def _read_fixed(
    data: Array, at: Number, k: Number, length: Number, first: Number, out: Array
) -> Number:
    width = _fixed_width(length)
    if (k * width + 7) // 8 > data.size - at:
        return _ENDS_EARLY, 0, 0, 0
    held = np.int64(0)
    bits = np.int64(0)
    before = np.int64(-1)
    mask = (np.int64(1) << width) - 1
    for m in range(k):
        at, held, bits = _refill(data, at, held, bits)
        p = held & mask
        held >>= width
        bits -= width
        if p >= length:
            return _OUTSIDE, p, length, 0
        if p <= before:
            return _NOT_ASCENDING, 0, 0, 0
        before = p
        out[m] = first + p
    if held & ((1 << (bits & 7)) - 1):
        return _PADDING, 0, 0, 0
    return _FINE, 0, 0, at - (bits >> 3)


@kernel
def _read_rice(
    data: Array, at: Number, k: Number, length: Number, b: Number, first: Number, out: Array
) -> Number:
    held = np.int64(0)
    bits = np.int64(0)
    p = np.int64(-1)
    mask = (np.int64(1) << b) - 1
    most = length >> b
    for m in range(k):
        ones = np.int64(0)
        at, held, bits = _refill(data, at, held, bits)
        while True:
            while bits > 0 and held & 1:
                held >>= 1
                bits -= 1
                ones += 1
            if ones > most:
                return _GAP_OUTSIDE, length, 0, 0
            if bits > 0:
                break
            at, held, bits = _refill(data, at, held, bits)
            if bits == 0:
                return _ENDS_EARLY, 0, 0, 0
        held >>= 1
        bits -= 1
        at, held, bits = _refill(data, at, held, bits)
        if bits < b:
            return _ENDS_EARLY, 0, 0, 0
        p += 1 + (ones << b) + (held & mask)
        held >>= b
        bits -= b
        if p >= length:
            return _OUTSIDE, p, length, 0
        out[m] = first + p
    if held & ((1 << (bits & 7)) - 1):
        return _PADDING, 0, 0, 0
    return _FINE, 0, 0, at - (bits >> 3)


@kernel
def _read(data: Array, counts: Array, starts: Array, out: Array) -> Number:
    at = np.int64(0)
    done = 0
    for g in range(counts.size):
        k = counts[g]
        length = starts[g + 1] - starts[g]
        room = out[done : done + k]
        done += k
        if at >= data.size:
            return _ENDS_EARLY, 0, 0, 0
        tag = np.int64(data[at])
        at += 1
        code = tag & 7
        if code > _RICE:
            return _UNKNOWN_CODE, code, 0, 0
        if code != _RICE and tag >> 3:
            return _UNUSED_BITS, tag, 0, 0
        status, a, b = np.int64(_FINE), np.int64(0), np.int64(0)
        if code == _ALL_OR_NONE:
            if k not in (0, length):
                return _NOT_ALL_OR_NONE, k, length, 0
            for j in range(k):
                room[j] = starts[g] + j
        elif code == _BITMAP:
            status, a, b, at = _read_bitmap(data, at, k, length, starts[g], room)
        elif code == _FIXED:
            status, a, b, at = _read_fixed(data, at, k, length, starts[g], room)
        else:
            status, a, b, at = _read_rice(data, at, k, length, tag >> 3, starts[g], room)
        if status != _FINE:
            return status, a, b, 0
    return _FINE, 0, 0, at


def decode_index(
    data: torch.Tensor, counts: torch.Tensor, starts: torch.Tensor
) -> tuple[torch.Tensor | None, int, str]:
    """Agrees bit for bit with `reference.decode_index`, problems included."""
    check_counts(counts, starts)
    check_typed(data, torch.uint8)
    out = host.empty(int(counts.sum()), torch.int64)
    status, a, b, used = _read(array(data), array(counts), array(starts), out.numpy())
    if status != _FINE:
        return None, 0, reference.explain(int(status), int(a), int(b))
    return out, int(used), ""
