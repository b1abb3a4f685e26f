"""What the index decoder reads in Numba: one bitmap, group of fixed width, or Golomb-Rice stream.

Each function returns a status and its two numbers, and most the bit after what they read. They
read 64-bit words that end in zeros, and ask before they take a bit.
"""

from __future__ import annotations

import numpy as np

from thinwire.kernels import reference
from thinwire.kernels.cpu_bits import peek, width_of
from thinwire.kernels.numba_support import Array, Number, kernel, prefetch, trailing_zeros

_FINE = reference.FINE
_ENDS_EARLY = reference.ENDS_EARLY
_WRONG_ONES = reference.WRONG_ONES
_OUTSIDE = reference.OUTSIDE
_GAP_OUTSIDE = reference.GAP_OUTSIDE
_NOT_ASCENDING = reference.NOT_ASCENDING
_PADDING = reference.PADDING
_PIECE_LEFT = reference.PIECE_LEFT

_U64 = np.uint64


@kernel
def _ones(word: Number) -> Number:
    x = word - (word >> _U64(1) & _U64(0x5555555555555555))
    x = (x & _U64(0x3333333333333333)) + (x >> _U64(2) & _U64(0x3333333333333333))
    x = x + (x >> _U64(4)) & _U64(0x0F0F0F0F0F0F0F0F)
    return np.int64(x * _U64(0x0101010101010101) >> _U64(56))


@kernel
def read_bitmap(words: Array, at: Number, end: Number, length: Number, out: Array) -> Number:
    """Reads a bitmap of a domain."""
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
def read_fixed(words: Array, at: Number, length: Number, out: Array) -> Number:
    """Reads the positions of one group, whose bits are known to be there."""
    width = width_of(length)
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
def _read_short(
    words: Array, at: Number, end: Number, length: Number, b: Number, p: Number, out: Array,
    ahead: Number,
) -> Number:  # fmt: skip
    """Reads positions while each lies in one word with others and nothing is wrong.

    Returns how many, the last, and the bit after them.
    """
    shift, mask = _U64(b), (_U64(1) << _U64(b)) - _U64(1)
    m = np.int64(0)
    while at + 64 <= end:
        word = peek(words, at)
        left = np.int64(64)
        while m < out.size:
            ones = trailing_zeros(~word)
            used = np.int64(ones) + 1 + b
            if used > left:
                break
            word = word >> ones >> _U64(1)
            after = p + 1 + np.int64(ones << shift | word & mask)
            if after >= length:
                return m, p, at + 64 - left
            p = after
            out[m] = p
            if ahead is not None:
                prefetch(ahead + 4 * p)
            m += 1
            word >>= shift
            left -= used
        at += 64 - left
        if left == 64 or m == out.size:
            break
    return m, p, at


@kernel
def read_rice(
    words: Array, at: Number, end: Number, length: Number, b: Number, before: Number, out: Array,
    ahead: Number,
) -> Number:  # fmt: skip
    """Reads positions in a domain, the first of them counted from the one before.

    Where `ahead` is no None, it is the address of the domain in a float32 vector, whose entries
    are asked for as their positions come.
    """
    p = np.int64(before)
    mask = (_U64(1) << _U64(b)) - _U64(1)
    most = length >> b
    done, p, at = _read_short(words, at, end, length, b, p, out, ahead)
    for m in range(done, out.size):
        word = peek(words, at)
        ones = np.int64(trailing_zeros(~word))
        held = ones
        while held == 64 and ones <= most:
            word = peek(words, at + ones)
            held = np.int64(trailing_zeros(~word))
            ones += held
        if ones > most:
            # After a piece, another one's bits may have been counted.
            status = _GAP_OUTSIDE if at + most < end else _ENDS_EARLY
            return status, length if status == _GAP_OUTSIDE else 0, 0, 0
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
def read_piece(
    words: Array, at: Number, end: Number, length: Number, b: Number, before: Number, out: Array
) -> Number:
    """Reads a piece of a long stream, which must end where it was said to; no bit is returned."""
    status, x, y, at = read_rice(words, at, end, length, b, before, out, None)
    if status != _FINE:
        return status, x, y
    if at & 7 and peek(words, at) & ((_U64(1) << _U64(8 - (at & 7))) - _U64(1)):
        return _PADDING, 0, 0
    return (_FINE if (at + 7) >> 3 << 3 == end else _PIECE_LEFT), 0, 0
