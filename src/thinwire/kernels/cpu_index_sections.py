"""Whole index sections of `thinwire.kernels.reference`'s codec in Numba, one or two at a time.

Nothing here checks bounds on its own: it reads 64-bit words that end in zeros, and asks before it
takes a bit.
"""

from __future__ import annotations

import numpy as np

from thinwire.kernels import reference
from thinwire.kernels.cpu_bits import peek, width_of
from thinwire.kernels.cpu_index_read import (
    read_bitmap,
    read_both,
    read_fixed,
    read_piece,
    read_rice,
)
from thinwire.kernels.numba_support import Array, Number, kernel

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
_PADDING = reference.PADDING
_WRONG_CHUNK = reference.WRONG_CHUNK
_PIECE = reference.PIECE
_PIECE_LEFT = reference.PIECE_LEFT

_U64 = np.uint64


@kernel
def add(index: Array, base: Number) -> None:
    """Counts indices from elsewhere."""
    # By hand: Numba adds no number to unsigned ones in place.
    if base:
        for j in range(index.size):
            index[j] += base


@kernel
def outside(index: Array, low: Number, high: Number) -> Number:
    """Returns the place of the first of some ascending indices that is not in a group, or -1."""
    if index.size and (index[0] < low or index[-1] >= high):
        for j in range(index.size):
            if not low <= index[j] < high:
                return j
    return -1


@kernel
def _read_long(
    words: Array, at: Number, end: Number, length: Number, b: Number, s: Number, first: Number,
    defer: Number, pieces: Array, room: Array,
) -> Number:  # fmt: skip
    """Reads a Golomb-Rice stream of several pieces, in order, or notes what there is to read.

    Returns status and its two numbers, the bit after it, and how many pieces were noted.
    """
    many = (room.size + _PIECE - 1) // _PIECE
    if 32 * many > end - at:
        return _ENDS_EARLY, 0, 0, 0, 0
    place = at + 32 * many
    total = np.int64(0)
    for q in range(many):
        total += 8 * np.int64(peek(words, at + 32 * q) & _U64(0xFFFFFFFF))
    if total > end - place:
        return _ENDS_EARLY, 0, 0, 0, 0
    before = np.int64(-1)
    for q in range(many):
        upto = place + 8 * np.int64(peek(words, at + 32 * q) & _U64(0xFFFFFFFF))
        low, high = q * _PIECE, min(room.size, (q + 1) * _PIECE)
        if defer:
            pieces[q, 0], pieces[q, 1] = place, upto
            pieces[q, 2], pieces[q, 3] = first + low, first + high
            pieces[q, 4], pieces[q, 5] = b, s
        else:
            own = room[low:high]
            status, x, y = read_piece(words, place, upto, length, b, before, own)
            if status != _FINE:
                return status, q if status == _PIECE_LEFT else x, y, 0, 0
            before = own[-1]
        place = upto
    return _FINE, 0, 0, place, many if defer else 0


@kernel
def _read_groups(
    words: Array, at: Number, counts: Array, starts: Array, begin: Number, end: Number,
    room: Array,
) -> Number:  # fmt: skip
    """Reads the fixed-width positions of a domain's groups, whose bits are known to be there."""
    upto = 0
    for c in range(begin, end):
        inside = room[upto : upto + counts[c]]
        upto += counts[c]
        status, a, b, at = read_fixed(words, at, starts[c + 1] - starts[c], inside)
        if status != _FINE:
            return status, a, b, 0
        add(inside, starts[c] - starts[begin])
    return _FINE, 0, 0, at


