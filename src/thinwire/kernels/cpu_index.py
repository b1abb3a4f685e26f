"""The index codec of `thinwire.kernels.reference` in Numba: same bytes, same refusals.

Nothing here checks bounds on its own: the encoder validates its indices while it chooses codes;
the decoder reads 64-bit words of a copy that ends in zeros, and asks before it takes a bit.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import reference
from thinwire.kernels.checks import check_counts, check_domains, check_typed
from thinwire.kernels.numba_support import Array, Number, array, kernel, trailing_zeros

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
_WRONG_CHUNK = reference.WRONG_CHUNK


_U64 = np.uint64


@kernel
def _width_of(length: Number) -> Number:
    """Returns the bits that a position in a group of this length needs."""
    width = np.int64(0)
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
def _best_rice(index: Array, start: Number, length: Number) -> Number:
    """Returns the fewest bits of a Golomb-Rice stream, and the least parameter that has them."""
    # Going from b to b + 1 saves the sum of (gap >> b) - (gap >> b + 1) bits, which falls as b
    # grows, and costs k: the size is convex in b, so the first minimum downhill is the one.
    b = 0
    while b < 31 and index.size << (b + 1) < length:
        b += 1
    bits = _rice_bits(index, start, b)
    down = True
    while down and b > 0:
        other = _rice_bits(index, start, b - 1)
        down = other <= bits
        if down:
            bits = other
            b -= 1
    up = True
    while up and b < 31:
        other = _rice_bits(index, start, b + 1)
        up = other < bits
        if up:
            bits = other
            b += 1
    return bits, b


@kernel
def _choose(index: Array, counts: Array, starts: Array, domains: Array, tags: Array) -> Number:
    """Chooses every domain's tag; returns the bytes of it all, or -1 when indices do not ascend."""
    at = 0
    g = 0
    total = 0
    for s in range(tags.size):
        first = at
        fixed = 0
        while g < counts.size and starts[g + 1] <= domains[s + 1]:
            before = starts[g] - 1
            for j in range(at, at + counts[g]):
                if index[j] <= before:
                    return -1
                before = index[j]
            if before >= starts[g + 1]:
                return -1
            fixed += counts[g] * _width_of(starts[g + 1] - starts[g])
            at += counts[g]
            g += 1
        length = domains[s + 1] - domains[s]
        total += 1
        tags[s] = _ALL_OR_NONE
        if at - first in (0, length):
            continue
        tags[s] = _BITMAP
        best = length
        if fixed < best:
            tags[s] = _FIXED
            best = fixed
        bits, b = _best_rice(index[first:at], domains[s], length)
        if bits < best:
            tags[s] = _RICE | b << 3
            best = bits
        total += (best + 7) // 8
    return total


@kernel
def put(words: Array, at: Number, value: Number, width: Number) -> Number:
    """Writes `width` < 64 bits at bit `at`; returns the bit after them."""
    shift = _U64(at & 63)
    words[at >> 6] |= _U64(value) << shift
    words[(at >> 6) + 1] |= (_U64(value) >> _U64(1)) >> (_U64(63) - shift)
    return at + width


@kernel
def _put_rice(words: Array, at: Number, index: Array, start: Number, b: Number) -> Number:
    before = start - 1
    for j in range(index.size):
        gap = index[j] - before - 1
        before = index[j]
        ones = gap >> b
        while ones >= 31:
            at = put(words, at, (1 << 31) - 1, 31)
            ones -= 31
        low = gap & ((1 << b) - 1)
        at = put(words, at, (1 << ones) - 1 | low << (ones + 1), ones + 1 + b)
    return at


