"""Chunk-parallel work: the flat positions below n, in stretches, on as many threads as torch has.

Kernels hold no interpreter lock, so a thread pool is all it takes; how the positions are cut
changes no bit of any result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise

import torch

from thinwire.kernels.reference import CHUNK

ALONE = 1 << 20
"""Fewer positions than these are done by one thread: a second one would start too late."""


def stretches(n: int) -> list[tuple[int, int]]:
    """Returns the stretches that n positions are cut into: one a thread, at multiples of a chunk.

    Example:
        >>> stretches(7)
        [(0, 7)]
    """
    threads = torch.get_num_threads() if n >= ALONE else 1
    edges = [n * t // threads // CHUNK * CHUNK for t in range(threads)] + [n]
    return [(low, high) for low, high in pairwise(edges) if high > low]


def each_stretch(n: int, work: Callable[[int, int], None]) -> None:
    """Calls work(low, high) for every stretch of n positions, side by side where there are several.

    Args:
        n: positions.
        work: does the positions low to high - 1.
    """
    cut = stretches(n)
    if len(cut) < 2:
        for stretch in cut:
            work(*stretch)
        return
    # This thread takes a stretch, too: two that are woken by one that then sleeps are often put on
    # one core, its own, and stay there for as long as a kernel takes.
    others = [_pool(len(cut) - 1).submit(work, *stretch) for stretch in cut[1:]]
    try:
        work(*cut[0])
    finally:
        wait(others)
    # Every result is asked for, so that what a thread raises is raised here.
    for other in others:
        other.result()


def each_share(n: int, pieces: int, work: Callable[[int, int], None]) -> None:
    """Calls work(first, last) for shares of the pieces that n positions consist of, side by side.

    Args:
        n: positions.
        pieces: how many pieces, each work of its own.
        work: does the pieces first to last - 1.
    """

    def nearest(position: int) -> int:
        return (position * pieces + n // 2) // n

    each_stretch(n, lambda low, high: work(nearest(low), nearest(high)))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="thinwire-kernels")
