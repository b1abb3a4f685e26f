"""Workers of one life find each other in a store that is full of dead ones' keys."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

import thinwire as tw
from thinwire.transport.gang import meet

SHORT = timedelta(seconds=20)


def life(path: Path, N: int, number: int) -> list[str]:
    def come(rank: int) -> str:
        store = dist.FileStore(str(path), N)
        return meet(store, rank, N, f"life-{number}-rank-{rank}", SHORT)

    with ThreadPoolExecutor(N) as pool:
        # Rank 0 comes last, so that the others read whatever was there before.
        return list(pool.map(come, reversed(range(N))))


def test_each_life_agrees_on_a_name_of_its_own(tmp_path: Path) -> None:
    for number in range(3):
        assert life(tmp_path / "store", 3, number) == [f"life-{number}-rank-0"] * 3


def test_an_invitation_whose_rank_0_is_gone_is_not_taken(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 2)
    store.set("thinwire/invitation", "gone")
    store.set("thinwire/gone/answer/1", "dead")
    store.set("thinwire/gone/welcome/dead", "")
    assert life(tmp_path / "store", 2, 7) == ["life-7-rank-0"] * 2


def test_who_does_not_come_is_named(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 2)
    with pytest.raises(tw.TransportError, match="waited too long for rank 1"):
        meet(store, 0, 2, "alone", timedelta(seconds=0.3))
