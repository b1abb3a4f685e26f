"""Exact selection in Triton: the threshold digit by digit, then the indices in order.

Four passes count the digits of 8 bits of all keys that begin as the threshold does; whole numbers
are added, so no order matters. A fifth pass counts what each piece keeps, and after a prefix sum
a sixth writes it, ascending. Ties go to the lower index because pieces know how many came before.
"""

from __future__ import annotations

import torch
import triton.language as tl

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.gpu_support import SPAN, TILE, Number, Pointer, kernel, launch, pieces
from thinwire.kernels.gpu_words import halves, word
from thinwire.kernels.reference import Key

_BINS: tl.constexpr = tl.constexpr(256)
_EVERY_BIT: tl.constexpr = tl.constexpr(reference.MASK32)
_MAGNITUDE: tl.constexpr = tl.constexpr(reference.MAGNITUDE)


@kernel
def _key(
    v: Pointer, i: Number, inside: Number, k0: Number, k1: Number, RANDOM: tl.constexpr
) -> Number:
    """Returns what is compared, uint32: the largest are kept."""
    if RANDOM:
        # The smallest words are the largest complements.
        key = word(i, k0, k1) ^ tl.full([], _EVERY_BIT, tl.uint32)
    else:
        bits = tl.load(v + i, mask=inside, other=0.0).to(tl.uint32, bitcast=True)
        key = bits & tl.full([], _MAGNITUDE, tl.uint32)
    return key


@kernel
def _count_digits(
    v: Pointer, cut: Pointer, count: Number, begins: Pointer, out: Pointer, k0: Number,
    k1: Number, SHIFT: tl.constexpr, RANDOM: tl.constexpr,
) -> None:  # fmt: skip
    piece = tl.program_id(0)
    low = tl.load(cut + piece)
    high = tl.load(cut + count + piece)
    g = tl.load(cut + 2 * count + piece)
    begin = tl.load(begins + g).to(tl.uint32)
    bins = tl.arange(0, _BINS)
    found = tl.zeros([_BINS], tl.int32)
    for at in range(low, high, TILE):
        i = at + tl.arange(0, TILE)
        counted = i < high
        key = _key(v, i, counted, k0, k1, RANDOM)
        if SHIFT < 24:
            counted = counted & ((key >> (SHIFT + 8)) == (begin >> (SHIFT + 8)))
        digit = ((key >> SHIFT) & 255).to(tl.int32)
        found += tl.histogram(digit, _BINS, mask=counted)
    tl.atomic_add(out + g * _BINS + bins, found.to(out.dtype.element_ty), mask=found > 0)


@kernel
def _count_kept(
    v: Pointer, cut: Pointer, count: Number, thresholds: Pointer, out: Pointer, k0: Number,
    k1: Number, RANDOM: tl.constexpr,
) -> None:  # fmt: skip
    piece = tl.program_id(0)
    low = tl.load(cut + piece)
    high = tl.load(cut + count + piece)
    threshold = tl.load(thresholds + tl.load(cut + 2 * count + piece)).to(tl.uint32)
    over = tl.zeros([TILE], tl.int32)
    ties = tl.zeros([TILE], tl.int32)
    for at in range(low, high, TILE):
        i = at + tl.arange(0, TILE)
        key = _key(v, i, i < high, k0, k1, RANDOM)
        over += ((key > threshold) & (i < high)).to(tl.int32)
        ties += ((key == threshold) & (i < high)).to(tl.int32)
    tl.store(out + piece, tl.sum(over, 0).to(tl.int64))
    tl.store(out + count + piece, tl.sum(ties, 0).to(tl.int64))


@kernel
def _write(
    v: Pointer, cut: Pointer, count: Number, thresholds: Pointer, takes: Pointer, places: Pointer,
    out: Pointer, k0: Number, k1: Number, RANDOM: tl.constexpr,
) -> None:  # fmt: skip
    piece = tl.program_id(0)
    low = tl.load(cut + piece)
    high = tl.load(cut + count + piece)
    threshold = tl.load(thresholds + tl.load(cut + 2 * count + piece)).to(tl.uint32)
    take = tl.load(takes + piece)
    place = tl.load(places + piece)
    for at in range(low, high, TILE):
        i = at + tl.arange(0, TILE)
        key = _key(v, i, i < high, k0, k1, RANDOM)
        tie = (key == threshold) & (i < high)
        rank = tl.cumsum(tie.to(tl.int32), 0)
        kept = ((key > threshold) & (i < high)) | (tie & (rank <= take))
        order = tl.cumsum(kept.to(tl.int32), 0)
        tl.store(out + place + order - 1, i, mask=kept)
        take -= tl.sum(tie.to(tl.int32), 0)
        place += tl.sum(kept.to(tl.int32), 0)


def _select(
    v: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor,
    keys: tuple[int, int],
    random: bool,
) -> torch.Tensor:
    device, n = v.device, int(starts[-1])
    cut = pieces(starts, SPAN)
    count, G = cut.shape[1], counts.numel()
    sent, groups = host.send(cut, device), host.send(cut[2], device)
    left = host.send(counts, device)
    threshold = torch.zeros(G, dtype=torch.int64, device=device)
    for shift in (24, 16, 8, 0):
        found = torch.zeros(
            G, 256, dtype=torch.int32 if n < 1 << 31 else torch.int64, device=device
        )
        launch(
            _count_digits, count, v, sent, count, threshold, found, *keys,
            SHIFT=shift, RANDOM=random,
        )  # fmt: skip
        # at_least[:, j] counts the keys whose digit is 255 - j or more.
        at_least = found.flip(1).cumsum(1, dtype=torch.int64)
        j = (at_least < left[:, None]).sum(1)
        above = at_least.gather(1, (j - 1).clamp(min=0)[:, None])[:, 0] * (j > 0)
        left, threshold = left - above, threshold | (255 - j) << shift
    kept = torch.empty(2, count, dtype=torch.int64, device=device)
    launch(_count_kept, count, v, sent, count, threshold, kept, *keys, RANDOM=random)
    over, ties = kept
    # Ties of the same group in earlier pieces come first.
    earlier = ties.cumsum(0) - ties
    first = host.send(torch.searchsorted(cut[2], cut[2]), device)
    take = (left[groups] - (earlier - earlier[first])).clamp(min=0)
    taken = over + torch.minimum(take, ties)
    out = host.empty(int(counts.sum()), torch.int64, device)
    launch(
        _write, count, v, sent, count, threshold, take, taken.cumsum(0) - taken, out, *keys,
        RANDOM=random,
    )  # fmt: skip
    return out


def topk(u: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Agrees bit for bit with `reference.topk`."""
    checks.check_vector(u, starts)
    checks.check_counts(counts, starts)
    return _select(u.contiguous(), starts, counts, (0, 0), random=False)


def randk(
    starts: torch.Tensor, counts: torch.Tensor, key: Key, device: torch.device = host.CPU
) -> torch.Tensor:
    """Agrees bit for bit with `reference.randk`, on that device."""
    checks.check_counts(counts, starts)
    return _select(host.empty(0, device=device), starts, counts, halves(key), random=True)


def gather(u: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Agrees bit for bit with `reference.gather`."""
    checks.check_inside(index, u.numel())
    return u[index]
