"""Exact selection in Numba: the k largest of each group.

A sampled lower bound, just below the k-th largest, leaves few candidates in one pass over the
vector; a radix select among those is exact. Where the sample misled (too few candidates, or
too many), the group is selected by radix as a whole: slower, and never wrong.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.cpu_candidates import (
    CHECKED,
    candidates,
    each_group,
    gathered,
    noted,
    pieces_of,
)
from thinwire.kernels.cpu_owed import FLOAT32, NOTHING_OWED, fetch, load, read
from thinwire.kernels.cpu_radix import collect, take, threshold
from thinwire.kernels.numba_support import (
    LINE,
    Array,
    Number,
    array,
    bits,
    group_of,
    kernel,
    owed_reaching,
)
from thinwire.kernels.owed import Owed
from thinwire.kernels.parallel import each_stretch

_MAGNITUDE = np.uint32(reference.MAGNITUDE)
_EVERY_BIT = np.uint32(reference.MASK32)
_DRAWN = 32
_LINES = 2048
_EARLY = 8
_WHOLE = 256


@kernel
def _expect(n: Number, k: Number, drawn: Number) -> Number:
    """Returns which rank in a sample bounds the k largest of n, and the candidates to expect."""
    share = k * (drawn / n)
    rank = np.int64(math.ceil(share + 4 * math.sqrt(share) + 4))
    most = np.int64(1.5 * (rank + 4 * math.sqrt(np.float64(rank))) * n / drawn) + 64
    return rank, min(n, max(most, 2 * k))


@kernel
def _bounds(
    plain: Array, owed: Any, starts: Array, counts: Array, first: Number, last: Number,
    bounds: Array, most: Array,
) -> None:  # fmt: skip
    """Gives each group a key that most likely a few more than k keys reach, and their number."""
    sample = np.empty(_LINES * _DRAWN, np.uint32)
    values = np.empty(_DRAWN, np.float32)
    histogram = np.empty(1 << 16, np.int64)
    for g in range(first, last):
        n, k = starts[g + 1] - starts[g], counts[g]
        bounds[g] = np.uint32(0) if k else _EVERY_BIT
        most[g] = n if k else 0
        # As many as hold about 64 of the k largest, where those are few.
        lines = min(_LINES, n // (8 * _DRAWN), 64 * n // (_DRAWN * max(k, 1)) + 1)
        rank, expected = _expect(max(n, 1), k, max(1, lines * _DRAWN))
        if not 0 < k < n or n <= _WHOLE or rank >= lines * _DRAWN:
            continue
        drawn = sample[: lines * _DRAWN]
        stride = n // lines
        for line in range(lines):
            # From where a cache line most likely begins.
            at = max(starts[g], (starts[g] + line * stride) // 16 * 16)
            if not plain.size:
                fetch(owed, at + min(_EARLY, lines - 1 - line) * stride)
            room = drawn[line * _DRAWN : (line + 1) * _DRAWN]
            if not plain.size:
                load(owed, at, values)
            given = plain[at : at + _DRAWN] if plain.size else values.view(np.uint32)
            for j in range(_DRAWN):
                room[j] = given[j]
        bounds[g], _, _ = threshold(drawn, _MAGNITUDE, np.uint32(0), rank, histogram)
        most[g] = expected


@kernel
def _drop_equal(bound: Number, k: Number, m: Number, index: Array, raw: Array) -> Number:
    """Keeps the first k of the candidates that equal the bound; returns how many are left."""
    equal, left = 0, 0
    for j in range(m):
        same = np.uint32(raw[j] & _MAGNITUDE) == bound
        index[left], raw[left] = index[j], raw[j]
        left += np.int64(not same or equal < k)
        equal += np.int64(same)
    return left


@kernel
def _owed_candidates(
    owed: Any, low: Number, high: Number, limit: Number, m: Number, index: Array, raw: Array,
    scratch: Array,
) -> Number:  # fmt: skip
    """Does what `candidates` does, of u from low on; returns how far it came, and their number.

    That is to high, or to where there may be no room for as many as are looked at in one go.
    """
    t = group_of(owed.starts, low)
    upto = min(high, owed.starts[t + 1])
    block = scratch.view(np.uint32)
    if owed.kinds[t] == FLOAT32 and owed.residual.size and low + LINE <= upto:
        # Formed and looked at in one go: memory need not wait while a block is searched.
        a, r = owed.anchor.ctypes.data, owed.residual.ctypes.data
        p = owed.addresses[t] - 4 * owed.starts[t]
        u, to, most = scratch.ctypes.data, np.uint64(m), np.uint64(index.size - CHECKED - LINE)
        while low + LINE <= upto and to <= most:
            at = 4 * low
            hits = owed_reaching(a + at, p + at, r + at, u, owed.decay, _MAGNITUDE, limit)
            to = noted(hits, block, np.uint64(0), np.uint64(low), to, index, raw)
            low += LINE
        return low, np.int64(to)
    upto = min(high, low + CHECKED)
    load(owed, low, scratch[: upto - low])
    return upto, candidates(block[: upto - low], low, _MAGNITUDE, limit, m, index, raw)


@kernel
def _compact(
    plain: Array, owed: Any, pieces: Array, owner: Array, bounds: Array, counts: Array,
    offsets: Array, first: Number, last: Number, index: Array, raw: Array, found: Array,
) -> None:  # fmt: skip
    """Collects each piece's entries that reach the bound; found is -1 where room ran out."""
    scratch = np.empty(CHECKED, np.float32)
    for p in range(first, last):
        g = owner[p]
        m, limit = 0, bounds[g]
        room = slice(offsets[p], offsets[p + 1])
        places, keys = index[room], raw[room]
        at, end = pieces[p], pieces[p + 1] if counts[g] else pieces[p]
        while at < end:
            if m > places.size - CHECKED - LINE:
                # Once k equal ones are there, no later one can be chosen.
                m = _drop_equal(bounds[g], counts[g], m, places, keys)
                if limit > bounds[g] or m > places.size - CHECKED - LINE:
                    m = -1
                    break
                limit = np.uint32(limit + np.uint32(1))
            if plain.size:
                upto = min(at + CHECKED, end)
                m = candidates(plain[at:upto], at, _MAGNITUDE, limit, m, places, keys)
                at = upto
            else:
                at, m = _owed_candidates(owed, at, end, limit, m, places, keys, scratch)
        found[p] = m


