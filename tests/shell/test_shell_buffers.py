"""Buffers: local, averaged or rank 0's at every round; whole-number buffers stay local."""

from __future__ import annotations

import copy

import pytest
import torch
from shell_cases import Run, close, replicas_agree, same_bits, sgd
from torch import nn

import thinwire as tw

NAMES = ("running_mean", "running_var")


def normed() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def stats_of(model: nn.Module) -> list[torch.Tensor]:
    return [getattr(model[1], name).clone() for name in NAMES]


def run_with(buffers: str, N: int = 3, H: int = 1, **arguments) -> Run:
    return Run(N, sgd, normed, H=H, buffers=buffers, **arguments)


def half_step(run: Run) -> list[list[torch.Tensor]]:
    """Forward and backward on every rank, then the step; returns the buffers in between."""
    run.gradients()
    between = [stats_of(m) for m in run.nets]
    run.cluster.step()
    run.done += 1
    return between


def test_local_buffers_are_left_to_each_rank() -> None:
    run = run_with("local")
    for _ in range(2):
        between = half_step(run)
        for m, own in zip(run.nets, between, strict=True):
            same_bits(stats_of(m), own)
    with pytest.raises(AssertionError):
        same_bits(stats_of(run.nets[0]), stats_of(run.nets[1]))
    replicas_agree(run.nets)


@pytest.mark.parametrize("exchange", [tw.Server(), tw.Server(root=2), tw.Gather()], ids=repr)
def test_averaged_buffers_are_the_mean_on_every_rank(exchange) -> None:
    run = run_with("average", compressor=tw.TopK(k=2) >> tw.Sign(), exchange=exchange)
    for _ in range(3):
        between = half_step(run)
        for number in range(len(NAMES)):
            mean = torch.stack([own[number].double() for own in between]).mean(0)
            close(stats_of(run.nets[0])[number], mean)
        for m in run.nets:
            same_bits(stats_of(m), stats_of(run.nets[0]))
    replicas_agree(run.nets)


def test_averaged_buffers_go_with_the_engines_all_reduce() -> None:
    run = run_with("average", exchange=tw.AllReduce())
    half_step(run)
    for m in run.nets:
        same_bits(stats_of(m), stats_of(run.nets[0]))


def test_broadcast_buffers_are_rank_0s_to_the_last_bit() -> None:
    run = run_with("broadcast", exchange=tw.Server(root=1))
    for _ in range(3):
        between = half_step(run)
        for m in run.nets:
            same_bits(stats_of(m), between[0])


@pytest.mark.parametrize("buffers", ["average", "broadcast"])
def test_buffers_are_shared_at_rounds_only(buffers: str) -> None:
    run = run_with(buffers, H=2)
    between = half_step(run)
    for m, own in zip(run.nets, between, strict=True):
        same_bits(stats_of(m), own)
    half_step(run)
    for m in run.nets:
        same_bits(stats_of(m), stats_of(run.nets[0]))


@pytest.mark.parametrize("buffers", ["local", "average", "broadcast"])
def test_whole_number_buffers_stay_whole_and_local(buffers: str) -> None:
    run = run_with(buffers)
    run.nets[1][1].num_batches_tracked.fill_(100)
    half_step(run)
    tracked = [m[1].num_batches_tracked for m in run.nets]
    assert [int(t) for t in tracked] == [1, 101, 1]
    assert all(t.dtype == torch.int64 for t in tracked)


@pytest.mark.parametrize("buffers", ["average", "broadcast"])
def test_a_model_without_buffers_shares_none(buffers: str) -> None:
    run = Run(2, sgd, buffers=buffers).steps(2)
    plain = Run(2, sgd).steps(2)
    replicas_agree([run.nets[0], plain.nets[0]])
    assert run.shells[1].stats.sent["SAID"] == plain.shells[1].stats.sent["SAID"]


@pytest.mark.parametrize("exchange", [tw.Server(), tw.Gather()], ids=repr)
def test_a_nan_in_an_averaged_buffer_is_named_and_nothing_is_applied(exchange) -> None:
    run = run_with("average", compressor=tw.TopK(k=2), exchange=exchange).steps(2)
    before = copy.deepcopy([(s.anchor, s._state.mem, s.round) for s in run.shells])
    run.gradients()
    run.nets[1][1].running_var[2] = float("nan")
    between = [stats_of(m) for m in run.nets]
    with pytest.raises(tw.NonFiniteError, match=r"rank 1, tensor '1\.running_var'"):
        run.cluster.step()
    same_bits([(s.anchor, s._state.mem, s.round) for s in run.shells], before)
    same_bits([stats_of(m) for m in run.nets], between)


@pytest.mark.parametrize("buffers", ["average", "broadcast"])
def test_buffers_of_half_precision_keep_their_dtype(buffers: str) -> None:
    run = Run(2, sgd, lambda: normed().bfloat16(), buffers=buffers).steps(2)
    for m in run.nets:
        assert m[1].running_mean.dtype == torch.bfloat16
        same_bits(stats_of(m), stats_of(run.nets[0]))
