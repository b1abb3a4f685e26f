"""What every kernel means, in plain torch: slow, obvious, and the definition.

Vectors arrive flat with their groups described by `starts`, int64 of shape (G + 1,): group g is
`v[starts[g]:starts[g + 1]]`, `starts[0]` is 0, `starts[-1]` is n, and groups may be empty. A
`key` is a pair of ints in [0, 2**32). Values are finite except where an operation says so.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from thinwire import host
from thinwire.kernels.checks import (
    check_coded,
    check_counts,
    check_index,
    check_inside,
    check_kind,
    check_levels,
    check_packed,
    check_per_group,
    check_rotation,
    check_typed,
    check_unsigned_levels,
    check_vector,
    check_width,
)

Key = tuple[int, int]

MASK32 = 0xFFFFFFFF
MAGNITUDE = 0x7FFFFFFF
FLOAT32_MAX = torch.finfo(torch.float32).max
LANES = 64
CHUNK = 1 << 16
"""Entries whose sum is taken by itself, so that chunks may be summed at the same time."""
BLOCK = 4096
"""Codes that are packed together."""
PAIR = 64
"""Entries that share their random words with the next so many."""

ALL_OR_NONE, BITMAP, FIXED, RICE = range(4)

# One row per way an index stream can be refused; both tables answer with its place in this list.
PROBLEMS = (
    "",
    "index stream ends early",
    "unknown index code {0}",
    "index tag {0} has unused bits set",
    "all-or-none code for {0} positions in a group of {1}",
    "bitmap holds {0} ones, expected {1}",
    "position {0} outside a group of {1}",
    "a gap runs past a group of {0}",
    "positions do not ascend",
    "padding bits are not zero",
)
(
    FINE,
    ENDS_EARLY,
    UNKNOWN_CODE,
    UNUSED_BITS,
    NOT_ALL_OR_NONE,
    WRONG_ONES,
    OUTSIDE,
    GAP_OUTSIDE,
    NOT_ASCENDING,
    PADDING,
) = range(len(PROBLEMS))


def explain(status: int, first: int, second: int) -> str:
    """Says in words why an index stream was refused, and nothing when it was not.

    Args:
        status: place in `PROBLEMS`.
        first: first number of the sentence.
        second: second number of the sentence.

    Examples:
        >>> explain(OUTSIDE, 900, 784)
        'position 900 outside a group of 784'
    """
    return PROBLEMS[status].format(first, second)


def _groups(starts: torch.Tensor) -> list[tuple[int, int]]:
    return list(pairwise(starts.tolist()))


def _spread(values: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    return values.repeat_interleave(starts.diff())


def _times(x: torch.Tensor, constant: int) -> torch.Tensor:
    # Two half products, because the full one leaves int64.
    high = (x * (constant >> 16)) & 0xFFFF
    return (x * (constant & 0xFFFF) + (high << 16)) & MASK32


def words(n: int, key: Key) -> torch.Tensor:
    """Gives every index below n a random 32-bit word that depends on nothing but the key.

    Keys have to look unrelated: words under two keys whose second numbers are neighbours are
    strongly correlated, so a step or a rank must be hashed into a key and never be one.

    Args:
        n: number of words.
        key: two ints in [0, 2**32).

    Returns:
        (n,) int64 in [0, 2**32).

    Examples:
        >>> words(3, (1, 2)).tolist()
        [1605432451, 594247184, 1149146761]
    """
    x = torch.arange(n, dtype=torch.int64, device=host.CPU) & MASK32
    x = (_times(x, 0x9E3779B1) + key[0]) & MASK32
    x ^= x >> 16
    x = (_times(x, 0x7FEB352D) + key[1]) & MASK32
    x ^= x >> 15
    x = _times(x, 0x846CA68B)
    x ^= x >> 16
    return x


def first_nonfinite(u: torch.Tensor, starts: torch.Tensor) -> int:
    """Finds the first group that holds a NaN or an infinity, -1 when there is none.

    Args:
        u: (n,) float32, any values.
        starts: (G + 1,) int64.

    Examples:
        >>> first_nonfinite(torch.tensor([1.0, 2.0, torch.inf]), torch.tensor([0, 2, 3]))
        1
    """
    check_vector(u, starts)
    for g, (lo, hi) in enumerate(_groups(starts)):
        if not bool(u[lo:hi].isfinite().all()):
            return g
    return -1


def _first_of(keys: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    kept = [host.empty(0, torch.int64)]
    for (lo, hi), k in zip(_groups(starts), counts.tolist(), strict=True):
        order = torch.sort(keys[lo:hi], stable=True).indices[:k]
        kept.append(order.sort().values + lo)
    return torch.cat(kept)


def topk(u: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Selects in each group the entries largest in magnitude, ties by lower index.

    Magnitudes are compared as the bits below the sign, so a NaN counts as larger than infinity.

    Args:
        u: (n,) float32, any values.
        starts: (G + 1,) int64.
        counts: (G,) int64, entries to keep, each at most its group's length.

    Returns:
        (sum of counts,) int64 flat indices, ascending.

    Examples:
        >>> v = torch.tensor([1.0, -3.0, 3.0, 0.0, 5.0])
        >>> topk(v, torch.tensor([0, 4, 5]), torch.tensor([1, 1])).tolist()
        [1, 4]
    """
    check_vector(u, starts)
    check_counts(counts, starts)
    magnitude = u.contiguous().view(torch.int32).to(torch.int64) & MAGNITUDE
    return _first_of(-magnitude, starts, counts)


