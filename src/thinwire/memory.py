"""Large memory that is used again: what one round is done with serves the next.

Fresh memory is paid for when it is first touched. 25 M float32 take 37 ms in small pages and 10 in
huge ones, but up to 450 where the system first has to put huge pages together; memory that was
touched before takes nothing. The system hands out memory of such sizes anew each time.
"""

from __future__ import annotations

import ctypes
import gc
from collections import deque
from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np

Memory = np.ndarray[Any, np.dtype[np.uint8]]

LINE = 64
"""Bytes of a cache line, where large memory begins."""
SHELF = 4
"""Pieces of one size that are kept."""
KEPT = 1 << 27
"""Bytes: of a size of which so many hold more pieces, as many as that."""
RETURNS = 1024
"""A piece that nobody took while so many came back goes back to the system."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""What glibc's mallopt calls the free memory above which it gives some back, and the size from
which a piece is one of the system's own."""
_returns = count()
_shelf: dict[int, deque[tuple[int, Memory]]] = {}
"""By size, the last to come back last, each with its number among all that came back."""


def large(size: int) -> Memory:
    """Returns (size,) uint8 of undefined content, kept for the next when nothing refers to it.

    Example:
        >>> large(1 << 22).ctypes.data % LINE
        0
    """
    return np.asarray(_Loan(size))


class _Loan:
    def __init__(self, size: int) -> None:
        self._memory = _taken(size + LINE)
        at = -self._memory.ctypes.data % LINE
        self.__array_interface__ = self._memory[at : at + size].__array_interface__

    def __del__(self, shelf: dict[int, deque[tuple[int, Memory]]] = _shelf) -> None:
        if _returns is None:
            return  # At the interpreter's end modules are emptied before what they made.
        # Each step is one of the interpreter's own: other threads may give and take meanwhile.
        now, size = next(_returns), self._memory.size
        shelf.setdefault(size, deque()).append((now, self._memory))
        with suppress(IndexError):
            if len(shelf[size]) > max(SHELF, KEPT // size):
                shelf[size].popleft()
            for pieces in tuple(shelf.values()):
                while pieces and now - pieces[0][0] > RETURNS:
                    pieces.popleft()


def _rounded(size: int) -> int:
    """Returns the least size that pieces have and that holds so many bytes: 8 to an octave."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step


def _taken(size: int) -> Memory:
    """Returns memory for so many bytes: some that lies there, or fresh."""
    rounded = _rounded(size)
    for there in (rounded, _rounded(rounded + 1)):
        with suppress(KeyError, IndexError):
            return _shelf[there].pop()[1]
    # NumPy asks for huge pages, which torch does not: 512 times fewer faults on first touch.
    return np.empty(rounded, np.uint8)


def keep_freed() -> bool:
    """Has the C library keep memory that is freed, for this process; returns whether it does.

    A server frees and asks again for pieces of some 100 kB many times a second. What goes back to
    the system meanwhile comes back a page fault at a time, which costs more than what is done with
    it. Only glibc can be told.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 1 << 28) and mallopt(_MMAP_THRESHOLD, 1 << 25))


def set_aside() -> None:
    """Has the garbage collector pass over all that is there now, until `gc.unfreeze()`.

    It looks through everything only when what is new comes to a quarter of what is old. Beside all
    that a server has imported, thousands of ended calls wait for that, with the memory they hold.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # What this finds, next to nothing, is what counts as old from now on.
