"""Selection among marked entries in Numba: no pass over a vector of which little has changed.

A group of which nothing is known, or too few reach the limit, is looked through once, for so many
more than are asked for that the next selections find enough of them.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.bodies import check_marked
from thinwire.kernels.cpu_candidates import room_of
from thinwire.kernels.cpu_owed import NOTHING_OWED
from thinwire.kernels.cpu_radix import take
from thinwire.kernels.cpu_select import finish, sifted
from thinwire.kernels.marked import Marked
from thinwire.kernels.numba_support import (
    EARLY,
    LINE,
    Array,
    Number,
    array,
    bits,
    kernel,
    prefetch,
    trailing_zeros,
)

_MAGNITUDE = np.uint32(reference.MAGNITUDE)
_INFINITE = np.uint32(0x7F800000)
_WIDE = 3
"""Times as many as are asked for reach a new limit."""
_MOST = 16
"""Times as many marked entries are more than are worth looking at."""
_PAYS = 32
"""A group has so many times more entries than are asked for where marks save anything."""

_U64 = np.uint64
_SIXTH, _LAST = np.uint64(6), np.uint64(LINE - 1)
"""An entry's word of marks and its bit in it, as a shift and a mask."""


@kernel
def _inside(word: Number, low: Number, high: Number) -> Number:
    """Returns a word of marks whose bits are those of the entries from low to high - 1."""
    first = max(low - LINE * word, 0)
    last = min(high - LINE * word, LINE)
    below = (_U64(1) << _U64(first)) - _U64(1)
    upto = ~_U64(0) if last == LINE else (_U64(1) << _U64(last)) - _U64(1)
    return upto & ~below


@kernel
def _marked(marks: Array, low: Number, high: Number, most: Number, index: Array) -> Number:
    """Writes the marked entries from low to high - 1; returns how many, or -1 above the most."""
    m = _U64(0)
    for word in range(low // LINE, (high + LINE - 1) // LINE):
        left = marks[word]
        if left:
            left &= _inside(word, low, high)
            if np.int64(m) > most - LINE:
                return -1
            while left:
                index[m] = LINE * word + np.int64(trailing_zeros(left))
                m += _U64(1)
                left &= left - _U64(1)
    return np.int64(m)


@kernel
def _look(
    keys: Array, starts: Array, limits: Array, marks: Array, counts: Array, index: Array,
    raw: Array, ends: Array, out: Array, values: Array, left: Array,
) -> None:  # fmt: skip
    """Selects in each group where enough marked entries reach the limit; left is 0 for those."""
    histogram = np.empty(1 << 16, np.int64)
    chosen = values.view(np.uint32)
    for g in range(counts.size):
        k, limit = counts[g], limits[g]
        left[g] = k
        if k == 0 or limit >= _INFINITE:
            continue
        most = min(index.size - EARLY, _MOST * k + LINE)
        m, n = _marked(marks, starts[g], starts[g + 1], most, index), _U64(0)
        for j in range(_U64(max(m, 0))):
            # What is asked for behind the last is anything; only its place is looked at.
            prefetch(keys.ctypes.data + 4 * np.int64(index[j + _U64(EARLY)]))
            i = _U64(index[j])
            key = keys[i]
            reached = np.uint32(key & _MAGNITUDE) >= limit
            index[n], raw[n] = i, key
            n += _U64(reached)
            marks[i >> _SIXTH] &= ~(_U64(not reached) << (i & _LAST))
        if n < _U64(k):
            continue
        to = slice(ends[g] - k, ends[g])
        take(index[:n], raw[:n], _MAGNITUDE, limit, k, histogram, out[to], chosen[to])
        left[g] = 0


@kernel
def _renew(
    starts: Array, limits: Array, marks: Array, left: Array, wide: Array,
    bounds: Array, owner: Array, offsets: Array, index: Array, raw: Array, found: Array,
) -> None:  # fmt: skip
    """Marks the candidates of each group that is left, and none else of it, if they will do."""
    p = 0
    for g in range(left.size):
        first, m, equal, complete = p, 0, 0, True
        while p < owner.size and owner[p] == g:
            complete = complete and found[p] >= 0
            m += found[p]
            for j in range(offsets[p], offsets[p] + found[p]):
                equal += np.int64(np.uint32(raw[j] & _MAGNITUDE) == bounds[g])
            p += 1
        if left[g] == 0:
            continue
        limits[g] = _INFINITE
        few = left[g] <= m <= _MOST * left[g] and wide[g] > left[g]
        # Of so many that equal the bound, some were left out where room ran out.
        if not (complete and few and equal < wide[g] and 0 < bounds[g] < _INFINITE):
            continue
        limits[g] = bounds[g]
        for word in range(starts[g] // LINE, (starts[g + 1] + LINE - 1) // LINE):
            marks[word] &= ~_inside(word, starts[g], starts[g + 1])
        for q in range(first, p):
            for i in index[offsets[q] : offsets[q] + found[q]]:
                marks[np.int64(i) // LINE] |= _U64(1) << _U64(np.int64(i) % LINE)


def pick_marked(
    marked: Marked, starts: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.pick_marked`, and renews limits and marks."""
    check_marked(marked, starts)
    checks.check_counts(counts, starts)
    keys, cuts, kept = bits(marked.x), array(starts), array(counts)
    limits, marks = bits(marked.limits), array(marked.marks).view(np.uint64)
    out = host.empty(int(kept.sum()), torch.int64)
    values, left, ends = host.empty(out.numel()), np.empty_like(kept), np.cumsum(kept)
    made = ends, out.numpy(), values.numpy()
    most = int(kept.max(initial=0))
    index, raw = room_of(min(keys.size, _MOST * most) + 2 * LINE + EARLY, keys.size)
    _look(keys, cuts, limits, marks, kept, index, raw, *made, left)
    if left.any():
        wide = np.where(_PAYS * left <= np.diff(cuts), _WIDE * left, left)
        candidates = sifted(keys, NOTHING_OWED, cuts, wide)
        _renew(cuts, limits, marks, left, wide, *candidates)
        finish(keys, NOTHING_OWED, cuts, left, candidates, made)
    return out, values