@kernel
def _finish(
    plain: Array, owed: Any, starts: Array, counts: Array, bounds: Array, owner: Array,
    offsets: Array, first: Number, last: Number, index: Array, raw: Array, found: Array,
    ends: Array, out: Array, values: Array,
) -> None:  # fmt: skip
    histogram = np.empty(1 << 16, np.int64)
    bits = values.view(np.uint32)
    p = group_of(owner, first - 1) + 1
    for g in range(first, last):
        k = counts[g]
        chosen = out[ends[g] - k : ends[g]]
        there = bits[ends[g] - k : ends[g]]
        begin, m, complete, p = gathered(g, p, owner, offsets, index, raw, found)
        if k == 0:
            continue
        if complete and m >= 2 * k:
            # Of equal ones each piece has kept as many as could be chosen; the first of them are.
            m = _drop_equal(bounds[g], k, m, index[begin:], raw[begin:])
        if complete and m >= k:
            where = slice(begin, begin + m)
            take(index[where], raw[where], _MAGNITUDE, bounds[g], k, histogram, chosen, there)
            continue
        if plain.size:
            group = plain[starts[g] : starts[g + 1]]
        else:
            formed = np.empty(starts[g + 1] - starts[g], np.float32)
            load(owed, starts[g], formed)
            group = formed.view(np.uint32)
        collect(group, _MAGNITUDE, k, histogram, 0, chosen)
        for j in range(k):
            there[j] = group[chosen[j]]
            chosen[j] += starts[g]


Candidates = tuple[Array, Array, Array, Array, Array, Array]
Made = tuple[Array, Array, Array]


def sifted(plain: Array, owed: Any, cuts: Array, kept: Array) -> Candidates:
    """Collects candidates for the largest of each group: a few more than are kept, most likely.

    Returns the least key that one of each group has, and of the pieces that groups are cut into:
    their groups, where the room of each begins, the places and bits in it, and how many they are.
    """
    bounds, most = np.empty(kept.size, np.uint32), np.empty(kept.size, np.int64)
    each_group(cuts, lambda g, end: _bounds(plain, owed, cuts, kept, g, end, bounds, most))
    pieces, owner, offsets, index, raw, found = pieces_of(cuts, kept, most)

    def compact(low: int, high: int) -> None:
        first, last = np.searchsorted(pieces[:-1], (low, high))
        given = plain, owed, pieces, owner, bounds, kept, offsets
        _compact(*given, first, last, index, raw, found)

    each_stretch(int(cuts[-1]), compact)
    return bounds, owner, offsets, index, raw, found


def finish(
    plain: Array, owed: Any, cuts: Array, kept: Array, candidates: Candidates, made: Made
) -> None:
    """Selects among candidates, of each group as many as are kept.

    Made are the places and values of all groups end to end, and where each group's end.
    """
    bounds, owner, offsets, index, raw, found = candidates
    given = plain, owed, cuts, kept, bounds, owner, offsets
    each_group(cuts, lambda g, end: _finish(*given, g, end, index, raw, found, *made))


def _select(
    plain: Array, owed: Any, starts: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    cuts, kept = array(starts), array(counts)
    out = host.empty(int(kept.sum()), torch.int64)
    values = host.empty(out.numel())
    candidates = sifted(plain, owed, cuts, kept)
    finish(plain, owed, cuts, kept, candidates, (np.cumsum(kept), out.numpy(), values.numpy()))
    return out, values


def topk(u: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Agrees bit for bit with `reference.topk`."""
    checks.check_vector(u, starts)
    checks.check_counts(counts, starts)
    return _select(bits(u), NOTHING_OWED, starts, counts)[0]


def pick(
    owed: Owed, starts: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.pick`."""
    checks.check_owed(owed)
    checks.check_starts(starts, len(owed))
    checks.check_counts(counts, starts)
    with read(owed) as source:
        return _select(NOTHING_OWED.anchor.view(np.uint32), source, starts, counts)


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
