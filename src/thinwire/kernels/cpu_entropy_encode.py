"""The entropy coder of `thinwire.kernels.reference` in Numba: rANS on eight states in turn."""

from __future__ import annotations

import numpy as np
import torch

from thinwire.kernels import checks, reference
from thinwire.kernels.cpu_bits import put
from thinwire.kernels.cpu_codes import block_bytes, get_block
from thinwire.kernels.numba_support import Array, Number, array, kernel
from thinwire.kernels.parallel import each_share, each_stretch

_BLOCK = reference.BLOCK
_STATE = reference.STATE
_STATE_BYTES = reference.STATE_BYTES
_SEGMENT = reference.SEGMENT
_MOST_TABLE = 4096
"""More bytes than any table has: 256 codes of at most 33 + 19 bits."""


@kernel
def _histogram(packed: Array, width: Number, low: Number, high: Number, counts: Array) -> None:
    # Rows take turns, since one counter hit again and again waits for itself.
    scratch = np.empty(_BLOCK, np.uint16)
    turn = counts.shape[0] - 1
    for first in range(low, high, _BLOCK):
        block = scratch[: min(_BLOCK, high - first)]
        at = first // 8 * width
        get_block(packed[at : at + block_bytes(block.size, width)], width, block)
        for j in range(block.size):
            counts[j & turn, block[j]] += 1


@kernel
def _encode(
    packed: Array, n: Number, width: Number, shares: Array, R: Number, x: Array, words: Array
) -> Number:  # fmt: skip
    """Fills `words` from its end, at most one a code; returns where they begin."""
    M = np.int64(1) << R
    limit = shares << (40 - R)
    inverse = np.empty(shares.size, np.float64)
    below = np.zeros(shares.size, np.int64)
    for i in range(shares.size):
        inverse[i] = 1.0 / max(shares[i], 1)
        if i > 0:
            below[i] = below[i - 1] + shares[i - 1]
    rest = M - shares
    scratch = np.empty(_BLOCK, np.uint16)
    turn = x.size - 1
    at = words.size
    for first in range((n - 1) // _BLOCK * _BLOCK, -1, -_BLOCK):
        block = scratch[: min(_BLOCK, n - first)]
        begin = first // 8 * width
        get_block(packed[begin : begin + block_bytes(block.size, width)], width, block)
        for j in range(block.size - 1, -1, -1):
            code = block[j]
            state = x[j & turn]
            words[at - 1] = np.uint16(state)
            emit = np.int64(state >= limit[code])
            at -= emit
            state >>= emit << 4
            # Below 2**40 the half keeps the float64 product off the whole numbers: q is exact.
            q = np.int64((np.float64(state) + 0.5) * inverse[code])
            x[j & turn] = state + q * rest[code] + below[code]
    return at


@kernel
def _write_table(shares: Array, used: Array, words: Array) -> Number:
    at = put(words, np.int64(0), used.size - 1, 8)
    before = np.int64(-1)
    for m in range(used.size):
        gap = used[m] - before
        before = used[m]
        j = np.int64(0)
        while gap >> (j + 1):
            j += 1
        at = put(words, at, (1 << j) - 1, j + 1)
        at = put(words, at, gap & ((1 << j) - 1), j)
        if m < used.size - 1:
            f = shares[used[m]]
            e = np.int64(0)
            while f >> (e + 1):
                e += 1
            at = put(words, at, e, 4)
            at = put(words, at, f & ((1 << e) - 1), e)
    return (at + 7) >> 3


def _entropy_coded(packed: Array, n: int, width: int) -> list[Array] | None:
    """Returns table, sizes and segments, or None where they are not shorter than `packed`."""
    R, lanes = reference.entropy_shape(n)
    counted: list[Array] = []

    def count(low: int, high: int) -> None:
        counts = np.zeros((4 if width <= 8 else 1, 1 << width), np.int64)
        _histogram(packed, width, low, high, counts)
        counted.append(counts.sum(0))

    each_stretch(n, count)
    total = np.sum(counted, 0)
    used = np.flatnonzero(total)
    if not 0 < used.size <= 1 << R // 2:
        return None
    shares = np.zeros_like(total)
    shares[used] = reference.entropy_shares(total[used].tolist(), R)
    # A state gains at most 2**-7 bits a code on its share, so what is hopeless is not tried.
    if (total[used] * (R - np.log2(shares[used]) - 2**-7)).sum() > 8 * packed.size:
        return None
    table = np.zeros(_MOST_TABLE // 8, np.uint64)
    head = table.view(np.uint8)[: _write_table(shares, used, table)]
    segments: list[list[Array]] = [[] for _ in range(0, n, _SEGMENT)]

    def encode(first: int, last: int) -> None:
        for s in range(first, last):
            own = packed[s * _SEGMENT // 8 * width : (s + 1) * _SEGMENT // 8 * width]
            size = min(_SEGMENT, n - s * _SEGMENT)
            words = np.empty(size + 1, np.uint16)
            states = np.full(lanes, _STATE, np.int64)
            at = _encode(own, size, width, shares, R, states, words)
            tails = states.view(np.uint8).reshape(lanes, 8)[:, :_STATE_BYTES]
            segments[s] = [tails.ravel(), words[at:].view(np.uint8).copy()]

    each_share(n, len(segments), encode)
    sizes = np.array([sum(part.size for part in parts) for parts in segments[:-1]], "<u4")
    coded = [head, sizes.view(np.uint8), *(part for parts in segments for part in parts)]
    return coded if sum(part.size for part in coded) < packed.size else None


def encode_codes(packed: torch.Tensor, n: int, width: int) -> torch.Tensor:
    """Agrees bit for bit with `reference.encode_codes`."""
    checks.check_packed(packed, n, width)
    given = array(packed)
    coded = _entropy_coded(given, n, width)
    form = reference.AS_PACKED if coded is None else reference.AS_ENTROPY
    sections = [np.array([form], np.uint8), *([given] if coded is None else coded)]
    return torch.from_numpy(np.concatenate(sections))
