"""What every kernel means, in plain torch: slow, obvious, and the definition.

Vectors arrive flat with their groups described by `starts`, int64 of shape (G + 1,): group g is
`v[starts[g]:starts[g + 1]]`, `starts[0]` is 0, `starts[-1]` is n, and groups may be empty. A
`key` is a pair of ints in [0, 2**32). Values are finite except where an operation says so.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch

from thinwire import host
from thinwire.kernels.bodies import BodyShape, check_bodies, check_marked, check_steps
from thinwire.kernels.checks import (
    check_books,
    check_coded,
    check_counts,
    check_domains,
    check_index,
    check_inside,
    check_kind,
    check_levels,
    check_owed,
    check_packed,
    check_per_group,
    check_rotation,
    check_typed,
    check_unsigned_levels,
    check_vector,
    check_width,
    packed_bytes,
)
from thinwire.kernels.marked import Marked
from thinwire.kernels.owed import Owed

Key = tuple[int, int]

MASK32 = 0xFFFFFFFF
MAGNITUDE = 0x7FFFFFFF
LANES = 64
CHUNK = 1 << 16
"""Entries whose sum is taken by itself, so that chunks may be summed at the same time."""
BLOCK = 4096
"""Codes that are packed together."""
PAIR = 64
"""Entries that share their random words with the next so many."""

LLOYD_ROUNDS = 12
LLOYD_STILL = 2.0**-10
"""A threshold that moves by no more than this part of itself stands still."""

ALL_OR_NONE, BITMAP, FIXED, RICE = range(4)
PIECE = 1 << 16
"""Gaps that are coded by themselves where there are more, so that pieces may be coded at once."""

AS_PACKED, AS_ENTROPY = range(2)
STATE = 1 << 24
"""A state of the entropy coder before its first code; it stays below 2**16 times that."""
STATE_BYTES = 5
SEGMENT = 1 << 20
"""Codes that are entropy-coded by themselves, so that segments may be coded at the same time."""

# One row per way a stream can be refused; both tables answer with its place in this list.
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
    "position {0} lies in another chunk than the counts say",
    "unknown form {0} of the codes",
    "code {0} is above {1}",
    "padding bits after the codes are not zero",
    "code stream ends early",
    "a table of {0} codes, at most {1} are told apart",
    "a table holds a code above {0}",
    "shares add up to more than {0}",
    "a state lies outside its range",
    "the code stream does not end as it began",
    "segment {0} of the codes ends before its words",
    "piece {0} of the gaps ends before its bytes",
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
    WRONG_CHUNK,
    UNKNOWN_FORM,
    CODE_ABOVE,
    CODE_PADDING,
    CODES_END_EARLY,
    TOO_MANY_CODES,
    TABLE_ABOVE,
    SHARES_ABOVE,
    STATE_OUTSIDE,
    UNFINISHED,
    WORDS_LEFT,
    PIECE_LEFT,
) = range(len(PROBLEMS))


def explain(status: int, first: int, second: int) -> str:
    """Says in words why a stream was refused, and nothing when it was not.

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


def divide(total: torch.Tensor, count: int, starts: torch.Tensor) -> int:
    """Makes a mean of a sum, in place: total / count + 0, rounded once; no zero stays negative.

    Args:
        total: (n,) float32, any values.
        count: of what was summed.
        starts: (G + 1,) int64.

    Returns:
        What `first_nonfinite` says of the mean.

    Examples:
        >>> total = torch.tensor([2.0, -1e-45])
        >>> divide(total, 4, torch.tensor([0, 2])), total.tolist()
        (-1, [0.5, 0.0])
    """
    check_vector(total, starts)
    # By a plain number CUDA would multiply with 1 / count, and round twice.
    total.div_(total.new_full((), count)).add_(0.0)
    return first_nonfinite(total, starts)


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


def owe(owed: Owed) -> torch.Tensor:
    """Forms u = (anchor - params) + decay residual, each operation rounded to float32.

    Where params are not float32, what they began as stands for the anchor: with h the anchor
    rounded to their dtype, delta = anchor - (anchor - (h - params)).

    Args:
        owed: anchor, params, residual and decay.

    Returns:
        (d,) float32.

    Examples:
        >>> owe(Owed(torch.tensor([3.0]), (torch.tensor([1.0]),), torch.tensor([0.5]))).tolist()
        [2.5]
    """
    check_owed(owed)
    pieces = [host.empty(0)]
    at = 0
    for p in owed.params:
        a = owed.anchor[at : at + p.numel()]
        values = p.detach().reshape(-1).to(torch.float32)
        if p.dtype != torch.float32:
            values = a - (a.to(p.dtype).to(torch.float32) - values)
        pieces.append(a - values)
        at += p.numel()
    u = torch.cat(pieces)
    if owed.residual is None:
        return u
    return u + (owed.residual if owed.decay == 1 else owed.residual * host.float_(owed.decay))


