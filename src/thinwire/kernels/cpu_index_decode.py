"""The decoder of `thinwire.kernels.reference`'s index codec in Numba: same answers, same refusals.

Nothing here checks bounds on its own: it reads 64-bit words of a copy that ends in zeros, and
asks before it takes a bit. Pieces of long streams are read side by side, as if each were the
first of its domain; what was before them is added after. Where anything is wrong, all is read
once more in order: what is said of it is what the first wrong bit deserves.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import reference
from thinwire.kernels.checks import check_counts, check_domains, check_typed
from thinwire.kernels.cpu_bits import padded_words, peek, width_of
from thinwire.kernels.cpu_index_read import read_bitmap, read_fixed, read_piece, read_rice
from thinwire.kernels.numba_support import Array, Number, array, kernel
from thinwire.kernels.parallel import each_share, stretches

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
def _outside(index: Array, low: Number, high: Number) -> Number:
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
        inside += starts[c] - starts[begin]
    return _FINE, 0, 0, at


@kernel
def read_index(
    words: Array, size: Number, counts: Array, starts: Array, domains: Array, defer: Number,
    pieces: Array, out: Array, ahead: Number,
) -> Number:  # fmt: skip
    """Reads all, or all but long Golomb-Rice streams where those are deferred.

    Where `ahead` is no None, it is the address of a float32 vector, and far entries are asked for.

    Returns status and its two numbers, the bytes read, and how many pieces are left to do. A row
    of `pieces` is where a piece's bits begin and end, its first and last index, its parameter
    and its domain.
    """
    at = np.int64(0)
    end = 8 * size
    done = 0
    g = 0
    left = 0
    for s in range(domains.size - 1):
        if at >= end:
            return _ENDS_EARLY, 0, 0, 0, 0
        tag = np.int64(peek(words, at) & _U64(0xFF))
        at += 8
        code = tag & 7
        if code > _RICE:
            return _UNKNOWN_CODE, code, 0, 0, 0
        if code != _RICE and tag >> 3:
            return _UNUSED_BITS, tag, 0, 0, 0
        length = domains[s + 1] - domains[s]
        first = done
        begin = g
        fixed = 0
        while g < counts.size and starts[g + 1] <= domains[s + 1]:
            fixed += counts[g] * width_of(starts[g + 1] - starts[g])
            done += counts[g]
            g += 1
        room = out[first:done]
        status, a, b = np.int64(_FINE), np.int64(0), np.int64(0)
        if code == _ALL_OR_NONE:
            if room.size and room.size != length:
                return _NOT_ALL_OR_NONE, room.size, length, 0, 0
            for j in range(room.size):
                room[j] = j
        elif code == _BITMAP:
            status, a, b, at = read_bitmap(words, at, end, length, room)
        elif code == _FIXED:
            if fixed > end - at:
                return _ENDS_EARLY, 0, 0, 0, 0
            status, a, b, at = _read_groups(words, at, counts, starts, begin, g, room)
        elif room.size <= _PIECE:
            near = ahead if ahead is None else ahead + 4 * domains[s]
            status, a, b, at = read_rice(words, at, end, length, tag >> 3, -1, room, near)
        else:
            status, a, b, at, more = _read_long(
                words, at, end, length, tag >> 3, s, first, defer, pieces[left:], room
            )
            left += more
            if defer and status == _FINE:
                continue
        if status != _FINE:
            return status, a, b, 0, 0
        room += domains[s]
        if at & 7:
            if peek(words, at) & ((_U64(1) << _U64(8 - (at & 7))) - _U64(1)):
                return _PADDING, 0, 0, 0, 0
            at = (at + 7) >> 3 << 3
        upto = first
        for c in range(begin, g):
            inside = out[upto : upto + counts[c]]
            j = _outside(inside, starts[c], starts[c + 1])
            if j >= 0:
                return _WRONG_CHUNK, inside[j] - domains[s], 0, 0, 0
            upto += counts[c]
    return _FINE, 0, 0, at >> 3, left


@kernel
def _read_pieces(
    words: Array, domains: Array, pieces: Array, first: Number, last: Number, out: Array,
    fine: Array,
) -> None:  # fmt: skip
    for p in range(first, last):
        at, end, low, high, b, s = pieces[p]
        length = domains[s + 1] - domains[s]
        status, _, _ = read_piece(words, at, end, length, b, np.int64(-1), out[low:high])
        fine[p] = status == _FINE


@kernel
def _find_bases(domains: Array, pieces: Array, out: Array, bases: Array) -> Number:
    """Finds what each piece's positions are counted from; returns whether all stay inside."""
    inside = True
    for p in range(bases.size):
        s = pieces[p, 5]
        if p == 0 or pieces[p - 1, 5] != s:
            bases[p] = domains[s]
        else:
            bases[p] = bases[p - 1] + out[pieces[p - 1, 3] - 1] + 1
        inside &= bases[p] + out[pieces[p, 3] - 1] < domains[s + 1]
    return inside


@kernel
def _add_bases(pieces: Array, bases: Array, first: Number, last: Number, out: Array) -> None:
    for p in range(first, last):
        own = out[pieces[p, 2] : pieces[p, 3]]
        for j in range(own.size):
            own[j] += bases[p]


@kernel
def _all_inside(counts: Array, starts: Array, out: Array) -> Number:
    upto = 0
    for c in range(counts.size):
        if _outside(out[upto : upto + counts[c]], starts[c], starts[c + 1]) >= 0:
            return False
        upto += counts[c]
    return True


def read_side_by_side(
    words: Array, size: int, counts: Array, starts: Array, domains: Array, out: Array
) -> int:
    """Reads all with the threads there are; returns the bytes read, or -1 where any is wrong."""
    pieces = np.empty((out.size // _PIECE + domains.size, 6), np.int64)
    given = words, size, counts, starts, domains
    status, _, _, used, left = read_index(*given, True, pieces, out, None)
    if status != _FINE:
        return -1
    fine, bases = np.empty(left, np.bool_), np.empty(left, np.int64)
    each_share(out.size, left, lambda i, j: _read_pieces(words, domains, pieces, i, j, out, fine))
    if not fine.all() or not _find_bases(domains, pieces, out, bases):
        return -1
    each_share(out.size, left, lambda i, j: _add_bases(pieces, bases, i, j, out))
    return int(used) if _all_inside(counts, starts, out) else -1


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
    index, given = out.numpy(), (padded_words(data), data.numel(), *cut)
    if len(stretches(index.size)) > 1:
        used = read_side_by_side(*given, index)
        if used >= 0:
            return out, used, ""
    none = np.empty((0, 6), np.int64)
    status, a, b, used, _ = read_index(*given, False, none, index, None)
    if status != _FINE:
        return None, 0, reference.explain(int(status), int(a), int(b))
    return out, int(used), ""
