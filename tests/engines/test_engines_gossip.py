"""Gossip over a real process group: a late neighbour is waited for, a dead one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engines_program as program
import pytest
import torch
from test_engines_gang import read, torchrun

import thinwire as tw

pytestmark = pytest.mark.network
N, DEAD = 4, 3


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("gossip")
    torchrun("gossip", str(folder), n=N, timeout=120)
    return read(folder, range(N))


def test_a_late_neighbour_is_waited_for_and_changes_no_bit(ranks) -> None:
    nets = [program.net() for _ in range(N)]
    shells = [
        program.shell(net, tw.Seat(rank, N), **tw.qprsgd_gossip(H=1))
        for rank, net in enumerate(nets)
    ]
    cluster = tw.LockStep(shells)
    for step in range(4):
        for rank, net in enumerate(nets):
            program.backward(net, rank, step)
        cluster.step()
    for rank, result in enumerate(ranks):
        there, here = result["anchor"], shells[rank].anchor
        assert torch.equal(there.view(torch.int32), here.view(torch.int32)), rank
        assert result["lost"] == 0
    neighbours = [r for r in range(N) if r in (1, 3)]
    assert all(ranks[r]["waited"] > 0.8 * program.LATE for r in neighbours)


def test_a_dead_neighbour_is_lost_by_name_and_nobody_hangs(ranks) -> None:
    for rank in (0, 2):
        assert ranks[rank]["error"] == "PeerLost", ranks[rank]
        assert ranks[rank]["of"] in (DEAD, 1)
    assert DEAD in (ranks[0]["of"], ranks[2]["of"])
    # Rank 1 is no neighbour of the dead one: it hears of it by what its own neighbours then do.
    assert ranks[1]["error"] == "PeerLost"
    assert ranks[1]["of"] in (0, 2)
    for rank in (0, 1, 2):
        assert ranks[rank]["seconds"] < 10
        assert 4 <= ranks[rank]["done"] <= 5


def test_the_survivors_keep_a_whole_state(ranks) -> None:
    assert all(bool(result["anchor"].isfinite().all()) for result in ranks)
