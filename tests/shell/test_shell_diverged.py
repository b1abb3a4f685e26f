"""Replicas that part are found, with the ranks and the tensor, before a snapshot is written."""

from __future__ import annotations

import pytest
import torch
from shell_cases import Run, momentum
from snapshot_cases import Kept, files_of

import thinwire as tw
from thinwire.exchange.compare import digests, first_difference
from thinwire.flat import Spans

UNBIASED = tw.QSGD(bits=8, norm="max", scale="none")


def flip(vector: torch.Tensor, at: int) -> None:
    """Flips one bit of one entry."""
    vector.view(torch.int32)[at] ^= 1 << 10


@pytest.mark.parametrize("exchange", [tw.Server(), tw.Gather(), tw.Ring("ring", tw.Feedback())])
@pytest.mark.parametrize(
    ("rank", "at", "tensor"), [(1, 0, "0.weight"), (2, 34, "0.bias"), (0, 52, "2.bias")]
)
def test_one_bit_of_one_anchor_is_found(exchange, rank: int, at: int, tensor: str) -> None:
    run = Run(3, momentum, compressor=tw.Sign(), exchange=exchange, watch=tw.Watch(compare=3))
    run.steps(1)
    flip(run.shells[rank]._state.anchor, at)
    run.steps(1)
    with pytest.raises(tw.DivergedError, match="after 3 rounds") as error:
        run.step()
    assert (error.value.ranks, error.value.round) == ([rank], 3)
    assert error.value.tensor == f"tensor '{tensor}' of the anchor"


def test_two_that_part_from_the_rest_are_both_named() -> None:
    run = Run(5, momentum, watch=tw.Watch(compare=1))
    for rank, at in ((1, 40), (3, 7)):
        flip(run.shells[rank]._state.anchor, at)
    with pytest.raises(tw.DivergedError, match=r"ranks \[1, 3\] differ") as error:
        run.step()
    assert error.value.ranks == [1, 3]


def test_an_outer_momentum_that_parts_is_found() -> None:
    run = Run(3, outer=tw.Nesterov(), watch=tw.Watch(compare=2)).steps(1)
    flip(run.shells[2]._state.outer["momentum"], 31)
    with pytest.raises(tw.DivergedError) as error:
        run.step()
    assert error.value.ranks == [2]
    assert "tensor '0.bias' of the" in error.value.tensor


def test_shared_buffers_that_part_are_found() -> None:
    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.BatchNorm1d(3))

    run = Run(3, model=model, buffers="average", watch=tw.Watch(compare=0)).steps(2)
    run.nets[1][1].running_var[2] += 1
    with pytest.raises(tw.DivergedError, match=r"1 differs .*'1\.running_var' of the shared"):
        run.cluster.run([s.compare_talk() for s in run.shells])


def test_a_consensus_step_that_parts_is_found() -> None:
    run = Run(3, compressor=tw.Sign(), exchange=tw.Choco(), watch=tw.Watch(compare=3)).steps(2)
    run.shells[1]._state.mem["gamma"] *= 0.5
    with pytest.raises(tw.DivergedError, match=r"rank 1 differs .* the consensus step"):
        run.step()


def test_a_replica_on_an_edge_that_parts_is_found() -> None:
    edges = tw.EdgeGossip(tw.RingGraph())
    run = Run(4, compressor=UNBIASED, exchange=edges, watch=tw.Watch(compare=0)).steps(2)
    run.cluster.run([s.compare_talk() for s in run.shells])
    flip(run.shells[1]._state.mem["theirs/2"], 11)
    with pytest.raises(
        tw.DivergedError, match=r"ranks \[1, 2\] .*'0\.weight' of the replica of rank 2"
    ):
        run.cluster.run([s.compare_talk() for s in run.shells])


@pytest.mark.parametrize("exchange", [tw.Gossip(), tw.Choco(), tw.EdgeGossip()], ids=repr)
def test_models_that_differ_by_design_are_no_divergence(exchange) -> None:
    run = Run(3, compressor=UNBIASED, exchange=exchange, watch=tw.Watch(compare=1)).steps(4)
    assert [s.round for s in run.shells] == [4] * 3


def test_compared_only_when_asked_and_counted() -> None:
    def said(compare: int) -> int:
        run = Run(2, watch=tw.Watch(compare=compare)).steps(4)
        return run.shells[1].stats.sent["HELLO"]

    assert said(0) < said(2) < said(1)
    assert (said(1) - said(0)) == 2 * (said(2) - said(0))


def test_no_snapshot_of_parted_replicas_is_written(tmp_path) -> None:
    run = Kept(tmp_path, 3, watch=tw.Watch(compare=0)).steps(2)
    run.settle()
    before = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
    flip(run.shells[1]._state.anchor, 3)
    with pytest.raises(tw.DivergedError, match="resume all ranks from the last snapshot"):
        run.step()
    run.settle()
    assert {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)} == before
    run.close()
    again = Kept(tmp_path, 3, start=1)
    assert again.done == 2
    again.close()


def test_digests_tell_every_bit_and_every_tensor() -> None:
    spans = Spans(("a", "b"), ((3,), (2,)))
    x = torch.arange(5, dtype=torch.float32)
    y = x.clone()
    flip(y, 4)
    assert digests(x, spans)[:16] == digests(y, spans)[:16]
    assert digests(x, spans)[16:] != digests(y, spans)[16:]
    assert digests(torch.tensor([0.0]), spans) != digests(torch.tensor([-0.0]), spans)


def test_what_only_one_rank_holds_is_compared_with_nobody() -> None:
    assert first_difference([{"held": {"x": "a"}}, {"problem": "unreadable"}]) == {"ranks": []}