def gather(u: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Reads the entries at these places.

    Args:
        u: (n,) float32.
        index: (k,) int64.

    Returns:
        (k,) float32.

    Raises:
        IndexError: when an index lies outside `u`.

    Examples:
        >>> gather(torch.tensor([1.0, -3.0, 3.0]), torch.tensor([0, 2])).tolist()
        [1.0, 3.0]
    """
    check_inside(index, u.numel())
    return u[index]


def randk(starts: torch.Tensor, counts: torch.Tensor, key: Key) -> torch.Tensor:
    """Selects in each group the entries with the smallest random words, ties by lower index.

    Args:
        starts: (G + 1,) int64.
        counts: (G,) int64, entries to keep, each at most its group's length.
        key: two ints in [0, 2**32).

    Returns:
        (sum of counts,) int64 flat indices, ascending.

    Examples:
        >>> randk(torch.tensor([0, 4]), torch.tensor([2]), (1, 2)).tolist()
        [1, 3]
    """
    check_counts(counts, starts)
    return _first_of(words(int(starts[-1]), key), starts, counts)


def _lane_sum(x: torch.Tensor, first: int) -> float:
    """Adds up a group that begins at flat position `first`, chunk by chunk, each by lanes."""
    total, at = 0.0, 0
    while at < x.numel():
        upto = min(x.numel(), (first + at) // CHUNK * CHUNK + CHUNK - first)
        before = (first + at) % LANES
        after = -(first + upto) % LANES
        piece = torch.cat([x.new_zeros(before), x[at:upto], x.new_zeros(after)])
        # A cumulative sum down the rows is the one torch sum whose order is fixed.
        part = 0.0
        for lane in piece.view(-1, LANES).cumsum(0)[-1].tolist():
            part += lane
        total += part
        at = upto
    return total


def float32(wide: torch.Tensor) -> torch.Tensor:
    """Rounds float64 norms to float32; finite ones stay finite."""
    # torch answers a float64 beyond the range with infinity; a norm of finite values stays finite.
    return torch.where(wide.isinf(), wide, wide.clamp(max=FLOAT32_MAX)).to(torch.float32)


def norms(v: torch.Tensor, starts: torch.Tensor, kind: str) -> torch.Tensor:
    """Measures each group by its l1, l2 or max norm, 0 for an empty group.

    Sums are in float64. In each chunk of 65536 flat positions lane j of 64 adds the group's
    entries at positions j, j + 64, ... in order; the lanes are added from 0 to 63, and then the
    chunks in order. Results above the float32 range become its maximum.

    Args:
        v: (n,) float32.
        starts: (G + 1,) int64.
        kind: "l1", "l2" or "max".

    Returns:
        (G,) float32, in units of v.

    Examples:
        >>> norms(torch.tensor([3.0, -4.0, 2.0]), torch.tensor([0, 2, 3]), "l2").tolist()
        [5.0, 2.0]
    """
    check_vector(v, starts)
    check_kind(kind)
    answers = []
    for lo, hi in _groups(starts):
        x = v[lo:hi].to(torch.float64)
        if kind == "max":
            answers.append(float(x.abs().max()) if hi > lo else 0.0)
        elif kind == "l1":
            answers.append(_lane_sum(x.abs(), lo))
        else:
            answers.append(math.sqrt(_lane_sum(x * x, lo)))
    return float32(torch.tensor(answers, dtype=torch.float64, device=host.CPU))


def extrema(v: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the smallest and largest entry of each group, 0 and 0 for an empty group.

    A zero is always answered as +0.0, whatever zeros the group holds.

    Args:
        v: (n,) float32.
        starts: (G + 1,) int64.

    Returns:
        Two (G,) float32 vectors, smallest and largest.

    Examples:
        >>> lo, hi = extrema(torch.tensor([3.0, -4.0, 2.0]), torch.tensor([0, 2, 3]))
        >>> lo.tolist(), hi.tolist()
        ([-4.0, 2.0], [3.0, 2.0])
    """
    check_vector(v, starts)
    empty = host.zeros(1)
    pairs = [torch.aminmax(v[lo:hi] if hi > lo else empty) for lo, hi in _groups(starts)]
    lows = host.floats([float(lo) for lo, _ in pairs])
    highs = host.floats([float(hi) for _, hi in pairs])
    return lows + 0.0, highs + 0.0


def _uniforms(n: int, key: Key) -> torch.Tensor:
    """Gives every index below n a number in (0, 1), an odd multiple of 2**-17.

    In each 128 entries, entry j of the first 64 takes the low half of a word and entry 64 + j the
    high half of the same one.
    """
    i = torch.arange(n, dtype=torch.int64, device=host.CPU)
    own = words((n + 2 * PAIR - 1) // (2 * PAIR) * PAIR, key)[i // (2 * PAIR) * PAIR + i % PAIR]
    half = torch.where(i // PAIR % 2 == 0, own & 0xFFFF, own >> 16)
    return (half.to(torch.float32) + 0.5) / 65536.0


def quantize(
    v: torch.Tensor, starts: torch.Tensor, norms: torch.Tensor, levels: int, key: Key
) -> torch.Tensor:
    """Rounds each entry at random to a signed multiple of norm / levels, right on average.

    In float32, with p = 1 for norms of at least 2**-100 and 2**100 below (so that nothing
    underflows), q = floor((v * p) * (levels / (norm * p)) + r), clamped to [-levels, levels],
    r the entry's uniform number of 16 bits; its code is q + levels. A group of norm 0 has q = 0.

    Args:
        v: (n,) float32.
        starts: (G + 1,) int64.
        norms: (G,) float32, each at least its group's largest magnitude for an unbiased result.
        levels: 1..32767, magnitude of the largest q.
        key: two ints in [0, 2**32).

    Returns:
        Codes in [0, 2 levels], packed in the bits that 2 levels needs.

    Examples:
        >>> v = torch.tensor([3.0, -4.0, 0.0])
        >>> packed = quantize(v, torch.tensor([0, 3]), torch.tensor([4.0]), 4, (1, 2))
        >>> unpack(packed, 3, 4).tolist()
        [7, 0, 4]
    """
    check_vector(v, starts)
    check_per_group(starts, norms)
    check_levels(levels)
    top = host.float_(float(levels))
    one, lift = host.float_(1.0), host.float_(2.0**100)
    scale = torch.where(norms >= 2.0**-100, one, lift)
    rate = torch.where(norms == 0, host.float_(0.0), top / (norms * scale))
    z = v * _spread(scale, starts) * _spread(rate, starts)
    q = (z + _uniforms(v.numel(), key)).floor().clamp(-top, top)
    return pack(q.to(torch.int32) + levels, (2 * levels).bit_length())


def quantize_levels(
    v: torch.Tensor,
    starts: torch.Tensor,
    lo: torch.Tensor,
    step: torch.Tensor,
    levels: int,
    key: Key,
) -> torch.Tensor:
    """Rounds each entry at random to lo plus a whole number of steps, right on average.

    In float32, y = (v * c - lo * c) / (step * c) clamped to [0, levels], and the code is
    floor(y + r), at most `levels`, r as in `quantize`. c is 0.5 for steps of at least 1, so that
    a difference of huge values with opposite signs stays finite, and 1 below, so that tiny steps
    keep their bits. A step of 0 has codes 0.

    Args:
        v: (n,) float32.
        starts: (G + 1,) int64.
        lo: (G,) float32, value of code 0.
        step: (G,) float32, distance between codes, not negative.
        levels: 1..65535, the largest code.
        key: two ints in [0, 2**32).

    Returns:
        Codes in [0, levels], packed in the bits that `levels` needs.

    Examples:
        >>> v, lo, step = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-1.0]), torch.tensor([0.5])
        >>> packed = quantize_levels(v, torch.tensor([0, 3]), lo, step, 4, (1, 2))
        >>> unpack(packed, 3, 3).tolist()
        [0, 2, 4]
    """
    check_vector(v, starts)
    check_per_group(starts, lo, step)
    check_unsigned_levels(levels)
    c = torch.where(step >= 1, host.float_(0.5), host.float_(1.0))
    width = _spread(step * c, starts)
    y = (v * _spread(c, starts) - _spread(lo * c, starts)) / width
    y = torch.where(width == 0, host.float_(0.0), y.clamp(0, levels))
    codes = (y + _uniforms(v.numel(), key)).floor().clamp(max=levels)
    codes = torch.where(width == 0, host.float_(0.0), codes)
    return pack(codes.to(torch.int32), levels.bit_length())


def signs(v: torch.Tensor) -> torch.Tensor:
    """Codes each entry as 1 when it is at least 0 (either zero included) and as 0 otherwise.

    Args:
        v: (n,) float32.

    Returns:
        Codes of one bit, packed.

    Examples:
        >>> unpack(signs(torch.tensor([2.0, -0.0, -1.0])), 3, 1).tolist()
        [1, 1, 0]
    """
    return pack((v >= 0).to(torch.int32), 1)


def fit(
    v: torch.Tensor,
    packed: torch.Tensor,
    width: int,
    starts: torch.Tensor,
    lows: torch.Tensor,
    steps: torch.Tensor,
) -> torch.Tensor:
    """Finds for each group the factor that brings the decoded codes closest to v.

    That is <v, x> / <x, x> in float64, x what `decode` answers, both summed over lanes as in
    `norms`; 0 where all of x is 0.

    Args:
        v: (n,) float32.
        packed: n codes.
        width: bits per code, 1..16.
        starts: (G + 1,) int64.
        lows: (G,) float64, value of code 0.
        steps: (G,) float64, distance between codes.

    Returns:
        (G,) float32, without unit.

    Examples:
        >>> packed = pack(torch.tensor([2, 0], dtype=torch.int32), 2)
        >>> low, step = torch.tensor([-1.0]).double(), torch.tensor([1.0]).double()
        >>> fit(torch.tensor([2.0, -4.0]), packed, 2, torch.tensor([0, 2]), low, step).tolist()
        [3.0]
    """
    check_vector(v, starts)
    said = decode(packed, width, starts, lows, steps)
    factors = []
    for lo, hi in _groups(starts):
        a, x = v[lo:hi].to(torch.float64), said[lo:hi].to(torch.float64)
        below = _lane_sum(x * x, lo)
        factors.append(_lane_sum(a * x, lo) / below if below else 0.0)
    return torch.tensor(factors, dtype=torch.float64, device=host.CPU).to(torch.float32)


def decode(
    packed: torch.Tensor,
    width: int,
    starts: torch.Tensor,
    lows: torch.Tensor,
    steps: torch.Tensor,
) -> torch.Tensor:
    """Answers what each code stands for: float32(low + code * step), computed in float64.

    Args:
        packed: n codes, n = starts[-1].
        width: bits per code, 1..16.
        starts: (G + 1,) int64.
        lows: (G,) float64, value of code 0.
        steps: (G,) float64, distance between codes.

    Returns:
        (n,) float32.

    Examples:
        >>> packed = pack(torch.tensor([3, 0], dtype=torch.int32), 2)
        >>> low, step = torch.tensor([-1.0]).double(), torch.tensor([0.5]).double()
        >>> decode(packed, 2, torch.tensor([0, 2]), low, step).tolist()
        [0.5, -1.0]
    """
    check_coded(packed, width, starts, lows, steps)
    codes = unpack(packed, int(starts[-1]), width).to(torch.float64)
    return (_spread(lows, starts) + codes * _spread(steps, starts)).to(torch.float32)


def accumulate_codes(
    acc: torch.Tensor,
    index: torch.Tensor | None,
    packed: torch.Tensor,
    width: int,
    starts: torch.Tensor,
    lows: torch.Tensor,
    steps: torch.Tensor,
    weight: float,
) -> None:
    """Adds weight times what the codes stand for to `acc` in place: `decode`, then `accumulate`.

    Args:
        acc: (n,) float32, contiguous; changed.
        index: (k,) int64, ascending without repeats, or None for all of acc.
        packed: k codes, or n when `index` is None.
        width: bits per code, 1..16.
        starts: (G + 1,) int64, groups of codes.
        lows: (G,) float64, value of code 0.
        steps: (G,) float64, distance between codes.
        weight: what each value counts, rounded to float32.

    Raises:
        IndexError: when an index lies outside `acc`.

    Examples:
        >>> packed = pack(torch.tensor([3, 0], dtype=torch.int32), 2)
        >>> low, step = torch.tensor([-1.0]).double(), torch.tensor([0.5]).double()
        >>> acc = torch.zeros(3)
        >>> accumulate_codes(
        ...     acc, torch.tensor([0, 2]), packed, 2, torch.tensor([0, 2]), low, step, -1.0
        ... )
        >>> acc.tolist()
        [-0.5, 0.0, 1.0]
    """
    accumulate(acc, index, decode(packed, width, starts, lows, steps), weight)


def _butterflies(x: torch.Tensor) -> torch.Tensor:
    h = 1
    while h < x.numel():
        a, b = x.view(-1, 2, h).unbind(1)
        x = torch.stack([a + b, a - b], 1).view(-1)
        h *= 2
    return x


def hadamard(
    v: torch.Tensor, starts: torch.Tensor, out_starts: torch.Tensor, key: Key, inverse: bool
) -> torch.Tensor:
    """Rotates each group at random by a Walsh-Hadamard transform, or takes the rotation back.

    Forward: a group is padded with zeros to the power of two P, entries whose padded flat
    position has an odd random word change sign, all are multiplied by float32(1 / sqrt(P)), and
    the butterflies (a + b, a - b) run at distances 1, 2, 4, ... Inverse: factor, butterflies,
    signs, and the padding is cut. A rotation whose entries exceed float32 overflows.

    Args:
        v: float32, laid out by `starts`, or by `out_starts` when `inverse`.
        starts: (G + 1,) int64.
        out_starts: (G + 1,) int64, padded groups: powers of two, 0 for an empty group.
        key: two ints in [0, 2**32).
        inverse: whether to take the rotation back.

    Returns:
        float32, laid out by `out_starts`, or by `starts` when `inverse`.

    Examples:
        >>> starts, padded = torch.tensor([0, 3]), torch.tensor([0, 4])
        >>> turned = hadamard(torch.tensor([1.0, 2.0, 3.0]), starts, padded, (1, 2), False)
        >>> hadamard(turned, starts, padded, (1, 2), True).tolist()
        [1.0, 2.0, 3.0]
    """
    check_rotation(starts, out_starts, v.numel(), inverse)
    flips = 1.0 - 2.0 * (words(int(out_starts[-1]), key) & 1).to(torch.float32)
    parts = [host.empty(0)]
    for (lo, hi), (start, end) in zip(_groups(starts), _groups(out_starts), strict=True):
        if hi == lo:
            continue
        flip = flips[start:end]
        factor = host.float_(1.0 / math.sqrt(end - start))
        if inverse:
            parts.append((_butterflies(v[start:end] * factor) * flip)[: hi - lo])
        else:
            padded = torch.cat([v[lo:hi], host.zeros(end - start - (hi - lo))])
            parts.append(_butterflies(padded * flip * factor))
    return torch.cat(parts)


def planes(width: int) -> tuple[int, ...]:
    """Says in which planes of 8, 4, 2 or 1 bits a code of `width` bits is stored, lowest first.

    Examples:
        >>> planes(13)
        (8, 4, 1)
    """
    check_width(width)
    return (8,) * (width // 8) + tuple(p for p in (4, 2, 1) if width & p)


def pack(codes: torch.Tensor, width: int) -> torch.Tensor:
    """Writes codes in blocks of 4096 and planes of 8, 4, 2 and 1 bits, ending in zero bits.

    A block of m codes holds one plane after the other, lowest bits first. A plane of p bits is
    S = ceil(m p / 8) bytes, and byte j holds code j in its low p bits, then code j + S, then
    j + 2 S, ... (zeros beyond m): a layout that vectorises. Higher bits of a code are dropped.

    Args:
        codes: (n,) int32 in [0, 2**width).
        width: bits per code, 1..16.

    Returns:
        (packed_bytes(n, width),) uint8.

    Examples:
        >>> pack(torch.tensor([1, 2, 3], dtype=torch.int32), 4).tolist()
        [49, 2]
    """
    out = [host.empty(0, torch.uint8)]
    for block in torch.split(codes, BLOCK):
        shift = 0
        for p in planes(width):
            plane = (block >> shift) & ((1 << p) - 1)
            rows = 8 // p
            padded = torch.cat([plane, plane.new_zeros(-plane.numel() % rows)]).view(rows, -1)
            places = p * torch.arange(rows, device=host.CPU)
            out.append((padded << places[:, None]).sum(0).to(torch.uint8))
            shift += p
    return torch.cat(out)


def unpack(data: torch.Tensor, n: int, width: int) -> torch.Tensor:
    """Reads back the n codes that `pack` wrote.

    Args:
        data: (packed_bytes(n, width),) uint8.
        n: number of codes.
        width: bits per code, 1..16.

    Returns:
        (n,) int32 in [0, 2**width).

    Raises:
        ValueError: when `data` has another length.

    Examples:
        >>> unpack(torch.tensor([49, 2], dtype=torch.uint8), 3, 4).tolist()
        [1, 2, 3]
    """
    check_packed(data, n, width)
    return torch.cat([block[:m] for block, m in _blocks(data, n, width)])


def _blocks(data: torch.Tensor, n: int, width: int) -> list[tuple[torch.Tensor, int]]:
    # Each block's codes with what its padding bits hold, in order, and how many of them are codes.
    out = [(host.empty(0, torch.int32), 0)]
    at = 0
    for first in range(0, n, BLOCK):
        m, shift = min(BLOCK, n - first), 0
        codes = torch.zeros(m + 7, dtype=torch.int32, device=host.CPU)
        for p in planes(width):
            rows = 8 // p
            size = (m + rows - 1) // rows
            places = p * torch.arange(rows, device=host.CPU)
            plane = data[at : at + size].to(torch.int32) >> places[:, None] & ((1 << p) - 1)
            codes[: rows * size] |= plane.flatten() << shift
            at += size
            shift += p
        out.append((codes, m))
    return out


def largest_code(data: torch.Tensor, n: int, width: int) -> int:
    """Finds the largest of n packed codes, 0 when there is none, -1 when a padding bit is set.

    Args:
        data: (packed_bytes(n, width),) uint8.
        n: number of codes.
        width: bits per code, 1..16.

    Examples:
        >>> packed = pack(torch.tensor([1, 2, 3], dtype=torch.int32), 4)
        >>> largest_code(packed, 3, 4), largest_code(packed + 128, 3, 4)
        (3, -1)
    """
    check_packed(data, n, width)
    blocks = _blocks(data, n, width)
    if any(bool(block[m:].any()) for block, m in blocks):
        return -1
    return max((int(block.max()) for block, m in blocks if m), default=0)


def _fixed_width(length: int) -> int:
    return max(1, (length - 1).bit_length())


def _bits(value: int, width: int) -> list[int]:
    return [(value >> i) & 1 for i in range(width)]


def _cheapest(positions: list[int], length: int) -> tuple[int, list[int]]:
    """Chooses the shortest code of one group and writes it: its tag and its bits."""
    k, width = len(positions), _fixed_width(length)
    if k in (0, length):
        return ALL_OR_NONE, []
    gaps = [p - before - 1 for before, p in pairwise([-1, *positions])]
    # The order of the tuple is the rule for ties: lower code, then lower parameter.
    choices = [(length, BITMAP, 0), (k * width, FIXED, 0)]
    choices += [(sum((gap >> b) + 1 + b for gap in gaps), RICE, b) for b in range(32)]
    _, code, b = min(choices)
    if code == BITMAP:
        chosen = set(positions)
        return BITMAP, [int(p in chosen) for p in range(length)]
    if code == FIXED:
        return FIXED, [bit for p in positions for bit in _bits(p, width)]
    return RICE | b << 3, [bit for gap in gaps for bit in [1] * (gap >> b) + [0] + _bits(gap, b)]


def encode_index(index: torch.Tensor, counts: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Writes ascending indices group by group in whichever of four codes is the shortest.

    Each group is one tag byte and a bit stream, lowest bits first, padded to a byte with zeros.
    With L the group's length, k its count, and positions counted from the group's start, the low
    three bits of the tag say how to read the stream:

    * 0, nothing follows: k is 0 or L (always chosen then).
    * 1, bitmap: L bits.
    * 2, fixed width: max(1, bit length of L - 1) bits for each position.
    * 3, Golomb-Rice: for each gap (entries skipped since the last position), gap >> b ones, a
      zero, and the b low bits of the gap, with b from 0 to 31 in the high five bits of the tag.

    The fewest bits win; ties go to the lower code, then to the lower b.

    Args:
        index: (sum of counts,) int64 flat indices, ascending, without repeats.
        counts: (G,) int64.
        starts: (G + 1,) int64.

    Returns:
        (bytes,) uint8, at most `index_bytes_bound(counts, starts)` of them.

    Raises:
        ValueError: when the indices do not ascend within their groups.

    Examples:
        >>> counts, starts = torch.tensor([2]), torch.tensor([0, 9])
        >>> encode_index(torch.tensor([0, 3]), counts, starts).tolist()
        [3, 6]
    """
    check_counts(counts, starts)
    check_typed(index, torch.int64)
    out = bytearray()
    sizes = counts.tolist()
    if sum(sizes) != index.numel():
        raise ValueError(f"{index.numel()} indices for counts that add up to {sum(sizes)}")
    for (lo, hi), chosen in zip(_groups(starts), torch.split(index, sizes), strict=True):
        positions = (chosen - lo).tolist()
        if any(b <= a for a, b in pairwise([-1, *positions, hi - lo])):
            raise ValueError("indices must ascend within their groups")
        tag, bits = _cheapest(positions, hi - lo)
        out.append(tag)
        bits += [0] * (-len(bits) % 8)
        out += bytes(
            sum(b << i for i, b in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8)
        )
    return torch.tensor(list(out), dtype=torch.uint8, device=host.CPU)


class _Refused(Exception):
    def __init__(self, status: int, first: int = 0, second: int = 0) -> None:
        self.problem = explain(status, first, second)


class _Reader:
    """Reads an index stream bit by bit and refuses to go past its end."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data
        self.at = 0

    def need(self, bits: int) -> None:
        if self.at + bits > 8 * self.data.numel():
            raise _Refused(ENDS_EARLY)

    def number(self, width: int) -> int:
        self.need(width)
        value = 0
        for i in range(width):
            value |= (int(self.data[self.at >> 3]) >> (self.at & 7) & 1) << i
            self.at += 1
        return value

    def align(self) -> None:
        if self.number(-self.at % 8):
            raise _Refused(PADDING)


def _read_group(reader: _Reader, k: int, length: int) -> list[int]:
    tag = reader.number(8)
    code, b = tag & 7, tag >> 3
    if code > RICE:
        raise _Refused(UNKNOWN_CODE, code)
    if code != RICE and b:
        raise _Refused(UNUSED_BITS, tag)
    positions: list[int] = []
    if code == ALL_OR_NONE:
        if k not in (0, length):
            raise _Refused(NOT_ALL_OR_NONE, k, length)
        return list(range(k))
    if code == BITMAP:
        reader.need(length)
        ones = 0
        for p in range(length):
            if reader.number(1):
                ones += 1
                # A garbage bitmap may hold more ones than there is room for.
                if ones <= k:
                    positions.append(p)
        if ones != k:
            raise _Refused(WRONG_ONES, ones, k)
    elif code == FIXED:
        width = _fixed_width(length)
        reader.need(k * width)
        for _ in range(k):
            p = reader.number(width)
            if p >= length:
                raise _Refused(OUTSIDE, p, length)
            if positions and p <= positions[-1]:
                raise _Refused(NOT_ASCENDING)
            positions.append(p)
    else:
        p = -1
        for _ in range(k):
            quotient = 0
            while reader.number(1):
                quotient += 1
                if quotient > length >> b:
                    raise _Refused(GAP_OUTSIDE, length)
            p += 1 + (quotient << b) + reader.number(b)
            if p >= length:
                raise _Refused(OUTSIDE, p, length)
            positions.append(p)
    reader.align()
    return positions


def decode_index(
    data: torch.Tensor, counts: torch.Tensor, starts: torch.Tensor
) -> tuple[torch.Tensor | None, int, str]:
    """Reads back the indices that `encode_index` wrote, or says why the bytes are not such.

    Any bytes are safe to give: nothing past the end is read, time is bounded by the bytes and
    the groups, and memory by the counts. Bytes after the last group are left alone. A valid
    stream need not be the shortest one.

    Args:
        data: (bytes,) uint8, possibly longer than needed.
        counts: (G,) int64.
        starts: (G + 1,) int64.

    Returns:
        The (sum of counts,) int64 flat indices, ascending, the bytes used, and ""; or None, 0
        and the problem in a few words.

    Examples:
        >>> counts, starts = torch.tensor([2]), torch.tensor([0, 9])
        >>> decode_index(torch.tensor([3, 6, 77], dtype=torch.uint8), counts, starts)
        (tensor([0, 3]), 2, '')
        >>> decode_index(torch.tensor([6], dtype=torch.uint8), counts, starts)
        (None, 0, 'unknown index code 6')
    """
    check_counts(counts, starts)
    check_typed(data, torch.uint8)
    reader, index = _Reader(data), []
    try:
        for (lo, hi), k in zip(_groups(starts), counts.tolist(), strict=True):
            index += [lo + p for p in _read_group(reader, k, hi - lo)]
    except _Refused as refused:
        return None, 0, refused.problem
    return host.ints(index), reader.at // 8, ""


def index_bytes_bound(counts: torch.Tensor, starts: torch.Tensor) -> int:
    """Says how many bytes `encode_index` needs at most for these counts, whatever the indices.

    Args:
        counts: (G,) int64.
        starts: (G + 1,) int64.

    Examples:
        >>> index_bytes_bound(torch.tensor([2, 0]), torch.tensor([0, 9, 12]))
        3
    """
    check_counts(counts, starts)
    lengths = starts.diff()
    # The exponent of a float64 is the bit length of the integer it holds.
    width = torch.frexp((lengths - 1).clamp(min=0).double()).exponent.clamp(min=1)
    bits = torch.minimum(lengths, counts * width)
    bits = torch.where((counts == 0) | (counts == lengths), 0, bits)
    return int((1 + (bits + 7) // 8).sum())


def accumulate(
    acc: torch.Tensor, index: torch.Tensor | None, values: torch.Tensor, weight: float
) -> None:
    """Adds weight times the values to `acc` in place, at the given indices or everywhere.

    Args:
        acc: (n,) float32, contiguous; changed.
        index: (k,) int64, ascending without repeats, or None for all of acc.
        values: (k,) float32, or (n,) when `index` is None.
        weight: what each value counts, rounded to float32.

    Raises:
        IndexError: when an index lies outside `acc`.

    Examples:
        >>> acc = torch.zeros(3)
        >>> accumulate(acc, torch.tensor([0, 2]), torch.tensor([1.0, 2.0]), 0.5)
        >>> acc.tolist()
        [0.5, 0.0, 1.0]
    """
    check_index(index, acc, values.numel())
    weighed = values * host.float_(weight)
    if index is None:
        acc += weighed
    else:
        acc[index] += weighed
