"""The entropy decoder of `thinwire.kernels.reference` in Numba: rANS on eight states in turn.

Nothing here checks bounds on its own: a stream is read from a copy with room for all the words
that a block can ask for, and where it ends is looked at after each block.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.cpu_bits import padded_words, peek
from thinwire.kernels.cpu_codes import block_bytes, largest_code, put_block
from thinwire.kernels.numba_support import Array, Number, array, kernel, trailing_zeros
from thinwire.kernels.parallel import each_share

_BLOCK = reference.BLOCK
_STATE = reference.STATE
_FINE = reference.FINE
_PADDING = reference.PADDING
_ENDS_EARLY = reference.CODES_END_EARLY
_TOO_MANY = reference.TOO_MANY_CODES
_TABLE_ABOVE = reference.TABLE_ABOVE
_SHARES_ABOVE = reference.SHARES_ABOVE
_STATE_OUTSIDE = reference.STATE_OUTSIDE
_UNFINISHED = reference.UNFINISHED
_WORDS_LEFT = reference.WORDS_LEFT
_STATE_BYTES = reference.STATE_BYTES
_SEGMENT = reference.SEGMENT
_MOST_TABLE = 4096
"""More bytes than any table has: 256 codes of at most 33 + 19 bits."""


@kernel
def _read_table(
    words: Array, size: Number, top: Number, R: Number, codes: Array, shares: Array
) -> Number:
    """Reads a table; returns status and two numbers, how many codes it has and its bytes."""
    end = 8 * size
    if end < 8:
        return _ENDS_EARLY, 0, 0, 0, 0
    m = np.int64(peek(words, 0) & np.uint64(0xFF)) + 1
    if m > 1 << (R >> 1):
        return _TOO_MANY, m, 1 << (R >> 1), 0, 0
    at = np.int64(8)
    total = np.int64(0)
    code = np.int64(-1)
    for i in range(m):
        word = peek(words, at)
        j = np.int64(trailing_zeros(~word))
        if j > 16:
            return _TABLE_ABOVE, top, 0, 0, 0
        at += j + 1
        if at + j > end:
            return _ENDS_EARLY, 0, 0, 0, 0
        low = np.int64(word >> np.uint64(j + 1))
        code += (1 << j) + (low & ((1 << j) - 1))
        at += j
        if code > top:
            return _TABLE_ABOVE, top, 0, 0, 0
        f = (1 << R) - total
        if i < m - 1:
            if at + 4 > end:
                return _ENDS_EARLY, 0, 0, 0, 0
            word = peek(words, at)
            e = np.int64(word & np.uint64(15))
            at += 4 + e
            if at > end:
                return _ENDS_EARLY, 0, 0, 0, 0
            f = (1 << e) + (np.int64(word >> np.uint64(4)) & ((1 << e) - 1))
        total += f
        if total > (1 << R) - (i < m - 1):
            return _SHARES_ABOVE, 1 << R, 0, 0, 0
        codes[i] = code
        shares[i] = f
    if at & 7 and peek(words, at) & ((np.uint64(1) << np.uint64(8 - (at & 7))) - np.uint64(1)):
        return _PADDING, 0, 0, 0, 0
    return _FINE, 0, 0, m, (at + 7) >> 3


@kernel
def _own(shares: Array, owner: Array) -> None:
    at = 0
    for i in range(shares.size):
        owner[at : at + shares[i]] = i
        at += shares[i]


@kernel
def _decode(
    words: Array, there: Number, n: Number, width: Number, codes: Array, shares: Array,
    owner: Array, R: Number, x: Array, out: Array,
) -> Number:  # fmt: skip
    """Decodes n codes into packed `out`; returns status and the words used."""
    M = np.int64(1) << R
    below = np.zeros(shares.size, np.int64)
    for i in range(1, shares.size):
        below[i] = below[i - 1] + shares[i - 1]
    scratch = np.empty(_BLOCK, np.uint16)
    turn = x.size - 1
    at = np.int64(0)
    for first in range(0, n, _BLOCK):
        block = scratch[: min(_BLOCK, n - first)]
        for j in range(block.size):
            state = x[j & turn]
            slot = state & (M - 1)
            i = owner[slot]
            block[j] = codes[i]
            state = shares[i] * (state >> R) + slot - below[i]
            low = np.int64(state < _STATE)
            state = state << (low << 4) | np.int64(words[at]) * low
            at += low
            x[j & turn] = state
        if at > there:
            return _ENDS_EARLY, 0
        begin = first // 8 * width
        put_block(block, width, out[begin : begin + block_bytes(block.size, width)])
    for lane in range(x.size):
        if x[lane] != _STATE:
            return _UNFINISHED, 0
    return _FINE, at


class _Book:
    """A table as segments are read by it."""

    def __init__(self, codes: Array, shares: Array, R: int, lanes: int) -> None:
        self.codes, self.shares, self.R, self.lanes = codes, shares, R, lanes
        self.owner = np.empty(1 << R, np.uint8)
        _own(shares, self.owner)

    def read(self, data: Array, n: int, width: int, out: Array) -> tuple[int, int]:
        """Decodes a segment of n codes; returns status and the bytes used."""
        head = self.lanes * _STATE_BYTES
        if head > data.size:
            return _ENDS_EARLY, 0
        x = np.zeros(self.lanes, np.int64)
        x.view(np.uint8).reshape(-1, 8)[:, :_STATE_BYTES] = data[:head].reshape(self.lanes, -1)
        if x.min() < _STATE or x.max() >= _STATE << 16:
            return _STATE_OUTSIDE, 0
        # A code takes at most one word, and a block may ask for as many beyond the end.
        there = min((data.size - head) // 2, n)
        words = np.zeros(there + _BLOCK + 1, np.uint16)
        words.view(np.uint8)[: 2 * there] = data[head : head + 2 * there]
        table = self.codes, self.shares, self.owner, self.R
        status, used = _decode(words, there, n, width, *table, x, out)
        return status, head + 2 * used


def _read_entropy(
    data: Array, n: int, width: int, top: int
) -> tuple[tuple[int, int, int], torch.Tensor, int]:
    R, lanes = reference.entropy_shape(n)
    nothing = host.empty(0, torch.uint8)
    codes, shares = np.empty(256, np.uint16), np.empty(256, np.int64)
    head = torch.from_numpy(data[:_MOST_TABLE])
    status, a, b, m, size = _read_table(padded_words(head), len(head), top, R, codes, shares)
    if status != _FINE:
        return (status, a, b), nothing, 0
    segments = max(1, -(-n // _SEGMENT))
    begin = size + 4 * (segments - 1)
    sizes = data[size:begin].copy()
    if begin > data.size:
        return (_ENDS_EARLY, 0, 0), nothing, 0
    edges = begin + np.concatenate([[0], np.cumsum(sizes.view("<u4"), dtype=np.int64)])
    if edges[-1] > data.size:
        return (_ENDS_EARLY, 0, 0), nothing, 0
    out = host.empty(checks.packed_bytes(n, width), torch.uint8)
    book = _Book(codes[:m], shares[:m], R, lanes)
    packed, ended = out.numpy(), [(_FINE, 0)] * segments

    def read(first: int, last: int) -> None:
        for s in range(first, last):
            own = data[edges[s] : edges[s + 1] if s + 1 < segments else data.size]
            place = packed[s * _SEGMENT // 8 * width : (s + 1) * _SEGMENT // 8 * width]
            ended[s] = book.read(own, min(_SEGMENT, n - s * _SEGMENT), width, place)

    each_share(max(n, 1), segments, read)
    for s, (status, used) in enumerate(ended):
        if status != _FINE:
            return (status, 0, 0), nothing, 0
        if s + 1 < segments and used != edges[s + 1] - edges[s]:
            return (_WORDS_LEFT, s, 0), nothing, 0
    return (_FINE, 0, 0), out, int(edges[-1]) + ended[-1][1]


def decode_codes(
    data: torch.Tensor, n: int, width: int, top: int
) -> tuple[torch.Tensor | None, int, str]:
    """Agrees with `reference.decode_codes`, problems included."""
    checks.check_typed(data, torch.uint8)
    size, form = checks.packed_bytes(n, width), int(data[0]) if data.numel() else None
    if form is None or (form == reference.AS_PACKED and data.numel() <= size):
        return None, 0, reference.explain(_ENDS_EARLY, 0, 0)
    if form == reference.AS_ENTROPY:
        why, packed, used = _read_entropy(array(data)[1:], n, width, top)
    elif form == reference.AS_PACKED:
        packed, used, why = data[1 : 1 + size], size, (_FINE, 0, 0)
        largest = largest_code(packed, n, width)
        if largest < 0:
            why = reference.CODE_PADDING, 0, 0
        elif largest > top:
            why = reference.CODE_ABOVE, largest, top
    else:
        why, packed, used = (reference.UNKNOWN_FORM, form, 0), data, 0
    if why[0] != _FINE:
        return None, 0, reference.explain(*map(int, why))
    return packed, 1 + int(used), ""
