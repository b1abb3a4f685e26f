"""Random rotations in Numba: Walsh-Hadamard butterflies with random signs.

The order in which pairs meet changes no bit, so the distances are gone through in stages, each
with a piece of the vector in the cache: blocks of neighbours first, then tiles of rows far apart.
The pieces of a stage touch none of each other's entries: threads share them.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.cpu_words import halves, word
from thinwire.kernels.numba_support import Array, Number, array, group_of, kernel
from thinwire.kernels.parallel import each_share, each_stretch
from thinwire.kernels.reference import Key

_BLOCK = reference.BLOCK
_ROWS = 128
_TILE = 1 << 17
"""Entries of a tile: half of a second-level cache of 1 MiB."""


@kernel
def _level(x: Array, h: Number) -> None:
    for at in range(0, x.size, 2 * h):
        a = x[at : at + h]
        b = x[at + h : at + 2 * h]
        for j in range(h):
            total = a[j] + b[j]
            b[j] = a[j] - b[j]
            a[j] = total


@kernel
def _two_levels(x: Array, h: Number) -> None:
    """Goes through the distances h and 2 h at once: half the ways to memory."""
    for at in range(0, x.size, 4 * h):
        a = x[at : at + h]
        b = x[at + h : at + 2 * h]
        c = x[at + 2 * h : at + 3 * h]
        d = x[at + 3 * h : at + 4 * h]
        for j in range(h):
            p, q = a[j] + b[j], a[j] - b[j]
            r, s = c[j] + d[j], c[j] - d[j]
            a[j], b[j] = p + r, q + s
            c[j], d[j] = p - r, q - s


@kernel
def _neighbours(x: Array) -> None:
    """Goes through the distances 1 and 2."""
    for i in range(0, x.size, 4):
        p, q = x[i] + x[i + 1], x[i] - x[i + 1]
        r, s = x[i + 2] + x[i + 3], x[i + 2] - x[i + 3]
        x[i], x[i + 1] = p + r, q + s
        x[i + 2], x[i + 3] = p - r, q - s


@kernel
def _fours(x: Array) -> None:
    """Goes through the distances 4 and 8."""
    for i in range(0, x.size, 16):
        for j in range(i, i + 4):
            p, q = x[j] + x[j + 4], x[j] - x[j + 4]
            r, s = x[j + 8] + x[j + 12], x[j + 8] - x[j + 12]
            x[j], x[j + 4] = p + r, q + s
            x[j + 8], x[j + 12] = p - r, q - s


@kernel
def _butterflies(x: Array, h: Number) -> None:
    """Goes through the distances h, 2 h, ... below x.size, all of x being in the cache."""
    if h == 1 and x.size >= 16:
        _neighbours(x)
        _fours(x)
        h = 16
    while 4 * h <= x.size:
        _two_levels(x, h)
        h *= 4
    if h < x.size:
        _level(x, h)


@kernel
def _flip(x: Number, i: Number, k0: Number, k1: Number) -> Number:
    return -x if word(i, k0, k1) & np.uint32(1) else x


@kernel
def _rotate_blocks(
    v: Array, starts: Array, out_starts: Array, edges: Array, k0: Number, k1: Number,
    inverse: Number, first: Number, last: Number, out: Array,
) -> None:  # fmt: skip
    """Scales, flips but for the inverse, and goes through the distances inside each block."""
    g = group_of(edges, first)
    for number in range(first, last):
        while edges[g + 1] <= number:
            g += 1
        size = out_starts[g + 1] - out_starts[g]
        factor = np.float32(1.0 / math.sqrt(np.float64(size)))
        inside = (number - edges[g]) * _BLOCK
        at = out_starts[g] + inside
        block = out[at : at + min(_BLOCK, size)]
        if inverse:
            given = v[at : at + block.size]
            for j in range(block.size):
                block[j] = given[j] * factor
        else:
            given = v[starts[g] + inside : min(starts[g + 1], starts[g] + inside + _BLOCK)]
            place = np.uint32(at)
            for j in range(given.size):
                x = np.float32(given[j] * factor)
                block[j] = _flip(x, np.uint32(place + np.uint32(j)), k0, k1)
            for j in range(given.size, block.size):
                block[j] = _flip(np.float32(0), np.uint32(place + np.uint32(j)), k0, k1)
        _butterflies(block, 1)


@kernel
def _shape(size: Number, h: Number) -> Number:
    """Returns a tile's rows, h apart, and columns; no rows where all distances are done."""
    rows = min(_ROWS, size // h)
    return (rows if rows > 1 else 0), min(h, _TILE // max(rows, 1))


@kernel
def _count_tiles(out_starts: Array, h: Number, edges: Array) -> None:
    edges[0] = 0
    for g in range(out_starts.size - 1):
        size = out_starts[g + 1] - out_starts[g]
        rows, columns = _shape(size, h)
        edges[g + 1] = edges[g] + (size // (rows * columns) if rows else 0)


@kernel
def _rotate_tiles(
    x: Array, out_starts: Array, edges: Array, h: Number, first: Number, last: Number
) -> None:
    """Goes through the distances h, 2 h, ... of a tile's rows."""
    scratch = np.empty(_TILE, np.float32)
    g = group_of(edges, first)
    for number in range(first, last):
        while edges[g + 1] <= number:
            g += 1
        rows, columns = _shape(out_starts[g + 1] - out_starts[g], h)
        across = h // columns
        which = number - edges[g]
        at = out_starts[g] + which // across * (rows * h) + which % across * columns
        tile = scratch[: rows * columns]
        # Entry by entry: assigning slices would first ask whether they overlap, three times slower.
        for r in range(rows):
            there, here = x[at + r * h :], tile[r * columns :]
            for j in range(columns):
                here[j] = there[j]
        _butterflies(tile, columns)
        for r in range(rows):
            there, here = x[at + r * h :], tile[r * columns :]
            for j in range(columns):
                there[j] = here[j]


@kernel
def _flip_back(
    x: Array, starts: Array, out_starts: Array, k0: Number, k1: Number, low: Number, high: Number,
    out: Array,
) -> None:  # fmt: skip
    g = group_of(starts, low)
    at = low
    while at < high:
        while starts[g + 1] <= at:
            g += 1
        upto = min(high, starts[g + 1])
        begin = out_starts[g] + at - starts[g]
        given, place = x[begin : begin + upto - at], np.uint32(begin)
        for j in range(upto - at):
            out[at + j] = _flip(given[j], np.uint32(place + np.uint32(j)), k0, k1)
        at = upto


def hadamard(
    v: torch.Tensor, starts: torch.Tensor, out_starts: torch.Tensor, key: Key, inverse: bool
) -> torch.Tensor:
    """Agrees bit for bit with `reference.hadamard`."""
    checks.check_rotation(starts, out_starts, v.numel(), inverse)
    a, cuts, padded, k = array(v), array(starts), array(out_starts), halves(key)
    n, sizes = int(padded[-1]), np.diff(padded)
    turned = host.empty(n)
    x = turned.numpy()
    edges = np.concatenate([np.zeros(1, np.int64), np.cumsum((sizes + _BLOCK - 1) // _BLOCK)])
    given = a, cuts, padded, edges, *k, bool(inverse)
    each_share(n, int(edges[-1]), lambda first, last: _rotate_blocks(*given, first, last, x))
    h, tiles = _BLOCK, np.empty_like(edges)
    while n and h < sizes.max():
        _count_tiles(padded, h, tiles)
        distance = h
        each_share(n, int(tiles[-1]), lambda i, j: _rotate_tiles(x, padded, tiles, distance, i, j))  # noqa: B023
        h *= _ROWS
    if not inverse:
        return turned
    out = host.empty(int(cuts[-1]))
    plain = out.numpy()
    each_stretch(plain.size, lambda i, j: _flip_back(x, cuts, padded, *k, i, j, plain))
    return out
