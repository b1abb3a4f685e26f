"""A run taken up by another N keeps the mean of what is owed, says so, or is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from shell_cases import close, same_bits
from snapshot_cases import Kept, in_memory

import thinwire as tw
from thinwire.snapshots.sets import File

UNBIASED = tw.QSGD(bits=8, norm="max", scale="none")
SHARED = {
    "server": {"compressor": tw.TopK(k=2), "exchange": tw.Server()},
    "server's own residual": {
        "compressor": tw.TopK(k=2),
        "exchange": tw.Server(downlink=tw.Sign()),
        "outer": tw.Nesterov(),
    },
    "gather": {"compressor": tw.TopK(k=2) >> tw.Sign(), "exchange": tw.Gather()},
    "ring": {"compressor": tw.Sign(), "exchange": tw.Ring("ring", tw.Feedback())},
    "two-phase": {"compressor": tw.Sign(), "exchange": tw.Ring("two-phase", tw.Feedback())},
    "marsit": {"compressor": tw.Sign(), "exchange": tw.Marsit(K=100)},
    "nothing owed": {"exchange": tw.AllReduce()},
}
OWN = {
    "gossip": {"compressor": UNBIASED, "exchange": tw.Gossip(correction=0.5)},
    "choco": {"compressor": tw.TopK(k=9), "exchange": tw.Choco()},
    "deep squeeze": {"compressor": tw.QSGD(bits=8, norm="max"), "exchange": tw.DeepSqueeze()},
    "d-psgd": {"exchange": tw.DPSGD(tw.RandomMatching())},
    "edges": {"compressor": tw.Sign(), "exchange": tw.EdgeGossip()},
}
COUNTS = [(4, 2), (2, 4), (3, 5), (3, 1)]


def moved(old: int, new: int, **arguments) -> tuple[Kept, Kept]:
    folder = in_memory()
    before = Kept(folder, old, H=2, **arguments).steps(6)
    before.close()
    after = Kept(folder, new, start=1, H=2, **arguments)
    assert after.resumed == [tw.Resumed(6, 3, old)] * new
    return before, after


def mean_of(run: Kept, name: str) -> torch.Tensor:
    return torch.stack([s._state.mem[name].double() for s in run.shells]).mean(0)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("name", SHARED)
def test_where_replicas_agree_the_mean_residual_is_kept(name, counts) -> None:
    before, after = moved(*counts, **SHARED[name])
    if "residual" in before.shells[0]._state.mem:
        close(mean_of(after, "residual"), mean_of(before, "residual"))
    if "down" in before.shells[0]._state.mem:
        same_bits(after.shells[0]._state.mem["down"], before.shells[0]._state.mem["down"])
    for rank, shell in enumerate(after.shells):
        old = before.shells[rank % counts[0]]
        same_bits(shell.anchor, before.shells[0].anchor)
        same_bits(shell._state.outer, before.shells[0]._state.outer)
        same_bits(shell.inner.state_dict(), old.inner.state_dict())
    after.steps(4)
    after.close()


@pytest.mark.parametrize("counts", [(4, 2), (3, 5)], ids=str)
@pytest.mark.parametrize("name", OWN)
def test_where_models_differ_all_start_from_their_mean_and_owe_nothing(name, counts) -> None:
    before, after = moved(*counts, **OWN[name])
    mean = torch.stack([s.anchor.double() for s in before.shells]).mean(0)
    for shell, net in zip(after.shells, after.nets, strict=True):
        close(shell.anchor, mean)
        same_bits(shell.anchor, after.shells[0].anchor)
        same_bits(torch.cat([p.detach().flatten() for p in net.parameters()]), shell.anchor)
        mem = shell._state.mem
        assert all(not v.any() for k, v in mem.items() if k != "gamma"), mem
        if "gamma" in before.shells[0]._state.mem:
            same_bits(mem["gamma"], before.shells[0]._state.mem["gamma"])
    after.steps(4)
    after.close()


def test_the_log_says_what_became_of_what_was_owed(caplog) -> None:
    with caplog.at_level(logging.WARNING, "thinwire"):
        moved(4, 2, **SHARED["server"])[1].close()
    assert "a snapshot of 4 workers goes on with 2. Residuals are scaled by 2/4" in caplog.text
    assert len(caplog.records) == 1  # rank 0's


def test_who_was_not_there_draws_what_its_program_draws() -> None:
    before, after = moved(2, 3, **SHARED["server"])
    for rank in range(2):
        same_bits(after.draws[rank].get_state(), before.draws[rank].get_state())
    assert not torch.equal(after.draws[2].get_state(), before.draws[0].get_state())
    after.close()


def test_each_workers_own_clock_is_refused_with_the_way_out() -> None:
    folder = in_memory()
    arguments = tw.qsparse_async(H=tw.RandomGaps(3))
    Kept(folder, 2, **arguments).steps(3).close()
    with pytest.raises(tw.ConfigError, match=r"of 2 workers.*keeps each worker's clock.*Resume wi"):
        Kept(folder, 3, **arguments)
    Kept(folder, 2, **arguments).close()


def test_the_middle_of_a_round_is_refused_with_the_way_out() -> None:
    folder = in_memory()
    arguments = {"H": 2, **SHARED["server"]}
    run = Kept(folder, 2, **arguments).steps(3)
    run.take()
    run.close()
    with pytest.raises(tw.ConfigError, match="in the middle of a round, so only 2 workers"):
        Kept(folder, 3, **arguments)
    again = Kept(folder, 2, **arguments)
    assert again.done == 3
    again.close()


def test_a_set_of_another_n_needs_all_its_files(tmp_path: Path, caplog) -> None:
    Kept(tmp_path, 3, **SHARED["server"]).steps(3).close()
    (tmp_path / File(3, 3, 2).name).unlink()
    again = Kept(tmp_path, 2, **SHARED["server"])
    assert again.resumed == [tw.Resumed(2, 2, 3)] * 2
    assert "not on every rank: steps [3]" in caplog.text
    # The old sets go when as many new ones are complete.
    for _ in range(5):
        again.steps(1)
        again.settle()
    again.close()
    assert {File.of(f.name).N for f in tmp_path.iterdir() if f.name != "lock"} == {2}
