"""The random choice of entries in Numba: those with the smallest words.

Words are uniform, so a bound that a few more than k of them stay below is known beforehand: one
pass leaves few candidates, as in `thinwire.kernels.cpu_select`. Where they are fewer than k, or
too many, all words of the group are compared.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.cpu_candidates import CHECKED, candidates, each_group, gathered, pieces_of
from thinwire.kernels.cpu_radix import collect, take
from thinwire.kernels.cpu_words import fill_words, halves
from thinwire.kernels.numba_support import Array, Number, array, group_of, kernel
from thinwire.kernels.parallel import each_stretch
from thinwire.kernels.reference import Key

_EVERY_BIT = np.uint32(reference.MASK32)


@kernel
def _fill_keys(out: Array, first: Number, k0: Number, k1: Number) -> None:
    """Writes the complements of words: the smallest words are the largest keys."""
    fill_words(out, np.uint32(first), k0, k1)
    for j in range(out.size):
        out[j] = ~out[j]


@kernel
def _draw(
    pieces: Array, owner: Array, limits: Array, offsets: Array, k0: Number, k1: Number,
    first: Number, last: Number, index: Array, keys: Array, found: Array,
) -> None:  # fmt: skip
    scratch = np.empty(CHECKED, np.uint32)
    for p in range(first, last):
        begin, end = offsets[p], offsets[p + 1]
        m = begin
        for at in range(pieces[p], pieces[p + 1] if end > begin else 0, CHECKED):
            if m > end - CHECKED - 1:
                m = begin - 1
                break
            block = scratch[: min(CHECKED, pieces[p + 1] - at)]
            _fill_keys(block, at, k0, k1)
            m = candidates(block, at, _EVERY_BIT, limits[owner[p]], m, index, keys)
        found[p] = m - begin


@kernel
def _finish(
    starts: Array, counts: Array, limits: Array, owner: Array, offsets: Array, k0: Number,
    k1: Number, first: Number, last: Number, index: Array, keys: Array, found: Array,
    ends: Array, out: Array,
) -> None:  # fmt: skip
    histogram = np.empty(1 << 16, np.int64)
    p = group_of(owner, first - 1) + 1
    for g in range(first, last):
        k = counts[g]
        chosen = out[ends[g] - k : ends[g]]
        begin, m, complete, p = gathered(g, p, owner, offsets, index, keys, found)
        if complete and m >= k:
            there = slice(begin, begin + m)
            given = index[there], keys[there]
            take(*given, _EVERY_BIT, limits[g], k, histogram, chosen, keys[:0])
        else:
            group = np.empty(starts[g + 1] - starts[g], np.uint32)
            _fill_keys(group, starts[g], k0, k1)
            collect(group, _EVERY_BIT, k, histogram, starts[g], chosen)


def randk(starts: torch.Tensor, counts: torch.Tensor, key: Key) -> torch.Tensor:
    """Agrees bit for bit with `reference.randk`."""
    checks.check_counts(counts, starts)
    out = host.empty(int(counts.sum()), torch.int64)
    cuts, kept, k = array(starts), array(counts), halves(key)
    n = np.diff(cuts)
    # Six deviations of the number that stays below: one group in a thousand million misses.
    expected = kept + 6 * np.sqrt(kept) + 16
    shares = np.minimum(expected / np.maximum(n, 1), 1.0)
    limits = (_EVERY_BIT - np.floor(shares * int(_EVERY_BIT))).astype(np.uint32)
    most = (expected + 6 * np.sqrt(expected)).astype(np.int64)
    pieces, owner, offsets, index, keys, found = pieces_of(cuts, kept, most)

    def draw(low: int, high: int) -> None:
        first, last = np.searchsorted(pieces[:-1], (low, high))
        _draw(pieces, owner, limits, offsets, *k, first, last, index, keys, found)

    each_stretch(int(cuts[-1]), draw)
    given, made = (cuts, kept, limits, owner, offsets, *k), (np.cumsum(kept), out.numpy())
    each_group(cuts, lambda g, end: _finish(*given, g, end, index, keys, found, *made))
    return out
