"""Processes that talk over Gloo: they agree or all refuse, and no trouble becomes a hang."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import engines_program as program
import pytest
import torch

import thinwire as tw

pytestmark = pytest.mark.network
N = 3
PROMPT = 6.0
"""Seconds a refusal may take on a busy machine; a hang would last the group's patience."""


def torchrun(*arguments: str, n: int, timeout: float) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(n), program.__file__, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def read(folder: Path, ranks: range) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in ranks]


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every case of the program did, by rank: one start for all of them."""
    folder = tmp_path_factory.mktemp("gang")
    torchrun(";".join(program.CASES), str(folder), n=N, timeout=240)
    return read(folder, range(N))


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any] | None]:
    folder = tmp_path_factory.mktemp("deaths")
    began = time.monotonic()
    torchrun("die", str(folder), n=6, timeout=120)
    assert time.monotonic() - began < 100
    return [
        None if rank % 3 == 2 else torch.load(folder / f"rank{rank}.pt", weights_only=True)
        for rank in range(6)
    ]


def case(gang: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [results[name] for results in gang]


def test_a_ring_of_many_pieces_comes_round(gang: list[dict[str, Any]]) -> None:
    ranks = case(gang, "many pieces")
    assert [r.get("error") for r in ranks] == [None] * N, ranks
    assert torch.equal(same_on_all(ranks, "anchor"), torch.full((1200,), 2.0))


def test_a_nan_in_the_last_piece_of_a_long_ring_is_told_and_the_next_round_is_right(gang) -> None:
    ranks = fine(case(gang, "long coded"))
    assert [(r["found"], r["round"]) for r in ranks] == [([(1, "held")], 2)] * N
    anchor, moved = same_on_all(ranks, "anchor"), torch.zeros(program.LONG)
    for round in (0, 2):
        moved += torch.stack([program.drawn(rank, round) for rank in range(N)]).mean(0)
    assert (anchor - moved)[:-1].abs().max() < 0.2


def same_on_all(ranks: list[dict[str, Any]], name: str) -> torch.Tensor:
    """The tensor all ranks hold, once its bits are seen to be equal."""
    first = ranks[0][name]
    for rank, result in enumerate(ranks):
        assert torch.equal(result[name].view(torch.int32), first.view(torch.int32)), rank
    return first


def refused_on_all(ranks: list[dict[str, Any]], *says: str) -> None:
    """All ranks raised one and the same ConfigError, promptly, and it says all of `says`."""
    assert [r["error"] for r in ranks] == ["ConfigError"] * len(ranks), ranks
    assert len({r["message"] for r in ranks}) == 1, ranks
    for words in says:
        assert words in ranks[0]["message"]
    assert max(r["seconds"] for r in ranks) < PROMPT, ranks


def in_one_process(model, N: int, steps: int = program.STEPS, **arguments: Any) -> torch.Tensor:
    """The anchor of the same run in lock-step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        nets = [model() for _ in range(N)]
        shells = [program.shell(m, tw.Seat(r, N), **arguments) for r, m in enumerate(nets)]
        cluster = tw.LockStep(shells)
        for step in range(steps):
            for rank, m in enumerate(nets):
                program.backward(m, rank, step)
            cluster.step()
        return shells[0].anchor
    finally:
        torch.set_num_threads(threads)


