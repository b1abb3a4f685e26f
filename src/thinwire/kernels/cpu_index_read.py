"""What the index decoder reads in Numba: one bitmap, group of fixed width, or Golomb-Rice stream.

Each function returns a status and its two numbers, and most the bit after what they read. They
read 64-bit words that end in zeros, and ask before they take a bit.
"""

from __future__ import annotations

import numpy as np

from thinwire.kernels import reference
from thinwire.kernels.cpu_bits import peek, width_of
from thinwire.kernels.numba_support import (
    Array,
    Number,
    inlined,
    kernel,
    trailing_zeros,
    word_at,
)

_FINE = reference.FINE
_ENDS_EARLY = reference.ENDS_EARLY
_WRONG_ONES = reference.WRONG_ONES
_OUTSIDE = reference.OUTSIDE
_GAP_OUTSIDE = reference.GAP_OUTSIDE
_NOT_ASCENDING = reference.NOT_ASCENDING
_PADDING = reference.PADDING
_PIECE_LEFT = reference.PIECE_LEFT

_HELD = 57
"""Bits from any bit on that the word at its byte holds."""

_U64 = np.uint64
_TOP = np.uint64(1 << 63)


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


@inlined
def _two(base: Number, at: Number, p: Number, b: Number, mask: Number) -> Number:
    """Reads two positions from the word at a bit, and says whether both lie in it.

    Returns the first, the second, how many ones came before them, and the bit after.
    """
    word = word_at(base + (at >> 3)) >> _U64(at & 7)
    ones = _U64(trailing_zeros(~word | _TOP))
    word = word >> ones >> _U64(1)
    first = p + 1 + np.int64(ones << b | word & mask)
    word >>= b
    more = _U64(trailing_zeros(~word))
    word = word >> more >> _U64(1)
    second = first + 1 + np.int64(more << b | word & mask)
    both = np.int64(ones + more)
    return first, second, both, at + both + 2 + 2 * np.int64(b)


@kernel
def _read_short(
    words: Array, at: Number, end: Number, length: Number, b: Number, p: Number, out: Array
) -> Number:
    """Reads positions while two lie in one word and nothing is wrong.

    Returns how many, the last, and the bit after them.
    """
    base, b, mask = words.ctypes.data, _U64(b), (_U64(1) << _U64(b)) - _U64(1)
    most = _HELD - 2 - 2 * np.int64(b)
    m = np.int64(0)
    while m + 1 < out.size and at + 64 <= end:
        first, second, ones, after = _two(base, at, p, b, mask)
        if (ones > most) | (second >= length):
            break
        out[m], out[m + 1] = first, second
        m, p, at = m + 2, second, after
    return m, p, at


@kernel
def read_both(
    words: Array, at: Array, ends: Array, length: Number, b: Array, before: Array, out: Array
) -> Number:
    """Reads positions of two streams, as many of each, while nothing is wrong.

    Where a position ends is known when it is read, and a processor waits for that. It reads the
    other stream meanwhile.

    Returns how many; `at` and `before` are then the bits after them and the last of each.
    """
    x, y = words[0].ctypes.data, words[1].ctypes.data
    b_x, b_y = _U64(b[0]), _U64(b[1])
    mask_x, mask_y = (_U64(1) << b_x) - _U64(1), (_U64(1) << b_y) - _U64(1)
    most_x, most_y = _HELD - 2 - 2 * b[0], _HELD - 2 - 2 * b[1]
    at_x, at_y, p, q = at[0], at[1], before[0], before[1]
    m = np.int64(0)
    while m + 1 < out.shape[1] and at_x + 64 <= ends[0] and at_y + 64 <= ends[1]:
        first_x, second_x, ones_x, after_x = _two(x, at_x, p, b_x, mask_x)
        first_y, second_y, ones_y, after_y = _two(y, at_y, q, b_y, mask_y)
        if (ones_x > most_x) | (second_x >= length) | (ones_y > most_y) | (second_y >= length):
            break
        out[0, m], out[0, m + 1] = first_x, second_x
        out[1, m], out[1, m + 1] = first_y, second_y
        m, p, q, at_x, at_y = m + 2, second_x, second_y, after_x, after_y
    at[0], at[1], before[0], before[1] = at_x, at_y, p, q
    return m


@kernel
def read_rice(
    words: Array, at: Number, end: Number, length: Number, b: Number, before: Number, out: Array
) -> Number:
    """Reads positions in a domain, the first of them counted from the one before."""
    p = np.int64(before)
    mask = (_U64(1) << _U64(b)) - _U64(1)
    most = length >> b
    done, p, at = _read_short(words, at, end, length, b, p, out)
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
    status, x, y, at = read_rice(words, at, end, length, b, before, out)
    if status != _FINE:
        return status, x, y
    if at & 7 and peek(words, at) & ((_U64(1) << _U64(8 - (at & 7))) - _U64(1)):
        return _PADDING, 0, 0
    return (_FINE if (at + 7) >> 3 << 3 == end else _PIECE_LEFT), 0, 0
