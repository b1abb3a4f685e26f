"""Large memory is used again once nothing refers to it, and not before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from thinwire import host, memory

N = 1 << 21


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    memory._shelf.clear()
    yield
    memory._shelf.clear()


def test_the_next_vector_of_the_size_lies_where_the_last_one_lay() -> None:
    vector = host.empty(N)
    place = vector.data_ptr()
    assert place % memory.LINE == 0
    del vector
    assert host.empty(N - N // 20).data_ptr() == place
    assert host.empty(N // 2).data_ptr() != place, "too large for it"


def test_whatever_refers_to_it_keeps_it() -> None:
    vector = host.empty(N)
    place = vector.data_ptr()
    for name, refer in {
        "a view": lambda v: v[5:6],
        "NumPy": lambda v: v.numpy(),
        "bytes": host.bytes_of,
        "another dtype": lambda v: v.view(torch.uint8),
    }.items():
        kept = refer(vector)
        del vector
        assert host.empty(N).data_ptr() != place, name
        memory._shelf.clear()
        del kept
        vector = host.empty(N)
        assert vector.data_ptr() == place, name


def _kept() -> int:
    return sum(map(len, memory._shelf.values()))


@pytest.mark.parametrize(("n", "least"), [(N, memory.KEPT // 2), (1 << 25, memory.SHELF << 27)])
def test_what_is_kept_is_bounded(n: int, least: int) -> None:
    many = [host.empty(n) for _ in range(24 if n == N else memory.SHELF + 2)]
    assert not _kept()
    del many
    assert least <= sum(size * len(pieces) for size, pieces in memory._shelf.items())
    assert all(len(p) <= max(memory.SHELF, memory.KEPT // n) for n, p in memory._shelf.items())
    for _ in range(memory.RETURNS + 1):
        host.empty(n // 2)
    assert _kept() == 1, "what nobody took in so long went back to the system"


def test_threads_never_share_memory() -> None:
    def work(thread: int) -> bool:
        for _ in range(60):
            mine = host.empty(1 << 20, torch.uint8).fill_(thread)
            other = host.empty(1 << 20, torch.uint8).fill_(thread)
            if not bool((mine == thread).all() and (other == thread).all()):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 5)))


def test_vectors_that_live_until_the_end_end_quietly() -> None:
    code = """
from thinwire import host
class Ring: pass
ring = Ring()
ring.ring, ring.vector = ring, host.zeros(1 << 21)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stderr
