"""The encoder of `thinwire.kernels.reference`'s index codec in Numba: the same bytes.

Nothing here checks bounds on its own: the indices are validated while their codes are chosen.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire.kernels import reference
from thinwire.kernels.checks import check_counts, check_domains, check_typed
from thinwire.kernels.cpu_bits import put, width_of
from thinwire.kernels.numba_support import Array, Number, array, copy, kernel
from thinwire.kernels.parallel import ALONE, each_share

# Numba freezes module globals into the compiled code, so these names cost nothing.
_ALL_OR_NONE = reference.ALL_OR_NONE
_BITMAP = reference.BITMAP
_FIXED = reference.FIXED
_RICE = reference.RICE
_PIECE = reference.PIECE


@kernel
def _sums(index: Array, before: Number, b: Number) -> Number:
    """Adds up gap >> b for b - 1, b and b + 1, b at least 1; negative bits where one descends."""
    gap = index[0] - before - 1
    bits, less, same, more = gap, gap >> (b - 1), gap >> b, gap >> (b + 1)
    # Without a way out of the loop, so that it vectorises.
    for j in range(1, index.size):
        gap = index[j] - index[j - 1] - 1
        bits |= gap
        less += gap >> (b - 1)
        same += gap >> b
        more += gap >> (b + 1)
    return bits, less, same, more


@kernel
def _guess(k: Number, length: Number) -> Number:
    """Returns the parameter, 1 to 30, at which k indices of so many are looked at first."""
    b = 1
    while b < 30 and k << (b + 1) < length:
        b += 1
    return b


@kernel
def _sum_pieces(
    index: Array, start: Number, b: Number, first: Number, last: Number, rows: Array
) -> None:
    """Writes `_sums` of a domain's pieces first to last - 1, each its row."""
    for p in range(first, last):
        low = p * _PIECE
        row = rows[p]
        before = index[low - 1] if low else start - 1
        row[0], row[1], row[2], row[3] = _sums(index[low : low + _PIECE], before, b)


@kernel
def _sum_ahead(
    index: Array, firsts: Array, domains: Array, first: Number, last: Number, rows: Array
) -> None:
    """Writes rows first to last - 1 of those that `_choose` looks at first."""
    for s in range(firsts.size - 1):
        k, base = firsts[s + 1] - firsts[s], _row(firsts[s], s)
        own = index[firsts[s] : firsts[s + 1]]
        pieces = (k + _PIECE - 1) // _PIECE
        low, high = max(0, first - base), min(pieces, last - base)
        b = _guess(k, domains[s + 1] - domains[s])
        _sum_pieces(own, domains[s], b, low, high, rows[base : base + pieces])


@kernel
def _row(first: Number, s: Number) -> Number:
    """Returns the row of the first piece of domain s, whose first index is that."""
    return first // _PIECE + s


@kernel
def _parameter(index: Array, start: Number, length: Number, rows: Array, known: Number) -> Number:
    """Returns the least parameter, 0 to 31, of the shortest Golomb-Rice stream, -1 for no order.

    And the column of `rows` in which each piece has its sum of gap >> b then. Where they are
    known the rows have been written for the first guess.
    """
    # Going from b to b + 1 saves the sum of (gap >> b) - (gap >> b + 1) bits, which falls as b
    # grows, and costs k: the size is convex in b, so the first minimum downhill is the one.
    k = index.size
    b = _guess(k, length)
    while True:
        if not known:
            _sum_pieces(index, start, b, 0, len(rows), rows)
        known = False
        less = same = more = 0
        for row in rows:
            if row[0] < 0:
                return -1, 0
            less, same, more = less + row[1], same + row[2], more + row[3]
        if less <= same + k:
            if b == 1:
                return 0, 1
        elif more + k < same:
            if b == 30:
                return 31, 3
        else:
            return b, 2
        b += 1 if more + k < same else -1


@kernel
def _rice_size(k: Number, b: Number, sums: Array, sizes: Array) -> Number:
    """Returns the bits of a Golomb-Rice stream, and notes the bytes of a long one's pieces."""
    if k <= _PIECE:
        return sums[0] + k * (1 + b)
    total = 0
    for first in range(0, k, _PIECE):
        p = first // _PIECE
        sizes[p] = (sums[p] + min(_PIECE, k - first) * (1 + b) + 7) // 8
        total += 32 + 8 * sizes[p]
    return total


