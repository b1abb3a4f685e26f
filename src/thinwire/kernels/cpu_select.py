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
from thinwire.kernels.cpu_candidates import CHECKED, LINE, candidates, gathered, pieces_of
from thinwire.kernels.cpu_owed import NOTHING_OWED, fetch, load, read
from thinwire.kernels.cpu_radix import collect, threshold
from thinwire.kernels.numba_support import (
    Array,
    Number,
    array,
    bits,
    kernel,
)
from thinwire.kernels.owed import Owed
from thinwire.kernels.parallel import each_stretch

_MAGNITUDE = np.uint32(reference.MAGNITUDE)
_EVERY_BIT = np.uint32(reference.MASK32)
_PART = 1 << 15
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
    plain: Array, owed: Any, starts: Array, counts: Array, bounds: Array, most: Array
) -> None:
    """Gives each group a key that most likely a few more than k keys reach, and their number."""
    sample = np.empty(_LINES * _DRAWN, np.uint32)
    values = np.empty(_DRAWN, np.float32)
    histogram = np.empty(1 << 16, np.int64)
    for g in range(counts.size):
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
            at = starts[g] + line * stride
            if not plain.size:
                fetch(owed, at + min(_EARLY, lines - 1 - line) * stride)
            room = drawn[line * _DRAWN : (line + 1) * _DRAWN]
            if not plain.size:
                load(owed, at, values)
            given = plain[at : at + _DRAWN] if plain.size else values.view(np.uint32)
            for j in range(_DRAWN):
                room[j] = given[j]
        bounds[g], _, _ = threshold(drawn, _MAGNITUDE, rank, histogram)
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
def _search(
    block: Array, first: Number, bound: Number, limit: Number, k: Number, m: Number,
    index: Array, raw: Array,
) -> Number:  # fmt: skip
    """Goes on collecting entries that reach the limit: the bound, or whatever is above it.

    Returns how many are there now, -1 where room ran out, and the limit for what follows.
    """
    for at in range(0, block.size, CHECKED):
        if m > index.size - CHECKED - LINE:
            # Once k equal ones are there, no later one can be chosen.
            m = _drop_equal(bound, k, m, index, raw)
            if limit > bound or m > index.size - CHECKED - LINE:
                return -1, limit
            limit = np.uint32(bound + np.uint32(1))
        part = block[at : at + CHECKED]
        m = candidates(part, first + at, _MAGNITUDE, limit, m, index, raw)
    return m, limit


@kernel
def _compact(
    plain: Array, owed: Any, pieces: Array, owner: Array, bounds: Array, counts: Array,
    offsets: Array, first: Number, last: Number, index: Array, raw: Array, found: Array,
) -> None:  # fmt: skip
    scratch = np.empty(_PART, np.float32)
    for p in range(first, last):
        g = owner[p]
        m, limit = 0, bounds[g]
        room = slice(offsets[p], offsets[p + 1])
        at = pieces[p]
        while at < pieces[p + 1] and counts[g] and m >= 0:
            upto = min(at + _PART, pieces[p + 1])
            if plain.size:
                upto = pieces[p + 1]
                block = plain[at:upto]
            else:
                load(owed, at, scratch[: upto - at])
                block = scratch[: upto - at].view(np.uint32)
            m, limit = _search(block, at, bounds[g], limit, counts[g], m, index[room], raw[room])
            at = upto
        found[p] = m


@kernel
def _finish(
    plain: Array, owed: Any, starts: Array, counts: Array, bounds: Array, owner: Array,
    offsets: Array, index: Array, raw: Array, found: Array, out: Array, values: Array,
) -> None:  # fmt: skip
    histogram = np.empty(1 << 16, np.int64)
    bits = values.view(np.uint32)
    at = 0
    p = 0
    for g in range(counts.size):
        k = counts[g]
        chosen = out[at : at + k]
        there = bits[at : at + k]
        at += k
        begin, m, complete, p = gathered(g, p, owner, offsets, index, raw, found)
        if k == 0:
            continue
        if complete and m >= 2 * k:
            # Of equal ones each piece has kept as many as could be chosen; the first of them are.
            m = _drop_equal(bounds[g], k, m, index[begin:], raw[begin:])
        if complete and m >= k:
            collect(raw[begin : begin + m], _MAGNITUDE, k, histogram, 0, chosen)
            for j in range(k):
                place = begin + chosen[j]
                chosen[j] = index[place]
                there[j] = raw[place]
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


def _select(
    plain: Array, owed: Any, starts: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    n, cuts, kept = int(starts[-1]), array(starts), array(counts)
    out = host.empty(int(counts.sum()), torch.int64)
    values = host.empty(out.numel())
    bounds, most = np.empty(kept.size, np.uint32), np.empty(kept.size, np.int64)
    _bounds(plain, owed, cuts, kept, bounds, most)
    pieces, owner, offsets, index, raw, found = pieces_of(cuts, kept, most)

    def compact(low: int, high: int) -> None:
        first, last = np.searchsorted(pieces[:-1], (low, high))
        given = plain, owed, pieces, owner, bounds, kept, offsets
        _compact(*given, first, last, index, raw, found)

    each_stretch(n, compact)
    given = plain, owed, cuts, kept, bounds, owner, offsets
    _finish(*given, index, raw, found, out.numpy(), values.numpy())
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
