"""Random rotations in Numba: Walsh-Hadamard butterflies with random signs."""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks
from thinwire.kernels.cpu_words import halves, word
from thinwire.kernels.numba_support import Array, Number, array, kernel
from thinwire.kernels.reference import Key


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
def _butterflies(x: Array) -> None:
    # The order of the blocks does not change a bit, so each runs all its levels in the cache.
    block = min(x.size, 4096)
    for at in range(0, x.size, block):
        piece = x[at : at + block]
        h = 1
        if block >= 4:
            for i in range(0, block, 4):
                a = piece[i] + piece[i + 1]
                b = piece[i] - piece[i + 1]
                c = piece[i + 2] + piece[i + 3]
                d = piece[i + 2] - piece[i + 3]
                piece[i] = a + c
                piece[i + 1] = b + d
                piece[i + 2] = a - c
                piece[i + 3] = b - d
            h = 4
        while h < block:
            _level(piece, h)
            h *= 2
    h = block
    while h < x.size:
        _level(x, h)
        h *= 2


@kernel
def _flip(x: Number, i: Number, k0: Number, k1: Number) -> Number:
    return -x if word(i, k0, k1) & np.uint32(1) else x


@kernel
def _rotate(
    v: Array, starts: Array, out_starts: Array, k0: Number, k1: Number, inverse: Number, out: Array
) -> None:
    longest = 0
    for g in range(starts.size - 1):
        longest = max(longest, out_starts[g + 1] - out_starts[g])
    scratch = np.empty(longest if inverse else 0, np.float32)
    for g in range(starts.size - 1):
        length = starts[g + 1] - starts[g]
        if length == 0:
            continue
        size = out_starts[g + 1] - out_starts[g]
        first = np.uint32(out_starts[g])
        factor = np.float32(1.0 / np.sqrt(np.float64(size)))
        padded = v if inverse else out
        padded = padded[out_starts[g] : out_starts[g + 1]]
        plain = out if inverse else v
        plain = plain[starts[g] : starts[g + 1]]
        if inverse:
            work = scratch[:size]
            for j in range(size):
                work[j] = padded[j] * factor
            _butterflies(work)
            for j in range(length):
                plain[j] = _flip(work[j], np.uint32(first + np.uint32(j)), k0, k1)
        else:
            for j in range(length):
                x = np.float32(plain[j] * factor)
                padded[j] = _flip(x, np.uint32(first + np.uint32(j)), k0, k1)
            for j in range(length, size):
                padded[j] = _flip(np.float32(0), np.uint32(first + np.uint32(j)), k0, k1)
            _butterflies(padded)


def hadamard(
    v: torch.Tensor, starts: torch.Tensor, out_starts: torch.Tensor, key: Key, inverse: bool
) -> torch.Tensor:
    """Agrees bit for bit with `reference.hadamard`."""
    checks.check_rotation(starts, out_starts, v.numel(), inverse)
    out = host.empty(int(starts[-1] if inverse else out_starts[-1]))
    layout = array(starts), array(out_starts)
    _rotate(array(v), *layout, *halves(key), bool(inverse), out.numpy())
    return out