@kernel
def _choose(
    index: Array, counts: Array, starts: Array, domains: Array, tags: Array, sizes: Array,
    rows: Array, known: Number,
) -> Number:  # fmt: skip
    """Chooses every domain's tag; returns the bytes of it all, or -1 when indices do not ascend.

    `sizes` are the bytes of the pieces of all long Golomb-Rice streams; `rows` are `_sum_ahead`'s,
    or to be written.
    """
    left = 0
    at = 0
    g = 0
    total = 0
    for s in range(tags.size):
        first = at
        fixed = 0
        while g < counts.size and starts[g + 1] <= domains[s + 1]:
            last = at + counts[g] - 1
            if counts[g] and (index[at] < starts[g] or index[last] >= starts[g + 1]):
                return -1
            fixed += counts[g] * width_of(starts[g + 1] - starts[g])
            at += counts[g]
            g += 1
        k, length = at - first, domains[s + 1] - domains[s]
        total += 1
        tags[s] = _ALL_OR_NONE
        if k == 0:
            continue
        own = rows[_row(first, s) :][: (k + _PIECE - 1) // _PIECE]
        b, column = _parameter(index[first:at], domains[s], length, own, known)
        if b < 0:
            return -1
        if k == length:
            continue
        tags[s] = _BITMAP
        best = length
        if fixed < best:
            tags[s] = _FIXED
            best = fixed
        bits = _rice_size(k, b, own[:, column], sizes[left:])
        if bits < best:
            tags[s] = _RICE | b << 3
            best = bits
            left += (k + _PIECE - 1) // _PIECE if k > _PIECE else 0
        total += (best + 7) // 8
    return total


@kernel
def _put_rice(words: Array, at: Number, index: Array, before: Number, b: Number) -> Number:
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
    index: Array, counts: Array, starts: Array, domains: Array, tags: Array, sizes: Array,
    words: Array, pieces: Array,
) -> Number:  # fmt: skip
    """Writes all but long Golomb-Rice streams; returns how many pieces of them are left to do.

    A row of `pieces` is where a piece's bytes begin, how many they are, its first and last index,
    the index before, and its parameter.
    """
    done = 0
    g = 0
    at = np.int64(0)
    left = 0
    for s in range(tags.size):
        first = done
        at = put(words, at, np.int64(tags[s]), 8)
        begin = at
        while g < counts.size and starts[g + 1] <= domains[s + 1]:
            if tags[s] == _FIXED:
                width = width_of(starts[g + 1] - starts[g])
                for j in range(done, done + counts[g]):
                    at = put(words, at, index[j] - starts[g], width)
            done += counts[g]
            g += 1
        b = np.int64(tags[s] >> 3)
        if tags[s] == _BITMAP:
            for j in range(first, done):
                put(words, begin + index[j] - domains[s], 1, 1)
            at = begin + domains[s + 1] - domains[s]
        elif tags[s] & 7 == _RICE and done - first <= _PIECE:
            at = _put_rice(words, at, index[first:done], domains[s] - 1, b)
        elif tags[s] & 7 == _RICE:
            place = at // 8 + 4 * ((done - first + _PIECE - 1) // _PIECE)
            before = domains[s] - 1
            for low in range(first, done, _PIECE):
                high = min(done, low + _PIECE)
                pieces[left, 0], pieces[left, 1] = place, sizes[left]
                pieces[left, 2], pieces[left, 3] = low, high
                pieces[left, 4], pieces[left, 5] = before, b
                at = put(words, at, sizes[left], 32)
                before = index[high - 1]
                place += sizes[left]
                left += 1
            at = 8 * place
        at = (at + 7) >> 3 << 3
    return left


@kernel
def _write_pieces(index: Array, pieces: Array, first: Number, last: Number, out: Array) -> None:
    # In words of its own, since neighbours share a word where their bytes meet.
    words = np.zeros(0, np.uint64)
    for p in range(first, last):
        place, size, low, high, before, b = pieces[p]
        if words.size < size // 8 + 2:
            words = np.empty(size // 8 + 2, np.uint64)
        words[:] = 0
        _put_rice(words, 0, index[low:high], before, b)
        raw = words.view(np.uint8)
        copy(out[place : place + size], raw)


def sum_ahead(index: Array, counts: Array, starts: Array, domains: Array, rows: Array) -> None:
    """Writes the rows that `_choose` looks at first, side by side where there are many."""
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    ahead = index, ends[np.searchsorted(starts, domains)], domains
    each_share(index.size, len(rows), lambda first, last: _sum_ahead(*ahead, first, last, rows))


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
    pieces = np.empty((index.numel() // _PIECE + tags.size + 1, 6), np.int64)
    sizes = np.empty(len(pieces), np.int64)
    rows = np.empty((index.numel() // _PIECE + tags.size + 1, 4), np.int64)
    if long := index.numel() >= ALONE:
        sum_ahead(*cut, rows)
    size = _choose(*cut, tags, sizes, rows, long)
    if size < 0:
        raise ValueError("indices must ascend within their groups")
    words = np.zeros(size // 8 + 2, np.uint64)
    left, out = _write(*cut, tags, sizes, words, pieces), words.view(np.uint8)
    each_share(
        index.numel(), left, lambda first, last: _write_pieces(cut[0], pieces, first, last, out)
    )
    return torch.from_numpy(out[:size])
