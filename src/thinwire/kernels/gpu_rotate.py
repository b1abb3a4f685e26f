"""The random rotation in Triton: ten levels of butterflies in registers, the rest one by one."""

from __future__ import annotations

import torch
import triton.language as tl

from thinwire import host
from thinwire.kernels import checks
from thinwire.kernels.gpu_support import TILE, Number, Pointer, kernel, launch
from thinwire.kernels.gpu_words import halves, word
from thinwire.kernels.reference import Key

_LEVELS: tl.constexpr = tl.constexpr(10)


@kernel
def _flip(position: Number, k0: Number, k1: Number) -> Number:
    return 1.0 - 2.0 * (word(position, k0, k1) & 1).to(tl.int32).to(tl.float32)


@kernel
def _turn_tile(
    v: Pointer, tiles: Pointer, count: Number, factors: Pointer, out: Pointer, k0: Number,
    k1: Number, INVERSE: tl.constexpr,
) -> None:  # fmt: skip
    """Scales one tile of a padded group and does the butterflies inside it."""
    tile = tl.program_id(0)
    local = tl.load(tiles + tile)
    start = tl.load(tiles + count + tile)
    P = tl.load(tiles + 2 * count + tile)
    low = tl.load(tiles + 3 * count + tile)
    length = tl.load(tiles + 4 * count + tile)
    j = tl.arange(0, TILE)
    i = local + j
    if INVERSE:
        x = tl.load(v + start + i, mask=i < P, other=0.0)
    else:
        x = tl.load(v + low + i, mask=i < length, other=0.0) * _flip(start + i, k0, k1)
    x = x * tl.load(factors + tile)
    for level in tl.static_range(_LEVELS):
        partner = tl.gather(x, j ^ (1 << level), 0)
        # Of a pair (a, b) the first becomes a + b, the second a - b.
        turned = tl.where((j & (1 << level)) == 0, x + partner, partner - x)
        x = tl.where((1 << level) < P, turned, x)
    tl.store(out + start + i, x, mask=i < P)


@kernel
def _butterfly(x: Pointer, tiles: Pointer, count: Number, h: Number) -> None:
    """Does the butterflies at distance h, a multiple of a tile, in place."""
    tile = tl.program_id(0)
    local = tl.load(tiles + tile)
    start = tl.load(tiles + count + tile)
    P = tl.load(tiles + 2 * count + tile)
    i = local + tl.arange(0, TILE)
    # A tile is the first half of its pairs, or the second, which has nothing to do, as a whole.
    paired = i < tl.where((h < P) & (local // h % 2 == 0), P, 0)
    a = tl.load(x + start + i, mask=paired, other=0.0)
    b = tl.load(x + start + i + h, mask=paired, other=0.0)
    tl.store(x + start + i, a + b, mask=paired)
    tl.store(x + start + i + h, a - b, mask=paired)


@kernel
def _cut(
    x: Pointer, tiles: Pointer, count: Number, out: Pointer, k0: Number, k1: Number
) -> None:  # fmt: skip
    """Takes the signs back and leaves the padding out."""
    tile = tl.program_id(0)
    i = tl.load(tiles + tile) + tl.arange(0, TILE)
    start = tl.load(tiles + count + tile)
    low = tl.load(tiles + 3 * count + tile)
    inside = i < tl.load(tiles + 4 * count + tile)
    y = tl.load(x + start + i, mask=inside, other=0.0) * _flip(start + i, k0, k1)
    tl.store(out + low + i, y, mask=inside)


def _tiles(starts: torch.Tensor, out_starts: torch.Tensor) -> torch.Tensor:
    """Cuts each padded group into tiles.

    Returns:
        (5, T) int64 on the host: a tile's place in its group, then the group's padded start and
        padded length, and its start and length.
    """
    P = out_starts.diff()
    each = (P + TILE.value - 1) // TILE.value
    groups = torch.repeat_interleave(each)
    before = (each.cumsum(0) - each)[groups]
    local = (torch.arange(groups.numel(), device=host.CPU) - before) * TILE.value
    facts = out_starts[:-1], P, starts[:-1], starts.diff()
    return torch.stack([local, *(fact[groups] for fact in facts)])


def hadamard(
    v: torch.Tensor, starts: torch.Tensor, out_starts: torch.Tensor, key: Key, inverse: bool
) -> torch.Tensor:
    """Agrees bit for bit with `reference.hadamard`."""
    checks.check_rotation(starts, out_starts, v.numel(), inverse)
    tiles, keys = _tiles(starts, out_starts), halves(key)
    count, longest = tiles.shape[1], int(out_starts.diff().max()) if out_starts.numel() > 1 else 0
    factors = (1.0 / tiles[2].double().sqrt()).float()
    given = host.send(tiles, v.device), count
    x = host.empty(int(out_starts[-1]), torch.float32, v.device)
    scales = host.send(factors, v.device)
    launch(_turn_tile, count, v.contiguous(), *given, scales, x, *keys, INVERSE=inverse)
    h = TILE.value
    while h < longest:
        launch(_butterfly, count, x, *given, h)
        h *= 2
    if not inverse:
        return x
    out = host.empty(int(starts[-1]), torch.float32, v.device)
    launch(_cut, count, x, *given, out, *keys)
    return out
