"""Entries that reach a limit, collected in Numba: what the selections of entries share.

Groups are cut into pieces, one a thread at most, and each piece has room of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from thinwire.kernels.numba_support import (
    LINE,
    Array,
    Number,
    copy,
    inlined,
    kernel,
    reaching,
    trailing_zeros,
)
from thinwire.kernels.parallel import each_stretch, stretches

CHECKED = 1024
"""Entries that are looked at before the next question whether there is room."""


@inlined
def noted(
    hits: Number, block: Array, at: Number, first: Number, to: Number, index: Array, raw: Array
) -> Number:
    """Collects the entries at + j of the block whose bit j is set; returns how many there are now.

    Places are unsigned, since negative ones would each be tested for.
    """
    one = np.uint64(1)
    # The first two without a branch that would be guessed wrong; more are rare.
    for _ in range(2):
        j = at + (trailing_zeros(hits) & np.uint64(LINE - 1))
        index[to] = np.uint32(first + j)
        raw[to] = block[j]
        to += np.uint64(hits != 0)
        hits &= hits - one
    while hits:
        j = at + trailing_zeros(hits)
        index[to] = np.uint32(first + j)
        raw[to] = block[j]
        to += one
        hits &= hits - one
    return to


@kernel
def candidates(
    block: Array, first: Number, mask: Number, limit: Number, m: Number, index: Array, raw: Array
) -> Number:
    """Collects the entries that reach the limit, m being there; returns how many are there now.

    There must be room for all of the block, and for one more.
    """
    to = np.uint64(m)
    whole = block.size // LINE * LINE
    for at in range(0, whole, LINE):
        hits = reaching(block.ctypes.data + 4 * at, mask, limit)
        to = noted(hits, block, np.uint64(at), np.uint64(first), to, index, raw)
    for j in range(whole, block.size):
        if np.uint32(block[j] & mask) >= limit:
            index[to] = np.uint32(first + j)
            raw[to] = block[j]
            to += np.uint64(1)
    return np.int64(to)


@kernel
def gathered(
    g: Number, p: Number, owner: Array, offsets: Array, index: Array, raw: Array, found: Array
) -> Number:
    """Moves candidates of a group's later pieces, from p on, up behind the earlier ones'.

    Returns where they begin, how many they are, whether no piece ran out of room, and the next
    group's first piece.
    """
    begin: Number = offsets[p] if p < owner.size else 0
    m: Number = 0
    complete: Number = True
    while p < owner.size and owner[p] == g:
        complete = complete and found[p] >= 0
        if complete:
            to = slice(begin + m, begin + m + found[p])
            if begin + m < offsets[p]:
                copy(index[to], index[offsets[p] :])
                copy(raw[to], raw[offsets[p] :])
            m += found[p]
        p += 1
    return begin, m, complete, p


def each_group(cuts: Array, work: Callable[[int, int], None]) -> None:
    """Calls work(first, last) for shares of the groups, side by side where there is much in them.

    Args:
        cuts: (G + 1,) int64 group boundaries.
        work: does the groups first to last - 1.
    """
    groups = cuts.size - 1
    if groups == 1:
        work(0, 1)  # Nothing to share: no thread is woken.
        return

    def begun(low: int) -> int:
        return int(np.searchsorted(cuts[:-1], low)) if low else 0

    n = int(cuts[-1])
    each_stretch(n, lambda low, high: work(begun(low), begun(high) if high < n else groups))


_KEPT = threading.local()


def room_of(size: int, n: int) -> Array:
    """Returns (2, size) uint32 of undefined content, which the thread's next call writes over.

    It is kept from call to call where it is a small part of the n entries: memory that the system
    hands out anew in every round is paid for with a fault a page, an eighth of the selection.
    """
    kept: Array = getattr(_KEPT, "room", np.empty((2, 0), np.uint32))
    if kept.shape[1] >= size:
        return kept
    room = np.empty((2, size), np.uint32)
    if size <= max(n // 16, 1 << 16):
        _KEPT.room = room
    return room


def pieces_of(
    cuts: Array, kept: Array, most: Array
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Cuts groups where stretches end, with room for the candidates of each piece.

    Returns where pieces start, their groups, where the room of each begins, the room, of places
    and of bits, and an entry a piece for how many were found.
    """
    n = int(cuts[-1])
    edges = np.array([low for low, _ in stretches(n)], np.int64)
    pieces = np.unique(np.concatenate([cuts, edges]))
    owner = np.searchsorted(cuts, pieces[:-1], side="right") - 1
    room = np.where(kept > 0, np.minimum(most, np.diff(cuts)) + CHECKED + LINE, 0)[owner]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(room)])
    index, raw = room_of(int(offsets[-1]), n)
    return pieces, owner, offsets, index, raw, np.empty(owner.size, np.int64)