def pick(
    owed: Owed, starts: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Selects the entries of u that are largest in magnitude, as `topk` of `owe` would.

    Args:
        owed: what u is formed of.
        starts: (G + 1,) int64.
        counts: (G,) int64, entries to keep, each at most its group's length.

    Returns:
        (sum of counts,) int64 flat indices, ascending, and u there, float32.

    Examples:
        >>> owed = Owed(torch.tensor([3.0, 1.0]), (torch.tensor([1.0, -4.0]),))
        >>> pick(owed, torch.tensor([0, 2]), torch.tensor([1]))
        (tensor([1]), tensor([5.]))
    """
    u = owe(owed)
    index = topk(u, starts, counts)
    return index, gather(u, index)


def pick_marked(
    marked: Marked, starts: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Selects the entries of a marked vector that are largest in magnitude, as `topk` would.

    Limits and marks may be renewed: every entry that reaches the limit of its group is marked.

    Args:
        marked: a vector with marks for these groups.
        starts: (G + 1,) int64.
        counts: (G,) int64, entries to keep, each at most its group's length.

    Returns:
        (sum of counts,) int64 flat indices, ascending, and x there, float32.

    Examples:
        >>> cut = torch.tensor([0, 4])
        >>> x = Marked.over(torch.tensor([1.0, -3.0, 3.0, 0.0]), cut)
        >>> pick_marked(x, cut, torch.tensor([1]))
        (tensor([1]), tensor([-3.]))
    """
    check_marked(marked, starts)
    index = topk(marked.x, starts, counts)
    return index, marked.x[index]


def settle(owed: Owed, index: torch.Tensor, said: torch.Tensor) -> None:
    """Makes the residual what is still owed, in place: u - said.

    Args:
        owed: what u is formed of; its residual is changed.
        index: (k,) int64, ascending without repeats.
        said: (k,) float32, what was said of u there.

    Examples:
        >>> owed = Owed(torch.tensor([3.0]), (torch.tensor([1.0]),), torch.tensor([0.5]))
        >>> settle(owed, torch.tensor([0]), torch.tensor([2.0]))
        >>> owed.residual.tolist()
        [0.5]
    """
    assert owed.residual is not None
    owed.residual.copy_(owe(owed))
    accumulate(owed.residual, index, said, -1.0)


def scatter(tensors: tuple[torch.Tensor, ...], index: torch.Tensor, values: torch.Tensor) -> None:
    """Adds values in place to tensors laid end to end.

    Args:
        tensors: contiguous float32.
        index: (k,) int64, ascending without repeats.
        values: (k,) float32.

    Raises:
        IndexError: when an index lies outside the tensors.

    Examples:
        >>> a, b = torch.zeros(2), torch.zeros(2)
        >>> scatter((a, b), torch.tensor([1, 2]), torch.tensor([5.0, 6.0]))
        >>> a.tolist(), b.tolist()
        ([0.0, 5.0], [6.0, 0.0])
    """
    check_inside(index, sum(t.numel() for t in tensors))
    low = 0
    for t in tensors:
        own = (index >= low) & (index < low + t.numel())
        accumulate(t.view(-1), index[own] - low, values[own], 1.0)
        low += t.numel()


def land(anchor: torch.Tensor, sums: tuple[torch.Tensor, ...], count: int, lr: float) -> None:
    """Moves the anchor along a mean and puts it where the sums were: anchor -= lr (sum / count).

    A mean of -0.0 counts as +0.0. Each operation is rounded to float32.

    Args:
        anchor: (d,) float32; changed.
        sums: d entries in all, contiguous float32; they become the new anchor.
        count: what the sums are divided by.
        lr: what the mean is multiplied by.

    Examples:
        >>> anchor, sums = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.0])
        >>> land(anchor, (sums,), 4, 1.0)
        >>> anchor.tolist(), sums.tolist()
        ([0.0, 2.0], [0.0, 2.0])
    """
    at = 0
    for total in sums:
        piece = anchor[at : at + total.numel()]
        mean = total.view(-1) / count + 0.0
        piece -= mean if lr == 1 else mean * host.float_(lr)
        total.view(-1).copy_(piece)
        at += total.numel()


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
    return torch.where(wide.isinf(), wide, wide.clamp(max=host.LARGEST)).to(torch.float32)


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


def signs(v: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes each entry as 1 when it is at least 0 (either zero included) and as 0 otherwise.

    Args:
        v: (n,) float32.
        starts: (G + 1,) int64.

    Returns:
        Codes of one bit, packed, and the l1 norms of the groups, (G,) float32.

    Examples:
        >>> codes, sums = signs(torch.tensor([2.0, -0.0, -1.0]), torch.tensor([0, 3]))
        >>> unpack(codes, 3, 1).tolist(), sums.tolist()
        ([1, 1, 0], [3.0])
    """
    return pack((v >= 0).to(torch.int32), 1), norms(v, starts, "l1")


def two_levels(v: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Parts each group's magnitudes in two and answers the mean of either part (Lloyd, Max).

    With m = |v| and t at first the mean of m: a is the mean of the m <= t, b of the m > t, and t
    becomes (a + b) / 2, until it stands still, at most `LLOYD_ROUNDS` times in all. A part that is
    empty has the other's mean. Everything is in float64, sums over lanes as in `norms`.

    Args:
        v: (n,) float32.
        starts: (G + 1,) int64.

    Returns:
        The codes 2 (v >= 0) + (m > t), packed in 2 bits, and (G, 2) float32, a and b of each
        group, 0 and 0 of an empty one.

    Examples:
        >>> packed, levels = two_levels(torch.tensor([1.0, -3.0, 1.5]), torch.tensor([0, 3]))
        >>> unpack(packed, 3, 2).tolist(), levels.tolist()
        ([2, 1, 2], [[1.25, 3.0]])
    """
    check_vector(v, starts)
    codes, levels = [host.empty(0, torch.int32)], []
    for lo, hi in _groups(starts):
        m, t, a, b = v[lo:hi].to(torch.float64).abs(), math.inf, 0.0, 0.0
        for again in range(LLOYD_ROUNDS - 1, -1, -1):
            above = m > t
            many, n = int(above.sum()), hi - lo
            low = _lane_sum(m.where(~above, 0.0), lo)
            high = _lane_sum(m.where(above, 0.0), lo)
            if n:
                b = high / many if many else low / n
                a = low / (n - many) if many < n else b
            middle = (a + b) / 2
            if not again or (t < math.inf and abs(middle - t) <= LLOYD_STILL * t):
                break
            t = middle
        codes.append(2 * (v[lo:hi] >= 0).to(torch.int32) + (m > t).to(torch.int32))
        levels.append([a, b])
    table = torch.tensor(levels, dtype=torch.float64, device=host.CPU).view(-1, 2)
    return pack(torch.cat(codes), 2), table.to(torch.float32)


def look_up(
    packed: torch.Tensor, width: int, starts: torch.Tensor, books: torch.Tensor
) -> torch.Tensor:
    """Answers what each code stands for in its group's book.

    Args:
        packed: n codes, n = starts[-1].
        width: bits per code, 1..8.
        starts: (G + 1,) int64.
        books: (G, 2**width) float32, the value of each code.

    Returns:
        (n,) float32.

    Examples:
        >>> packed = pack(torch.tensor([3, 0], dtype=torch.int32), 2)
        >>> look_up(packed, 2, torch.tensor([0, 2]), torch.tensor([[-1.0, 0.0, 1.0, 9.0]])).tolist()
        [9.0, -1.0]
    """
    check_books(packed, width, starts, books)
    codes = unpack(packed, int(starts[-1]), width).to(torch.int64)
    groups = torch.arange(len(books), device=host.CPU)
    return books.flatten()[codes + (_spread(groups, starts) << width)]


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


def _bits(value: int, width: int) -> list[int]:
    return [(value >> i) & 1 for i in range(width)]


_Inside = list[tuple[int, int, int]]
"""The groups inside a domain: where each starts there, its length, its positions."""


def _domains(
    counts: torch.Tensor, starts: torch.Tensor, domains: torch.Tensor | None
) -> list[tuple[int, int, _Inside]]:
    groups, out = list(zip(_groups(starts), counts.tolist(), strict=True)), []
    for lo, hi in _groups(starts if domains is None else domains):
        inside: _Inside = []
        while groups and groups[0][0][1] <= hi:
            (start, end), k = groups.pop(0)
            inside.append((start - lo, end - start, k))
        out.append((lo, hi - lo, inside))
    return out


def _cheapest(positions: list[int], length: int, inside: _Inside) -> tuple[int, list[int]]:
    """Chooses the shortest code of one domain and writes it: its tag and its bits."""
    k = len(positions)
    if k in (0, length):
        return ALL_OR_NONE, []
    starts = [start for start, _, many in inside for _ in range(many)]
    widths = [(size - 1).bit_length() for _, size, many in inside for _ in range(many)]
    gaps = [p - before - 1 for before, p in pairwise([-1, *positions])]
    # The order of the tuple is the rule for ties: lower code, then lower parameter.
    choices = [(length, BITMAP, 0), (sum(widths), FIXED, 0)]
    _, b = min((sum((gap >> b) + 1 + b for gap in gaps), b) for b in range(32))
    rice = [[bit for gap in gaps[at : at + PIECE] for bit in [1] * (gap >> b) + [0] + _bits(gap, b)]
            for at in range(0, k, PIECE)]  # fmt: skip
    if k > PIECE:
        rice = [piece + [0] * (-len(piece) % 8) for piece in rice]
        rice = [_bits(len(piece) // 8, 32) for piece in rice] + rice
    choices += [(sum(map(len, rice)), RICE, b)]
    _, code, b = min(choices)
    if code == BITMAP:
        chosen = set(positions)
        return BITMAP, [int(p in chosen) for p in range(length)]
    if code == FIXED:
        places = zip(positions, starts, widths, strict=True)
        return FIXED, [bit for p, start, width in places for bit in _bits(p - start, width)]
    return RICE | b << 3, [bit for part in rice for bit in part]


def _bytes(bits: list[int]) -> bytes:
    padded = bits + [0] * (-len(bits) % 8)
    return bytes(
        sum(b << i for i, b in enumerate(padded[at : at + 8])) for at in range(0, len(padded), 8)
    )


def encode_index(
    index: torch.Tensor,
    counts: torch.Tensor,
    starts: torch.Tensor,
    domains: torch.Tensor | None = None,
) -> torch.Tensor:
    """Writes ascending indices domain by domain in whichever of four codes is the shortest.

    Each domain is one tag byte and a bit stream, lowest bits first, padded to a byte with zeros.
    With L the domain's length, k its count, and positions counted from the domain's start, the
    low three bits of the tag say how to read the stream:

    * 0, nothing follows: k is 0 or L (always chosen then).
    * 1, bitmap: L bits.
    * 2, fixed width: each position, counted from its group's start, in the bits that the group's
      length less one needs.
    * 3, Golomb-Rice: for each gap (entries skipped since the last position), gap >> b ones, a
      zero, and the b low bits of the gap, with b from 0 to 31 in the high five bits of the tag.
      Where k is above `PIECE`, pieces of so many gaps are each padded to a byte, and the bytes of
      each come before the first of them, in 32 bits each.

    The fewest bits win; ties go to the lower code. Of the b whose gaps take the fewest bits, with
    no padding counted, it is the lowest.

    Args:
        index: (sum of counts,) int64 flat indices, ascending, without repeats.
        counts: (G,) int64.
        starts: (G + 1,) int64.
        domains: (S + 1,) int64, some of the starts; None where each group is a domain.

    Returns:
        (bytes,) uint8, at most `index_bytes_bound` of them.

    Raises:
        ValueError: when the indices do not ascend within their groups.

    Examples:
        >>> counts, starts = torch.tensor([2]), torch.tensor([0, 9])
        >>> encode_index(torch.tensor([0, 3]), counts, starts).tolist()
        [3, 6]
        >>> counts, starts = torch.tensor([1, 1]), torch.tensor([0, 8, 16])
        >>> encode_index(torch.tensor([5, 9]), counts, starts, torch.tensor([0, 16])).tolist()
        [2, 13]
    """
    check_counts(counts, starts)
    check_domains(domains, starts)
    check_typed(index, torch.int64)
    out, at = bytearray(), 0
    if int(counts.sum()) != index.numel():
        raise ValueError(f"{index.numel()} indices for counts that add up to {int(counts.sum())}")
    for lo, length, inside in _domains(counts, starts, domains):
        positions = []
        for start, size, k in inside:
            chosen = (index[at : at + k] - lo).tolist()
            at += k
            if any(b <= a for a, b in pairwise([start - 1, *chosen, start + size])):
                raise ValueError("indices must ascend within their groups")
            positions += chosen
        tag, bits = _cheapest(positions, length, inside)
        out.append(tag)
        out += _bytes(bits)
    return torch.tensor(list(out), dtype=torch.uint8, device=host.CPU)


class _Refused(Exception):
    def __init__(self, status: int, first: int = 0, second: int = 0) -> None:
        self.problem = explain(status, first, second)


class _Reader:
    """Reads a stream bit by bit and refuses to go past its end."""

    def __init__(self, data: bytes, ends_early: int) -> None:
        self.data = data
        self.ends_early = ends_early
        self.at = 0

    def need(self, bits: int) -> None:
        if self.at + bits > 8 * len(self.data):
            raise _Refused(self.ends_early)

    def number(self, width: int) -> int:
        self.need(width)
        value = 0
        for i in range(width):
            value |= (self.data[self.at >> 3] >> (self.at & 7) & 1) << i
            self.at += 1
        return value

    def align(self) -> None:
        if self.number(-self.at % 8):
            raise _Refused(PADDING)

    def part(self, size: int) -> _Reader:
        """Returns a reader of the next so many bytes, which are passed over here."""
        self.need(8 * size)
        self.at += 8 * size
        return _Reader(self.data[self.at // 8 - size : self.at // 8], self.ends_early)

    def done(self) -> bool:
        return self.at == 8 * len(self.data)


def _read_domain(reader: _Reader, length: int, inside: _Inside) -> list[int]:
    k = sum(many for _, _, many in inside)
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
        reader.need(sum(many * (size - 1).bit_length() for _, size, many in inside if many))
        for start, size, many in inside:
            before = -1
            for _ in range(many):
                p = reader.number((size - 1).bit_length())
                if p >= size:
                    raise _Refused(OUTSIDE, p, size)
                if p <= before:
                    raise _Refused(NOT_ASCENDING)
                before = p
                positions.append(start + p)
    else:
        many = (k + PIECE - 1) // PIECE if k > PIECE else 0
        sizes = [reader.number(32) for _ in range(many)]
        reader.need(8 * sum(sizes))
        for q in range(max(many, 1)):
            own = reader.part(sizes[q]) if sizes else reader
            _read_gaps(own, min(k, (q + 1) * PIECE), length, b, positions)
            own.align()
            if sizes and not own.done():
                raise _Refused(PIECE_LEFT, q)
    reader.align()
    at = 0
    for start, size, many in inside:
        wrong = [p for p in positions[at : at + many] if not start <= p < start + size]
        if wrong:
            raise _Refused(WRONG_CHUNK, wrong[0])
        at += many
    return positions


def _read_gaps(reader: _Reader, upto: int, length: int, b: int, positions: list[int]) -> None:
    """Reads gaps until there are so many positions."""
    p = positions[-1] if positions else -1
    while len(positions) < upto:
        quotient = 0
        while reader.number(1):
            quotient += 1
            if quotient > length >> b:
                raise _Refused(GAP_OUTSIDE, length)
        p += 1 + (quotient << b) + reader.number(b)
        if p >= length:
            raise _Refused(OUTSIDE, p, length)
        positions.append(p)


def decode_index(
    data: torch.Tensor,
    counts: torch.Tensor,
    starts: torch.Tensor,
    domains: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, int, str]:
    """Reads back the indices that `encode_index` wrote, or says why the bytes are not such.

    Any bytes are safe to give: nothing past the end is read, time is bounded by the bytes and
    the groups, and memory by the counts. Bytes after the last group are left alone. A valid
    stream need not be the shortest one.

    Args:
        data: (bytes,) uint8, possibly longer than needed.
        counts: (G,) int64.
        starts: (G + 1,) int64.
        domains: (S + 1,) int64, as in `encode_index`.

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
    check_domains(domains, starts)
    check_typed(data, torch.uint8)
    reader, index = _Reader(data.contiguous().numpy().tobytes(), ENDS_EARLY), []
    try:
        for lo, length, inside in _domains(counts, starts, domains):
            index += [lo + p for p in _read_domain(reader, length, inside)]
    except _Refused as refused:
        return None, 0, refused.problem
    return host.ints(index), reader.at // 8, ""


def index_bytes_bound(
    counts: torch.Tensor, starts: torch.Tensor, domains: torch.Tensor | None = None
) -> int:
    """Says how many bytes `encode_index` needs at most for these counts, whatever the indices.

    Args:
        counts: (G,) int64.
        starts: (G + 1,) int64.
        domains: (S + 1,) int64, as in `encode_index`.

    Examples:
        >>> index_bytes_bound(torch.tensor([2, 0]), torch.tensor([0, 9, 12]))
        3
    """
    check_counts(counts, starts)
    check_domains(domains, starts)
    cuts, k = starts.numpy(), counts.numpy()
    # The exponent of a float64 is the bit length of the integer it holds.
    _, widths = np.frexp(np.maximum(np.diff(cuts) - 1, 0).astype(np.float64))
    edges = np.searchsorted(cuts, cuts if domains is None else domains.numpy())
    lengths = np.diff(cuts[edges])
    kept, fixed = (
        np.diff(np.concatenate([[0], per_group.cumsum()])[edges]) for per_group in (k, k * widths)
    )
    bits = np.where((kept == 0) | (kept == lengths), 0, np.minimum(lengths, fixed))
    return int((1 + (bits + 7) // 8).sum())


def entropy_shape(n: int) -> tuple[int, int]:
    """Says with how many bits and lanes n codes are entropy-coded.

    Args:
        n: number of codes.

    Returns:
        The bits R of a share, 2**R together, and the number of states that take turns.

    Examples:
        >>> entropy_shape(1000), entropy_shape(1 << 20)
        ((10, 1), (16, 8))
    """
    return min(16, max(8, n.bit_length())), 8 if n >= 1 << 16 else 1


def entropy_shares(counts: list[int], R: int) -> list[int]:
    """Turns how often each code occurs into shares of 2**R, at least 1 for a code that occurs.

    Each count is scaled and rounded (halves up); what is left over or missing then goes to, or
    comes from, the most frequent code, the lowest on a tie.

    Args:
        counts: how often each code occurs, of which at most 2**(R // 2) occur.
        R: bits of a share.

    Examples:
        >>> entropy_shares([3, 0, 1, 4], 8)
        [96, 0, 32, 128]
    """
    n, M = sum(counts), 1 << R
    shares = [max(1, (2 * c * M + n) // (2 * n)) if c else 0 for c in counts]
    shares[counts.index(max(counts))] += M - sum(shares)
    return shares


def _gamma(value: int) -> list[int]:
    j = value.bit_length() - 1
    return [1] * j + [0] + _bits(value, j)


def _table(shares: list[int]) -> bytes:
    used = [code for code, share in enumerate(shares) if share]
    bits = _bits(len(used) - 1, 8)
    for before, code in pairwise([-1, *used]):
        bits += _gamma(code - before)
        if code != used[-1]:
            e = shares[code].bit_length() - 1
            bits += _bits(e, 4) + _bits(shares[code], e)
    return _bytes(bits)


def _entropy_coded(codes: list[int], width: int) -> bytes | None:
    """Codes by shares of an interval (rANS), last code first; None where too many differ."""
    R, lanes = entropy_shape(len(codes))
    counts = [0] * (1 << width)
    for code in codes:
        counts[code] += 1
    if not codes or sum(c > 0 for c in counts) > 1 << R // 2:
        return None
    shares = entropy_shares(counts, R)
    below = [0, *torch.tensor(shares).cumsum(0).tolist()]
    segments = []
    for first in range(0, len(codes), SEGMENT):
        segment = codes[first : first + SEGMENT]
        x, words = [STATE] * lanes, []
        for i in range(len(segment) - 1, -1, -1):
            lane, f = i % lanes, shares[segment[i]]
            if x[lane] >= f << (40 - R):
                words.append(x[lane] & 0xFFFF)
                x[lane] >>= 16
            x[lane] = (x[lane] // f << R) + below[segment[i]] + x[lane] % f
        states = b"".join(state.to_bytes(STATE_BYTES, "little") for state in x)
        segments.append(states + b"".join(w.to_bytes(2, "little") for w in reversed(words)))
    sizes = [len(segment).to_bytes(4, "little") for segment in segments[:-1]]
    return b"".join([_table(shares), *sizes, *segments])


def encode_codes(packed: torch.Tensor, n: int, width: int) -> torch.Tensor:
    """Writes n packed codes in the shorter of two forms: as they are, or entropy-coded.

    One byte names the form: 0, the packed codes follow; 1, only where that is shorter, and where
    at most 2**(R // 2) different codes occur (R and the lanes from `entropy_shape`):

    * a bit stream, lowest bits first, zero-padded: the number of codes that occur, less one, in 8
      bits; then for each, ascending, its distance to the one before (the first to -1) as an
      Elias gamma number (j ones, a zero, the j low bits of a number of j + 1 bits), and, but for
      the last, e in 4 bits and e bits: its share of 2**R without its highest bit, which is bit e;
    * the bytes of each segment of `SEGMENT` codes but the last, 4 each;
    * the segments: each lane's state in 5 bytes, at least `STATE` and below 2**16 times that, and
      words of 16 bits.

    A reader takes a segment's code i from lane i % lanes: of the state x the low R bits lie in
    the code's share f, which begins at b; x becomes f (x >> R) + (x mod 2**R) - b, and where that
    is below `STATE` the next word enters from below. After a segment's last code every state is
    `STATE`.

    Args:
        packed: (packed_bytes(n, width),) uint8.
        n: number of codes.
        width: bits per code, 1..16.

    Returns:
        (bytes,) uint8, at most 1 + packed_bytes(n, width) of them.

    Examples:
        >>> packed = pack(torch.full((1000,), 7, dtype=torch.int32), 4)
        >>> encode_codes(packed, 1000, 4).tolist()
        [1, 0, 7, 0, 0, 0, 1, 0]
    """
    coded = _entropy_coded(unpack(packed, n, width).tolist(), width)
    if coded is None or len(coded) >= packed.numel():
        return torch.cat([packed.new_full((1,), AS_PACKED), packed])
    return torch.tensor([AS_ENTROPY, *coded], dtype=torch.uint8, device=host.CPU)


def _read_shares(reader: _Reader, R: int, top: int) -> list[tuple[int, int]]:
    m, total, code = reader.number(8) + 1, 0, -1
    if m > 1 << R // 2:
        raise _Refused(TOO_MANY_CODES, m, 1 << R // 2)
    out = []
    for last in range(m - 1, -1, -1):
        j = 0
        while reader.number(1):
            j += 1
            if j > 16:
                raise _Refused(TABLE_ABOVE, top)
        code += (1 << j) + reader.number(j)
        if code > top:
            raise _Refused(TABLE_ABOVE, top)
        f = (1 << R) - total
        if last:
            e = reader.number(4)
            f = (1 << e) + reader.number(e)
        total += f
        if total > (1 << R) - (last > 0):
            raise _Refused(SHARES_ABOVE, 1 << R)
        out.append((code, f))
    reader.align()
    return out


def _read_codes(reader: _Reader, n: int, top: int) -> list[int]:
    R, lanes = entropy_shape(n)
    shares = _read_shares(reader, R, top)
    owner = [(code, f, slot) for code, f in shares for slot in range(f)]
    parts = range(0, max(n, 1), SEGMENT)
    sizes = [reader.number(32) for _ in parts[1:]]
    reader.need(8 * sum(sizes))
    codes: list[int] = []
    for s, first in enumerate(parts):
        own = reader.part(sizes[s]) if s < len(sizes) else reader
        codes += _read_segment(own, min(SEGMENT, n - first), lanes, R, owner)
        if own is not reader and not own.done():
            raise _Refused(WORDS_LEFT, s)
    return codes


def _read_segment(
    reader: _Reader, n: int, lanes: int, R: int, owner: list[tuple[int, int, int]]
) -> list[int]:
    x = [reader.number(8 * STATE_BYTES) for _ in range(lanes)]
    if min(x) < STATE or max(x) >= STATE << 16:
        raise _Refused(STATE_OUTSIDE)
    codes = []
    for i in range(n):
        state = x[i % lanes]
        code, f, within = owner[state & ((1 << R) - 1)]
        state = f * (state >> R) + within
        if state < STATE:
            state = state << 16 | reader.number(16)
        x[i % lanes] = state
        codes.append(code)
    if x != [STATE] * lanes:
        raise _Refused(UNFINISHED)
    return codes


def decode_codes(
    data: torch.Tensor, n: int, width: int, top: int
) -> tuple[torch.Tensor | None, int, str]:
    """Reads back the packed codes that `encode_codes` wrote, or says why the bytes are not such.

    Any bytes are safe to give: nothing past the end is read, time and memory are bounded by n.
    Bytes after the last word are left alone. The shares need not be the ones a sender takes.

    Args:
        data: (bytes,) uint8, possibly longer than needed.
        n: number of codes.
        width: bits per code, 1..16.
        top: the greatest code, below 2**width.

    Returns:
        The (packed_bytes(n, width),) uint8 packed codes, the bytes used, and ""; or None, 0 and
        the problem in a few words.

    Examples:
        >>> data = torch.tensor([1, 0, 7, 0, 0, 0, 1, 0, 99], dtype=torch.uint8)
        >>> packed, used, problem = decode_codes(data, 1000, 4, 14)
        >>> unpack(packed, 1000, 4).unique().tolist(), used, problem
        ([7], 8, '')
        >>> decode_codes(data, 1000, 4, 6)
        (None, 0, 'a table holds a code above 6')
    """
    check_typed(data, torch.uint8)
    check_width(width)
    size, form = packed_bytes(n, width), int(data[0]) if data.numel() else None
    try:
        if form is None or (form == AS_PACKED and data.numel() <= size):
            raise _Refused(CODES_END_EARLY)
        if form == AS_PACKED:
            largest = largest_code(data[1 : 1 + size], n, width)
            if largest < 0:
                raise _Refused(CODE_PADDING)
            if largest > top:
                raise _Refused(CODE_ABOVE, largest, top)
            return data[1 : 1 + size], 1 + size, ""
        if form != AS_ENTROPY:
            raise _Refused(UNKNOWN_FORM, form)
        reader = _Reader(data[1:].contiguous().numpy().tobytes(), CODES_END_EARLY)
        codes = torch.tensor(_read_codes(reader, n, top), dtype=torch.int32, device=host.CPU)
    except _Refused as refused:
        return None, 0, refused.problem
    return pack(codes, width), 1 + reader.at // 8, ""


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


def subtract_bodies(
    x: torch.Tensor | Marked,
    data: torch.Tensor,
    ends: torch.Tensor,
    shape: BodyShape,
    divisors: torch.Tensor,
    room: float,
    touched: torch.Tensor | None,
    version: int,
) -> torch.Tensor:
    """Takes what bodies say away from x in place, one after the other, each divided first.

    The first that is not as it should be, with nothing after its last section, finite scales and
    finite values, ends it; so does one that goes too far. That one and all after it change nothing.

    Args:
        x: (d,) float32, contiguous; changed. Where it is marked, so is what it is changed in.
        data: (bytes,) uint8, the bodies end to end.
        ends: (F,) int64, where each ends.
        shape: what a body holds.
        divisors: (F,) float32.
        room: to what the largest magnitudes of the quotients may add up.
        touched: (d,) int64, is told for each entry the last body that touched it; or None.
        version: what it is told of the first body, and one more for each after it.

    Returns:
        The largest magnitude of the quotients of each that was taken, float32.

    Examples:
        >>> data = torch.tensor([3, 6, 0, 0, 128, 63, 1] * 2, dtype=torch.uint8)
        >>> cut = torch.tensor([2]), torch.tensor([0, 9]), torch.tensor([0, 9])
        >>> units = torch.tensor([[-1.0, 2.0]]).double()
        >>> shape = BodyShape(*cut, 3, units, 1, 1, torch.tensor([0, 2]))
        >>> x, divisors = torch.zeros(9), torch.tensor([1.0, 2.0])
        >>> subtract_bodies(x, data, torch.tensor([7, 14]), shape, divisors, 9.0, None, 0)
        tensor([1.0000, 0.5000])
        >>> x.tolist()
        [-1.5, 0.0, 0.0, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    check_bodies(data, ends)
    check_steps(x, shape, divisors, len(ends), touched)
    sizes: list[float] = []
    for f, (low, high) in enumerate(pairwise([0, *ends.tolist()])):
        read = _read_body(data[low:high], shape)
        if read is None:
            break
        at, lows, steps, packed = read
        values = decode(packed, shape.width, shape.blocks, lows, steps) / divisors[f]
        size = float(values.abs().max()) if len(values) else 0.0
        if not (math.isfinite(size) and sum(sizes) + size <= room):
            break
        sizes.append(size)
        accumulate(x.x if isinstance(x, Marked) else x, at, values, -1.0)
        if isinstance(x, Marked):
            limits = x.limits[torch.searchsorted(x.starts, at, right=True) - 1]
            for i in at[~(x.x[at].abs() < limits)].tolist():
                x.marks[i // 8] |= 1 << i % 8
        if touched is not None:
            touched[at] = version + f
    return host.floats(sizes)


def _read_body(body: torch.Tensor, shape: BodyShape) -> tuple[torch.Tensor, ...] | None:
    """Returns indices, lows, steps and codes of a body that is as it should be, or None."""
    cut, size = (shape.counts, shape.starts, shape.domains), shape.code_bytes
    index, used, _ = decode_index(body[: shape.index_bytes], *cut)
    if index is None or used + shape.scale_bytes + size != len(body):
        return None
    said = body[used : used + shape.scale_bytes].clone().view(torch.float32)
    packed = body[len(body) - size :]
    if (
        not said.isfinite().all()
        or not 0 <= largest_code(packed, shape.n, shape.width) <= shape.top
    ):
        return None
    lows, steps = (said.view(-1, len(shape.units)).double() @ shape.units).unbind(1)
    return index, lows.contiguous(), steps.contiguous(), packed


CRC_POLYNOMIAL = 0xEDB88320


def crc_times(a: int, b: int) -> int:
    """Multiplies two polynomials modulo the CRC-32's; the highest bit is the constant term."""
    product = 0
    for bit in range(31, -1, -1):
        product ^= b if a >> bit & 1 else 0
        b = b >> 1 ^ (CRC_POLYNOMIAL if b & 1 else 0)
    return product


def join_crc(first: int, second: int, n: int) -> int:
    """Says the CRC-32 of bytes followed by n others, from the CRC-32 of each.

    That is first x**(8 n) + second, so join_crc(first, both, n) is the CRC-32 of the second part.

    Args:
        first: CRC-32 of what comes first.
        second: CRC-32 of what follows.
        n: bytes that follow.

    Examples:
        >>> import zlib
        >>> join_crc(zlib.crc32(b"thin"), zlib.crc32(b"wire"), 4) == zlib.crc32(b"thinwire")
        True
    """
    power = 1 << 23
    while n:
        if n & 1:
            first = crc_times(power, first)
        power = crc_times(power, power)
        n >>= 1
    return first ^ second
