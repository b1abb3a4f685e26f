"""Packed codes in Numba: planes of 8, 4, 2 and 1 bits, so that every inner loop vectorises.

A block's codes pass through a uint16 scratch that stays in the first cache. Shifts are by
constants, since Numba widens them to 64 bits and only constants are narrowed again.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire import host
from thinwire.kernels import checks, reference
from thinwire.kernels.numba_support import Array, Number, array, kernel

_BLOCK = reference.BLOCK


@kernel
def _put_plane(codes: Array, p: Number, out: Array) -> None:
    """Packs the low p bits of each code; out has ceil(codes.size p / 8) bytes."""
    m = codes.size
    if p == 8:
        for j in range(m):
            out[j] = np.uint8(codes[j])
        return
    S = out.size
    if p == 4:
        whole = m - S
        low = codes[:S]
        high = codes[S:m]
        for j in range(whole):
            out[j] = np.uint8((low[j] & 15) | high[j] << 4)
        for j in range(whole, S):
            out[j] = np.uint8(low[j] & 15)
        return
    rows = 8 // p
    mask = np.uint8((1 << p) - 1)
    for j in range(S):
        out[j] = np.uint8(codes[j]) & mask
    for row in range(1, rows):
        piece = codes[min(m, row * S) : min(m, (row + 1) * S)]
        times = np.uint8(1 << (p * row))
        for j in range(piece.size):
            out[j] |= np.uint8(np.uint8(np.uint8(piece[j]) & mask) * times)


@kernel
def put_block(codes: Array, width: Number, out: Array) -> None:
    """Packs one block of at most 4096 uint16 codes; their high bits are lost on the way."""
    at = 0
    left = width
    for p in (8, 8, 4, 2, 1):
        if left < p:
            continue
        size = (codes.size * p + 7) // 8
        _put_plane(codes, p, out[at : at + size])
        at += size
        left -= p
        if left == 0:
            return
        if p == 8:
            for j in range(codes.size):
                codes[j] >>= 8
        elif p == 4:
            for j in range(codes.size):
                codes[j] >>= 4
        else:
            for j in range(codes.size):
                codes[j] >>= 2


@kernel
def _or_plane(data: Array, p: Number, place: Number, codes: Array) -> None:
    m = codes.size
    times = np.uint16(1 << place)
    if p == 8:
        for j in range(m):
            codes[j] |= np.uint16(np.uint16(data[j]) * times)
        return
    S = data.size
    if p == 4:
        low = codes[:S]
        high = codes[S:m]
        for j in range(S):
            low[j] |= np.uint16(np.uint16(data[j] & 15) * times)
        for j in range(high.size):
            high[j] |= np.uint16(np.uint16(data[j] >> 4) * times)
        return
    rows = 8 // p
    mask = np.uint8((1 << p) - 1)
    for row in range(rows):
        piece = codes[min(m, row * S) : min(m, (row + 1) * S)]
        # A multiplication moves the wanted bits to the top of 16, where one shift fetches them.
        lift = np.uint16(1 << (8 - p * row))
        for j in range(piece.size):
            code = np.uint8(np.uint16(np.uint16(data[j]) * lift) >> 8) & mask
            piece[j] |= np.uint16(np.uint16(code) * times)


@kernel
def get_block(data: Array, width: Number, codes: Array) -> None:
    """Reads one block of at most 4096 codes into uint16."""
    if width == 8:
        for j in range(codes.size):
            codes[j] = data[j]
        return
    if width == 4:
        S = data.size
        low = codes[:S]
        high = codes[S : codes.size]
        for j in range(S):
            low[j] = data[j] & 15
        for j in range(high.size):
            high[j] = data[j] >> 4
        return
    codes[:] = 0
    at = 0
    place = 0
    left = width
    for p in (8, 8, 4, 2, 1):
        if left < p:
            continue
        size = (codes.size * p + 7) // 8
        _or_plane(data[at : at + size], p, place, codes)
        at += size
        place += p
        left -= p


@kernel
def block_bytes(m: Number, width: Number) -> Number:
    """Returns the bytes of a block of m codes."""
    size = 0
    left = width
    for p in (8, 8, 4, 2, 1):
        if left >= p:
            size += (m * p + 7) // 8
            left -= p
    return size


@kernel
def _pack(codes: Array, width: Number, out: Array) -> None:
    scratch = np.empty(_BLOCK, np.uint16)
    for first in range(0, codes.size, _BLOCK):
        piece = codes[first : first + _BLOCK]
        block = scratch[: piece.size]
        for j in range(piece.size):
            block[j] = np.uint16(piece[j])
        put_block(block, width, out[first // 8 * width :])


def pack(codes: torch.Tensor, width: int) -> torch.Tensor:
    """Agrees bit for bit with `reference.pack`."""
    out = host.empty(checks.packed_bytes(codes.numel(), width), torch.uint8)
    _pack(array(codes), width, out.numpy())
    return out


@kernel
def _unpack(data: Array, width: Number, out: Array) -> None:
    scratch = np.empty(_BLOCK, np.uint16)
    for first in range(0, out.size, _BLOCK):
        piece = out[first : first + _BLOCK]
        block = scratch[: piece.size]
        at = first // 8 * width
        get_block(data[at : at + block_bytes(block.size, width)], width, block)
        for j in range(piece.size):
            piece[j] = block[j]


def unpack(data: torch.Tensor, n: int, width: int) -> torch.Tensor:
    """Agrees bit for bit with `reference.unpack`."""
    checks.check_packed(data, n, width)
    out = host.empty(n, torch.int32)
    _unpack(array(data), width, out.numpy())
    return out


@kernel
def _largest(data: Array, n: Number, width: Number) -> Number:
    scratch = np.empty(_BLOCK, np.uint16)
    largest = np.uint16(0)
    for first in range(0, n, _BLOCK):
        block = scratch[: min(_BLOCK, n - first)]
        at = first // 8 * width
        get_block(data[at : at + block_bytes(block.size, width)], width, block)
        for j in range(block.size):
            largest = max(largest, block[j])
    return np.int64(largest)


@kernel
def padding_set(data: Array, n: Number, width: Number) -> Number:
    """Tells whether a bit after n codes is set."""
    m = n % _BLOCK
    at = n // _BLOCK * _BLOCK // 8 * width
    left = width
    for p in (8, 8, 4, 2, 1):
        if left < p:
            continue
        size = (m * p + 7) // 8
        plane = data[at : at + size]
        for spare in range(m, size * (8 // p)):
            if plane[spare % size] >> (spare // size * p) & ((1 << p) - 1):
                return True
        at += size
        left -= p
    return False


@kernel
def largest_packed(data: Array, n: Number, width: Number) -> Number:
    """Returns the largest of n codes, -1 where a padding bit is set."""
    return -1 if padding_set(data, n, width) else _largest(data, n, width)


def largest_code(data: torch.Tensor, n: int, width: int) -> int:
    """Agrees with `reference.largest_code`."""
    checks.check_packed(data, n, width)
    return int(largest_packed(array(data), n, width))
