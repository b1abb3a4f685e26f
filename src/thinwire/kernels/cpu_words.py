"""Random words in Numba."""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels.numba_support import Array, Number, kernel
from thinwire.kernels.reference import Key


def halves(key: Key) -> tuple[np.uint32, np.uint32]:
    """Returns a key as kernels take it."""
    return np.uint32(key[0]), np.uint32(key[1])


@kernel
def word(i: Number, k0: Number, k1: Number) -> Number:
    """Returns entry i's word, uint32."""
    x = np.uint32(np.uint32(i * np.uint32(0x9E3779B1)) + k0)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
    x = np.uint32(np.uint32(x * np.uint32(0x7FEB352D)) + k1)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ np.uint32(x >> np.uint32(16)))


@kernel
def fill_words(out: Array, first: Number, k0: Number, k1: Number) -> None:
    """Writes the words of out.size entries, from `first` on."""
    for i in range(out.size):
        out[i] = word(np.uint32(first + np.uint32(i)), k0, k1)


def words(n: int, key: Key) -> torch.Tensor:
    """Agrees bit for bit with `reference.words`."""
    out = host.empty(n, torch.int64)
    fill_words(out.numpy(), np.uint32(0), *halves(key))
    return out