@kernel
def _read_domain(
    words: Array, at: Number, end: Number, counts: Array, starts: Array, begin: Number, g: Number,
    s: Number, tag: Number, defer: Number, pieces: Array, first: Number, had: Number, p: Number,
    room: Array,
) -> Number:  # fmt: skip
    """Reads domain s, of groups begin to g - 1, whose tag and first `had` positions are read.

    Returns status and its two numbers, the bit after it, and how many pieces were noted.
    """
    low, length, code, b, more = starts[begin], starts[g] - starts[begin], tag & 7, tag >> 3, 0
    status, x, y = np.int64(_FINE), np.int64(0), np.int64(0)
    if code > _RICE:
        return _UNKNOWN_CODE, code, 0, 0, 0
    if code != _RICE and b:
        return _UNUSED_BITS, tag, 0, 0, 0
    if code == _ALL_OR_NONE:
        if room.size and room.size != length:
            return _NOT_ALL_OR_NONE, room.size, length, 0, 0
        for j in range(room.size):
            room[j] = j
    elif code == _BITMAP:
        status, x, y, at = read_bitmap(words, at, end, length, room)
    elif code == _FIXED:
        fixed = 0
        for c in range(begin, g):
            fixed += counts[c] * width_of(starts[c + 1] - starts[c])
        if fixed > end - at:
            return _ENDS_EARLY, 0, 0, 0, 0
        status, x, y, at = _read_groups(words, at, counts, starts, begin, g, room)
    elif room.size <= _PIECE:
        status, x, y, at = read_rice(words, at, end, length, b, p, room[had:])
    else:
        given = end, length, b, s, first, defer, pieces, room
        status, x, y, at, more = _read_long(words, at, *given)
        if defer and status == _FINE:
            return status, x, y, at, more
    if status != _FINE:
        return status, x, y, 0, 0
    add(room, low)
    if at & 7:
        if peek(words, at) & ((_U64(1) << _U64(8 - (at & 7))) - _U64(1)):
            return _PADDING, 0, 0, 0, 0
        at = (at + 7) >> 3 << 3
    upto = 0
    for c in range(begin, g):
        inside = room[upto : upto + counts[c]]
        j = outside(inside, starts[c], starts[c + 1])
        if j >= 0:
            return _WRONG_CHUNK, inside[j] - low, 0, 0, 0
        upto += counts[c]
    return _FINE, 0, 0, at, more


@kernel
def read_index(
    words: Array, sizes: Array, counts: Array, starts: Array, domains: Array, defer: Number,
    pieces: Array, out: Array, used: Array,
) -> Number:  # fmt: skip
    """Reads index sections of one shape, domain by domain; of two, long runs go side by side.

    Where they are deferred, Golomb-Rice streams of several pieces are not read, but noted: that is
    for one section alone. A row of `pieces` is where a piece's bits begin and end, its first and
    last index, its parameter and its domain.

    Args:
        words: (L, w), a section in each row, and zeros after it.
        sizes: (L,), their bytes.
        counts: (G,), how many indices each group has.
        starts: (G + 1,), the groups.
        domains: (S + 1,), the runs that are coded together.
        defer: whether long streams are noted.
        pieces: for the notes.
        out: (L, n), takes the indices.
        used: (L,), takes the bytes that were read.

    Returns:
        Status and its two numbers, of the first that is wrong, and how many pieces were noted.
    """
    many, ends, done, g, left = sizes.size, 8 * sizes, 0, 0, 0
    at, tags, before = np.zeros(many, np.int64), np.empty(many, np.int64), np.empty(many, np.int64)
    for s in range(domains.size - 1):
        first, begin, had = done, g, np.int64(0)
        while g < counts.size and starts[g + 1] <= domains[s + 1]:
            done += counts[g]
            g += 1
        rice = done - first <= _PIECE
        for i in range(many):
            if at[i] >= ends[i]:
                return _ENDS_EARLY, 0, 0, 0
            tags[i], before[i] = np.int64(peek(words[i], at[i]) & _U64(0xFF)), -1
            at[i] += 8
            rice = rice and tags[i] & 7 == _RICE
        if many == 2 and rice:
            length, b = domains[s + 1] - domains[s], tags >> 3
            had = read_both(words, at, ends, length, b, before, out[:, first:done])
        for i in range(many):
            room, noted = out[i, first:done], pieces[left:]
            shape = counts, starts, begin, g, s, tags[i], defer, noted, first, had, before[i]
            status, x, y, at[i], more = _read_domain(words[i], at[i], ends[i], *shape, room)
            if status != _FINE:
                return status, x, y, 0
            left += more
    used[:] = at >> 3
    return _FINE, 0, 0, left
