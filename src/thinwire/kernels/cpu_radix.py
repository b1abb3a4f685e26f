"""The k largest of some keys, exactly: bit by bit where a cache holds them, or by histogram."""

from __future__ import annotations

import numpy as np

from thinwire.kernels.numba_support import Array, Number, copy, inlined, kernel

_BLOCK = 32
_CACHED = 1 << 19


@kernel
def _holds(bits: Array, mask: Number, shift: Number, prefix: Number) -> Number:
    found = False
    for j in range(bits.size):
        found |= np.uint32(np.uint32(bits[j] & mask) >> shift) == prefix
    return found


@kernel
def threshold(bits: Array, mask: Number, floor: Number, k: Number, histogram: Array) -> Number:
    """Finds the bin of keys that holds the k-th largest, for 0 < k <= bits.size.

    Every key reaches the floor.

    Returns:
        The bin's lowest key, how many low bits its keys may differ in, and how many of the k
        largest lie in it: all of its keys, or the first so many of keys that are equal.
    """
    if bits.size > _CACHED:
        return _by_histogram(bits, mask, k, histogram)
    # Bit by bit from the top: a bit is set where k keys are still as large.
    edge = np.uint32(0)
    above = 0
    shift = 32
    while shift > 0:
        shift -= 1
        tried = np.uint32(edge | np.uint32(np.uint32(1) << np.uint32(shift)))
        if tried <= floor:
            edge = tried
            continue
        if tried > mask:
            continue
        count = np.int32(0)
        for j in range(bits.size):
            count += np.int32(np.uint32(bits[j] & mask) >= tried)
        if count >= k:
            edge = tried
        else:
            above = np.int64(count)
        if count == k:
            return edge, shift, k - above
    return edge, 0, k - above


@kernel
def _by_histogram(bits: Array, mask: Number, k: Number, histogram: Array) -> Number:
    """Finds the same as `threshold`, for keys that no cache holds: two passes at most."""
    prefix = np.uint32(0)
    shift = 32
    need = k
    while shift > 0:
        step = 16
        below = np.uint32(shift - step)
        bins = 1 << step
        low = np.uint32(bins - 1)
        histogram[:bins] = 0
        if shift == 32:
            for j in range(bits.size):
                histogram[np.uint32(bits[j] & mask) >> below] += 1
        else:
            above = np.uint32(shift)
            for at in range(0, bits.size, _BLOCK):
                block = bits[at : at + _BLOCK]
                if _holds(block, mask, above, prefix):
                    for j in range(block.size):
                        key = np.uint32(block[j] & mask)
                        if np.uint32(key >> above) == prefix:
                            histogram[np.uint32(key >> below) & low] += 1
        chosen = bins - 1
        while histogram[chosen] < need:
            need -= histogram[chosen]
            chosen -= 1
        prefix = np.uint32(np.uint32(prefix << np.uint32(step)) | np.uint32(chosen))
        shift -= step
        if histogram[chosen] == need:
            break
    return np.uint32(prefix << np.uint32(shift)), shift, need


@kernel
def _bin(bits: Array, mask: Number, floor: Number, k: Number, histogram: Array) -> Number:
    """Returns the bin's lowest and highest key, and how many of the k largest lie in it."""
    edge, shift, quota = threshold(bits, mask, floor, k, histogram)
    return edge, np.uint32(edge + np.uint32((np.int64(1) << shift) - 1)), quota


@inlined
def _in_bin(key: Number, edge: Number, last: Number, quota: Number) -> Number:
    """Tells, without a branch, whether a key is one of the bin's that are still wanted."""
    return np.int64(key >= edge) & np.int64(key <= last) & np.int64(quota > 0)


@kernel
def collect(
    bits: Array, mask: Number, k: Number, histogram: Array, first: Number, out: Array
) -> None:
    """Writes the flat indices of the k largest keys, ties by lower index, to out, of size k."""
    if k == bits.size:
        for j in range(k):
            out[j] = first + j
        return
    if k == 0:
        return
    edge, last, quota = _bin(bits, mask, np.uint32(0), k, histogram)
    m = 0
    for at in range(0, bits.size, _BLOCK):
        block = bits[at : at + _BLOCK]
        largest = np.uint32(0)
        for j in range(block.size):
            largest = max(largest, np.uint32(block[j] & mask))
        if largest < edge:
            continue
        for j in range(block.size):
            if m == k:
                return
            # Without a branch on the key: among candidates it would be guessed wrong.
            key = np.uint32(block[j] & mask)
            level = _in_bin(key, edge, last, quota)
            quota -= level
            out[m] = first + at + j
            m += np.int64(key > last) | level


@kernel
def take(
    index: Array, bits: Array, mask: Number, floor: Number, k: Number, histogram: Array,
    out: Array, kept: Array,
) -> None:  # fmt: skip
    """Writes the entries of the k largest keys, as `collect` chooses: places to out, bits to kept.

    Both are of size k; kept may be empty, where nobody asks for it. Every key reaches the floor.
    """
    if k == bits.size:
        copy(out, index)
        copy(kept, bits)
        return
    if k == 0:
        return
    edge, last, quota = _bin(bits, mask, floor, k, histogram)
    m, end = np.uint64(0), np.uint64(k)
    for j in range(bits.size):
        if m == end:
            return
        # Without a branch on the key: among candidates it would be guessed wrong.
        key = np.uint32(bits[j] & mask)
        level = _in_bin(key, edge, last, quota)
        quota -= level
        out[m] = index[j]
        if kept.size:
            kept[m] = bits[j]
        m += np.uint64(np.int64(key > last) | level)
