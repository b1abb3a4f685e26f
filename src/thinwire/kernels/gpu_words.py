"""Random words and uniform numbers, in Triton."""

from __future__ import annotations

import torch
import triton.language as tl

from thinwire import host
from thinwire.kernels import reference
from thinwire.kernels.gpu_support import TILE, Number, Pointer, kernel, launch, programs
from thinwire.kernels.reference import Key

_PAIR: tl.constexpr = tl.constexpr(reference.PAIR)
_A: tl.constexpr = tl.constexpr(0x9E3779B1)
_B: tl.constexpr = tl.constexpr(0x7FEB352D)
_C: tl.constexpr = tl.constexpr(0x846CA68B)


def halves(key: Key) -> tuple[int, int]:
    """Returns a key as kernels take it: two int32 of the same bits, so that no key is a new type.

    Example:
        >>> halves((1, 2**32 - 1))
        (1, -1)
    """
    first, second = (k - (k >> 31 << 32) for k in key)
    return first, second


@kernel
def word(i: Number, k0: Number, k1: Number) -> Number:
    """Returns the words of these entries, uint32."""
    x = i.to(tl.uint32) * tl.full([], _A, tl.uint32) + k0.to(tl.uint32, bitcast=True)
    x = x ^ (x >> 16)
    x = x * tl.full([], _B, tl.uint32) + k1.to(tl.uint32, bitcast=True)
    x = x ^ (x >> 15)
    x = x * tl.full([], _C, tl.uint32)
    return x ^ (x >> 16)


@kernel
def uniform(position: Number, k0: Number, k1: Number) -> Number:
    """Returns the numbers in (0, 1) of the entries at these flat positions, float32."""
    w = word(position // (2 * _PAIR) * _PAIR + position % _PAIR, k0, k1)
    half = tl.where(position // _PAIR % 2 == 0, w & 0xFFFF, w >> 16)
    # Through int32, whose conversion every device has; 17 bits are exact in float32.
    return (half.to(tl.int32).to(tl.float32) + 0.5) * 0.0000152587890625


@kernel
def _words(out: Pointer, n: Number, k0: Number, k1: Number) -> None:
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    tl.store(out + i, word(i, k0, k1).to(tl.int64), mask=i < n)


def words(n: int, key: Key, device: torch.device = host.CPU) -> torch.Tensor:
    """Agrees bit for bit with `reference.words`, on that device."""
    out = host.empty(n, torch.int64, device)
    launch(_words, programs(n, TILE.value), out, n, *halves(key))
    return out