def fine(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert [r["error"] for r in ranks] == [None] * len(ranks), ranks
    return ranks


REFUSALS = {
    "other H": ["rank 1 differs from rank 0 in H: 8 against 4"],
    "other compressor": ["rank 1", "compressor", "density=0.2", "against", "density=0.1"],
    "other exchange": ["rank 1 differs from rank 0 in exchange: Gather(", ") against Server("],
    "other outer": ["in outer: Nesterov() against Average()"],
    "other seed": ["in seed: 6 against 5"],
    "other buffers": ["in buffers: 'average' against 'local'"],
    "other function H": ["rank 1 differs from rank 0 in H", "5, 5", "against 4"],
    "other shape": ["rank 2", "tensor 0: 0.weight (4, 6)", "against 0.weight (5, 6)"],
    "fewer tensors": ["rank 1", "tensor 3: none against 2.bias (3,)"],
    "other version": ["version of thinwire: 0.0.of-rank-1 against", "install one version"],
    "H=0 on rank 0": ["rank 0: H=0: give a whole number"],
    "H=0 on rank 1": ["rank 1: H=0: give a whole number"],
    "no contraction on rank 2": ["rank 2:", "TopK(k=1) is biased", "Feedback()"],
    "root beyond N on rank 1": ["rank 1: Server(root=9): the group has ranks 0 to 2"],
    "other inner on rank 1": ["rank 1: the inner optimizer does not step 0.weight"],
    "no setting on rank 1": ["rank 1", "compressor", "0.01"],
    "late zero H on rank 1": ["rank 1", "H(1) returned 0"],
}


@pytest.mark.parametrize("name", REFUSALS)
def test_all_ranks_refuse_alike_what_one_of_them_has_wrong(gang, name: str) -> None:
    refused_on_all(case(gang, name), *REFUSALS[name])


def test_refused_on_all_fails_where_one_rank_did_not_refuse(gang) -> None:
    ranks = [dict(r) for r in case(gang, "other H")]
    refused_on_all(ranks, "8 against 4")
    for change in ({"error": None}, {"message": "else"}, {"seconds": 60.0}):
        with pytest.raises(AssertionError):
            refused_on_all([*ranks[:2], {**ranks[2], **change}])
    with pytest.raises(AssertionError):
        refused_on_all(ranks, "9 against 4")


def test_fine_fails_where_a_rank_raised(gang) -> None:
    fine(case(gang, "vanilla"))
    with pytest.raises(AssertionError):
        fine(case(gang, "other H"))


def test_ranks_that_start_apart_end_with_rank_0s_parameters(gang) -> None:
    ranks = fine(case(gang, "other start"))
    assert not torch.equal(ranks[0]["before"], ranks[1]["before"])
    assert torch.equal(same_on_all(ranks, "start"), ranks[0]["before"])
    same_on_all(ranks, "params")
    expected = in_one_process(program.net, N, compressor=program.SIGNTOPK, exchange=tw.Server())
    assert torch.equal(same_on_all(ranks, "anchor"), expected)


def test_same_on_all_fails_on_one_other_bit(gang) -> None:
    ranks = [dict(r) for r in case(gang, "other start")]
    ranks[2]["anchor"] = ranks[2]["anchor"] + 1e-6
    with pytest.raises(AssertionError):
        same_on_all(ranks, "anchor")


@pytest.mark.parametrize(
    "exchange", ["server", "server, root 2", "gather", "large, gather", "all-reduce"]
)
def test_a_nan_on_one_rank_is_told_on_every_rank_and_training_goes_on(gang, exchange: str) -> None:
    ranks = fine(case(gang, f"nan, {exchange}"))
    for r in ranks:
        assert r["found"] == [(1, "2.weight")]
        assert "round 1: rank 1, tensor '2.weight'" in r["told"]
        assert r["kept"]
        assert r["nan_seconds"] < PROMPT
    assert [r["round"] for r in ranks] == [3, 3, 3]
    assert bool(same_on_all(ranks, "params").isfinite().all())


def test_a_step_skipped_by_one_ranks_scaler_keeps_the_rounds_in_step(gang) -> None:
    ranks = fine(case(gang, "scaler skips"))
    assert [r["scale"] for r in ranks] == [64.0, 32.0, 64.0]
    assert [r["round"] for r in ranks] == [3, 3, 3]
    same_on_all(ranks, "params")


def test_the_delegated_sum_is_one_for_all_ranks_and_close_to_the_framed_one(gang) -> None:
    delegated = same_on_all(fine(case(gang, "vanilla delegated")), "params")
    framed = same_on_all(fine(case(gang, "vanilla")), "params")
    torch.testing.assert_close(delegated, framed, rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(delegated, program.vector(program.net()), rtol=1e-6, atol=1e-6)
    assert torch.equal(framed, in_one_process(program.net, N, **tw.vanilla()))


@pytest.mark.parametrize(
    ("name", "exchange", "compressor"),
    [
        ("server", tw.Server(), tw.Identity()),
        ("server, root 2", tw.Server(root=2), tw.Identity()),
        ("gather", tw.Gather(), tw.Identity()),
        ("ring", tw.Ring(), tw.Identity()),
        ("sparse", tw.Gather(), tw.TopK(k=5)),
    ],
)
def test_frames_of_many_and_of_few_bytes_end_in_the_bits_of_one_process(
    gang, name, exchange, compressor
) -> None:
    anchor = same_on_all(fine(case(gang, f"large, {name}")), "anchor")
    assert anchor.numel() == 600003
    expected = in_one_process(program.wide, N, steps=2, exchange=exchange, compressor=compressor)
    assert torch.equal(anchor, expected)


@pytest.mark.parametrize(
    ("name", "exchange", "compressor"),
    [
        ("server", tw.Server(), program.SIGNTOPK),
        ("server, root 1", tw.Server(root=1), program.SIGNTOPK),
        ("gather", tw.Gather(), program.SIGNTOPK),
    ],
)
def test_a_subgroup_counts_its_own_ranks(gang, name, exchange, compressor) -> None:
    ranks = [r[name] for r in fine(case(gang, "subgroup"))[1:]]
    assert [r["place"] for r in ranks] == [(0, 2), (1, 2)]
    expected = in_one_process(program.net, 2, exchange=exchange, compressor=compressor, H=2)
    assert torch.equal(same_on_all(ranks, "anchor"), expected)


def test_a_subgroup_delegates_its_own_sum(gang) -> None:
    ranks = [r["all-reduce"] for r in fine(case(gang, "subgroup"))[1:]]
    expected = in_one_process(program.net, 2, exchange=tw.AllReduce(), H=2)
    torch.testing.assert_close(same_on_all(ranks, "anchor"), expected, rtol=1e-6, atol=1e-6)


ALTERED = {
    "altered body": ("rank 1", "checksum"),
    "altered round": ("rank 2", "checksum"),
    "altered magic": ("rank 1", "starts with"),
    "altered length": ("rank 1", ""),
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_frame_is_refused_on_every_rank_and_the_round_said_again(gang, name) -> None:
    ranks = fine(case(gang, name))
    assert [r["refused"] for r in ranks] == ["FrameError"] * N, [r["told"] for r in ranks]
    speaker, what = ALTERED[name]
    for r in ranks:
        assert f"frame from {speaker}, round 1" in r["told"]
        assert what in r["told"]
        assert r["kept"]
        assert r["refused_seconds"] < PROMPT
        assert r["again"] == 2
    for r in ranks[1:]:
        assert "round 1 is refused" in r["told"]
    same_on_all(ranks, "params")


def test_a_silent_rank_becomes_a_timeout_on_the_others(gang) -> None:
    ranks = case(gang, "silent")
    assert ranks[2]["error"] is None
    for r in ranks[:2]:
        assert r["error"] in ("RoundTimeout", "PeerLost"), r
        assert r["seconds"] < program.SILENT_PATIENCE + PROMPT
    assert any(r["error"] == "RoundTimeout" and "rank 2" in r["message"] for r in ranks[:2])


@pytest.mark.parametrize(("exchange", "survivors"), [("server", (0, 1)), ("gather", (3, 4))])
def test_a_rank_that_dies_is_lost_on_the_others_within_seconds(deaths, exchange, survivors) -> None:
    told = [deaths[rank] for rank in survivors]
    for result in told:
        assert result is not None
        assert result["error"] in ("PeerLost", "RoundTimeout"), result
        assert result["seconds"] < 10.0
        assert result["kept"], result
    assert told[0]["lost"] == 2
    # The other one may hear of it only by what its own peer then does.
    assert told[1]["lost"] in (0, 2)
