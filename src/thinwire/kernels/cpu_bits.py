"""Bit streams in Numba: numbers of a few bits, lowest bits first, in words of 64.

Nothing here checks bounds on its own: who writes has made room for one word more, and who reads
has zeros after the end (`padded_words`), and asks before it takes a bit.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire.kernels.numba_support import Array, Number, array, kernel

_U64 = np.uint64


@kernel
def width_of(length: Number) -> Number:
    """Returns the bits that a position in a group of this length needs."""
    width = np.int64(0)
    while (length - 1) >> width > 0:
        width += 1
    return width


@kernel
def put(words: Array, at: Number, value: Number, width: Number) -> Number:
    """Writes `width` < 64 bits at bit `at`; returns the bit after them."""
    shift = _U64(at & 63)
    words[at >> 6] |= _U64(value) << shift
    words[(at >> 6) + 1] |= (_U64(value) >> _U64(1)) >> (_U64(63) - shift)
    return at + width


@kernel
def peek(words: Array, at: Number) -> Number:
    """Returns the 64 bits from bit `at` on."""
    shift = _U64(at & 63)
    low = words[at >> 6] >> shift
    return low | (words[(at >> 6) + 1] << _U64(1)) << (_U64(63) - shift)


def padded_words(data: torch.Tensor) -> Array:
    """Returns the bytes as uint64 words, and zeros after them for what reads ahead."""
    words = np.zeros(data.numel() // 8 + 4, np.uint64)
    words.view(np.uint8)[: data.numel()] = array(data)
    return words
