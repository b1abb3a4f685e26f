"""Exact selection in Numba: the k largest of each group.

A sampled lower bound, just below the k-th largest, leaves few candidates in one pass over the
vector; a radix select among those is exact. Where the sample misled (too few candidates, or
too many), the group is selected by radix as a whole: slower, and never wrong.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.cpu_radix import collect, threshold
from thinwire.kernels.numba_support import Array, Number, array, bits, kernel, trailing_zeros
from thinwire.kernels.parallel import each_stretch, stretches

_MAGNITUDE = np.uint32(reference.MAGNITUDE)
_EVERY_BIT = np.uint32(reference.MASK32)
_LINE = 64
_DRAWN = 16
_LINES = 4096
_WHOLE = 256


@kernel
def _bound(group: Array, k: Number, sample: Array, histogram: Array) -> Number:
    """Returns a key that most likely a few more than k keys reach, and how many may be expected."""
    n = group.size
    if k == 0:
        return _EVERY_BIT, 0
    if k == n or n <= _WHOLE:
        return np.uint32(0), n
    lines = min(_LINES, max(1, n // (8 * _DRAWN)))
    drawn = sample[: lines * _DRAWN]
    stride = n // lines
    for line in range(lines):
        part = group[line * stride : line * stride + _DRAWN]
        room = drawn[line * _DRAWN : (line + 1) * _DRAWN]
        for j in range(_DRAWN):
            room[j] = part[j] & _MAGNITUDE
    share = k * (drawn.size / n)
    rank = np.int64(np.ceil(share + 4 * np.sqrt(share) + 4))
    if rank >= drawn.size:
        return np.uint32(0), n
    key, _, _ = threshold(drawn, _MAGNITUDE, rank, histogram)
    most = np.int64(1.5 * (rank + 4 * np.sqrt(np.float64(rank))) * n / drawn.size) + 64
    return key, min(n, max(most, 2 * k))


@kernel
def _bounds(bits: Array, starts: Array, counts: Array, bounds: Array, most: Array) -> None:
    sample = np.empty(_LINES * _DRAWN, np.uint32)
    histogram = np.empty(1 << 16, np.int64)
    for g in range(counts.size):
        group = bits[starts[g] : starts[g + 1]]
        bounds[g], most[g] = _bound(group, counts[g], sample, histogram)


@kernel
def _candidates(
    group: Array, first: Number, bound: Number, k: Number, index: Array, keys: Array
) -> Number:
    """Collects the keys above the bound and the first k that equal it; -1 where room runs out."""
    m = 0
    equal = 0
    limit = bound
    room = index.size - _LINE
    for at in range(0, group.size, _LINE):
        line = group[at : at + _LINE]
        hits = np.uint64(0)
        if line.size == _LINE:
            for j in range(_LINE):
                hit = np.uint32(line[j] & _MAGNITUDE) >= limit
                hits |= np.uint64(hit) << np.uint64(j)
        else:
            for j in range(line.size):
                hit = np.uint32(line[j] & _MAGNITUDE) >= limit
                hits |= np.uint64(hit) << np.uint64(j)
        if hits == 0:
            continue
        if m > room:
            return -1
        while hits:
            j = trailing_zeros(hits)
            hits &= hits - np.uint64(1)
            key = np.uint32(line[j] & _MAGNITUDE)
            if key >= limit:
                index[m] = np.uint32(first + at + j)
                keys[m] = key
                m += 1
                if key == bound:
                    equal += 1
                    if equal == k:
                        limit = np.uint32(bound + np.uint32(1))
    return m


@kernel
def _compact(
    bits: Array, starts: Array, pieces: Array, owner: Array, bounds: Array, counts: Array,
    offsets: Array, first: Number, last: Number, index: Array, keys: Array, found: Array,
) -> None:  # fmt: skip
    for p in range(first, last):
        g = owner[p]
        found[p] = 0
        if counts[g]:
            room = slice(offsets[p], offsets[p + 1])
            group = bits[pieces[p] : pieces[p + 1]]
            found[p] = _candidates(group, pieces[p], bounds[g], counts[g], index[room], keys[room])


@kernel
def _finish(
    bits: Array, starts: Array, counts: Array, owner: Array, offsets: Array,
    index: Array, keys: Array, found: Array, out: Array,
) -> None:  # fmt: skip
    histogram = np.empty(1 << 16, np.int64)
    at = 0
    p = 0
    for g in range(counts.size):
        k = counts[g]
        chosen = out[at : at + k]
        at += k
        begin = offsets[p] if p < owner.size else 0
        m = 0
        complete = True
        while p < owner.size and owner[p] == g:
            complete = complete and found[p] >= 0
            if complete:
                # Candidates of a group's later pieces move up behind the earlier ones'.
                for j in range(found[p]):
                    index[begin + m + j] = index[offsets[p] + j]
                    keys[begin + m + j] = keys[offsets[p] + j]
                m += found[p]
            p += 1
        if k == 0:
            continue
        if complete and m >= k:
            collect(keys[begin : begin + m], _MAGNITUDE, k, histogram, 0, chosen)
            for j in range(k):
                chosen[j] = index[begin + chosen[j]]
        else:
            group = bits[starts[g] : starts[g + 1]]
            collect(group, _MAGNITUDE, k, histogram, starts[g], chosen)


def topk(u: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Agrees bit for bit with `reference.topk`."""
    checks.check_vector(u, starts)
    checks.check_counts(counts, starts)
    keys, cuts, kept = bits(u), array(starts), array(counts)
    out = host.empty(int(counts.sum()), torch.int64)
    bounds, most = np.empty(kept.size, np.uint32), np.empty(kept.size, np.int64)
    _bounds(keys, cuts, kept, bounds, most)
    edges = np.array([low for low, _ in stretches(keys.size)], np.int64)
    pieces = np.unique(np.concatenate([cuts, edges]))
    owner = np.searchsorted(cuts, pieces[:-1], side="right") - 1
    room = np.where(kept > 0, np.minimum(most + _LINE, np.diff(cuts) + _LINE), 0)[owner]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(room)])
    index, held = np.empty(offsets[-1], np.uint32), np.empty(offsets[-1], np.uint32)
    found = np.empty(owner.size, np.int64)

    def compact(low: int, high: int) -> None:
        first, last = np.searchsorted(pieces[:-1], (low, high))
        given = keys, cuts, pieces, owner, bounds, kept, offsets
        _compact(*given, first, last, index, held, found)

    if keys.size:
        each_stretch(keys.size, compact)
    _finish(keys, cuts, kept, owner, offsets, index, held, found, out.numpy())
    return out


@kernel
def _gather(u: Array, index: Array, out: Array) -> None:
    for j in range(index.size):
        out[j] = u[index[j]]


def gather(u: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Agrees bit for bit with `reference.gather`."""
    checks.check_inside(index, u.numel())
    out = host.empty(index.numel())
    _gather(array(u), array(index), out.numpy())
    return out