@kernel
def _write(
    index: Array, counts: Array, starts: Array, domains: Array, tags: Array, words: Array
) -> None:
    done = 0
    g = 0
    at = np.int64(0)
    for s in range(tags.size):
        first = done
        at = put(words, at, np.int64(tags[s]), 8)
        begin = at
        while g < counts.size and starts[g + 1] <= domains[s + 1]:
            if tags[s] == _FIXED:
                width = _width_of(starts[g + 1] - starts[g])
                for j in range(done, done + counts[g]):
                    at = put(words, at, index[j] - starts[g], width)
            done += counts[g]
            g += 1
        if tags[s] == _BITMAP:
            for j in range(first, done):
                put(words, begin + index[j] - domains[s], 1, 1)
            at = begin + domains[s + 1] - domains[s]
        elif tags[s] & 7 == _RICE:
            at = _put_rice(words, at, index[first:done], domains[s], np.int64(tags[s] >> 3))
        at = (at + 7) >> 3 << 3


def encode_index(
    index: torch.Tensor,
    counts: torch.Tensor,
    starts: torch.Tensor,
    domains: torch.Tensor | None = None,
) -> torch.Tensor:
    """Agrees bit for bit with `reference.encode_index`."""
    check_counts(counts, starts)
    check_domains(domains, starts)
    check_typed(index, torch.int64)
    if int(counts.sum()) != index.numel():
        raise ValueError(f"{index.numel()} indices for counts that add up to {int(counts.sum())}")
    cut = array(index), array(counts), array(starts), array(starts if domains is None else domains)
    tags = np.empty(cut[-1].size - 1, np.uint8)
    size = _choose(*cut, tags)
    if size < 0:
        raise ValueError("indices must ascend within their groups")
    words = np.zeros(size // 8 + 2, np.uint64)
    _write(*cut, tags, words)
    return torch.from_numpy(words.view(np.uint8)[:size])


@kernel
def peek(words: Array, at: Number) -> Number:
    """Returns the 64 bits from bit `at` on."""
    shift = _U64(at & 63)
    low = words[at >> 6] >> shift
    return low | (words[(at >> 6) + 1] << _U64(1)) << (_U64(63) - shift)


@kernel
def _ones(word: Number) -> Number:
    x = word - (word >> _U64(1) & _U64(0x5555555555555555))
    x = (x & _U64(0x3333333333333333)) + (x >> _U64(2) & _U64(0x3333333333333333))
    x = x + (x >> _U64(4)) & _U64(0x0F0F0F0F0F0F0F0F)
    return np.int64(x * _U64(0x0101010101010101) >> _U64(56))


@kernel
def _read_bitmap(words: Array, at: Number, end: Number, length: Number, out: Array) -> Number:
    if length > end - at:
        return _ENDS_EARLY, 0, 0, 0
    ones = 0
    for p in range(0, length, 64):
        word = peek(words, at + p)
        if length - p < 64:
            word &= (_U64(1) << _U64(length - p)) - _U64(1)
        ones += _ones(word)
    if ones != out.size:
        return _WRONG_ONES, ones, out.size, 0
    m = 0
    for p in range(0, length, 64):
        word = peek(words, at + p)
        if length - p < 64:
            word &= (_U64(1) << _U64(length - p)) - _U64(1)
        while word:
            out[m] = p + np.int64(trailing_zeros(word))
            m += 1
            word &= word - _U64(1)
    return _FINE, 0, 0, at + length


@kernel
def _read_fixed(words: Array, at: Number, end: Number, length: Number, out: Array) -> Number:
    """Reads the positions of one group, whose bits are known to be there."""
    width = _width_of(length)
    mask = (_U64(1) << _U64(width)) - _U64(1)
    before = np.int64(-1)
    for m in range(out.size):
        p = np.int64(peek(words, at) & mask)
        at += width
        if p >= length:
            return _OUTSIDE, p, length, 0
        if p <= before:
            return _NOT_ASCENDING, 0, 0, 0
        before = p
        out[m] = p
    return _FINE, 0, 0, at


@kernel
def _read_rice(
    words: Array, at: Number, end: Number, length: Number, b: Number, out: Array
) -> Number:
    p = np.int64(-1)
    mask = (_U64(1) << _U64(b)) - _U64(1)
    most = length >> b
    for m in range(out.size):
        # Bits after the end are zeros, so no one is counted there.
        word = peek(words, at)
        ones = np.int64(trailing_zeros(~word))
        held = ones
        while held == 64 and ones <= most:
            word = peek(words, at + ones)
            held = np.int64(trailing_zeros(~word))
            ones += held
        if ones > most:
            return _GAP_OUTSIDE, length, 0, 0
        at += ones + 1
        if at + b > end:
            return _ENDS_EARLY, 0, 0, 0
        low = word >> _U64(held) >> _U64(1) if held + b < 64 else peek(words, at)
        p += 1 + (ones << b) + np.int64(low & mask)
        at += b
        if p >= length:
            return _OUTSIDE, p, length, 0
        out[m] = p
    return _FINE, 0, 0, at


@kernel
def _read(
    words: Array, size: Number, counts: Array, starts: Array, domains: Array, out: Array
) -> Number:
    at = np.int64(0)
    end = 8 * size
    done = 0
    g = 0
    for s in range(domains.size - 1):
        if at >= end:
            return _ENDS_EARLY, 0, 0, 0
        tag = np.int64(peek(words, at) & _U64(0xFF))
        at += 8
        code = tag & 7
        if code > _RICE:
            return _UNKNOWN_CODE, code, 0, 0
        if code != _RICE and tag >> 3:
            return _UNUSED_BITS, tag, 0, 0
        length = domains[s + 1] - domains[s]
        first = done
        begin = g
        fixed = 0
        while g < counts.size and starts[g + 1] <= domains[s + 1]:
            fixed += counts[g] * _width_of(starts[g + 1] - starts[g])
            done += counts[g]
            g += 1
        room = out[first:done]
        status, a, b = np.int64(_FINE), np.int64(0), np.int64(0)
        if code == _ALL_OR_NONE:
            if room.size not in (0, length):
                return _NOT_ALL_OR_NONE, room.size, length, 0
            for j in range(room.size):
                room[j] = j
        elif code == _BITMAP:
            status, a, b, at = _read_bitmap(words, at, end, length, room)
        elif code == _RICE:
            status, a, b, at = _read_rice(words, at, end, length, tag >> 3, room)
        else:
            if fixed > end - at:
                return _ENDS_EARLY, 0, 0, 0
            upto = first
            for c in range(begin, g):
                inside = out[upto : upto + counts[c]]
                upto += counts[c]
                status, a, b, at = _read_fixed(words, at, end, starts[c + 1] - starts[c], inside)
                if status != _FINE:
                    return status, a, b, 0
                inside += starts[c] - domains[s]
        if status != _FINE:
            return status, a, b, 0
        room += domains[s]
        if at & 7:
            if peek(words, at) & ((_U64(1) << _U64(8 - (at & 7))) - _U64(1)):
                return _PADDING, 0, 0, 0
            at = (at + 7) >> 3 << 3
        upto = first
        for c in range(begin, g):
            for j in range(upto, upto + counts[c]):
                if not starts[c] <= out[j] < starts[c + 1]:
                    return _WRONG_CHUNK, out[j] - domains[s], 0, 0
            upto += counts[c]
    return _FINE, 0, 0, at >> 3


def padded_words(data: torch.Tensor) -> Array:
    """Returns the bytes as uint64 words, and zeros after them for what reads ahead."""
    words = np.zeros(data.numel() // 8 + 4, np.uint64)
    words.view(np.uint8)[: data.numel()] = array(data)
    return words


def decode_index(
    data: torch.Tensor,
    counts: torch.Tensor,
    starts: torch.Tensor,
    domains: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, int, str]:
    """Agrees bit for bit with `reference.decode_index`, problems included."""
    check_counts(counts, starts)
    check_domains(domains, starts)
    check_typed(data, torch.uint8)
    cut = array(counts), array(starts), array(starts if domains is None else domains)
    out = host.empty(int(counts.sum()), torch.int64)
    status, a, b, used = _read(padded_words(data), data.numel(), *cut, out.numpy())
    if status != _FINE:
        return None, 0, reference.explain(int(status), int(a), int(b))
    return out, int(used), ""
