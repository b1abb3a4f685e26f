"""A NaN is named by rank, round and tensor; nothing is applied, and training can go on."""

from __future__ import annotations

import copy

import pytest
import torch
from shell_cases import Run, momentum, replicas_agree, same_bits, sgd, vector

import thinwire as tw

SIGNTOPK = tw.TopK(density=0.1) >> tw.Sign()
EXCHANGES = [
    (tw.Server(), SIGNTOPK),
    (tw.Server(root=2), SIGNTOPK),
    (tw.Server(downlink=tw.Sign()), SIGNTOPK),
    (tw.Gather(), SIGNTOPK),
    (tw.AllReduce(), tw.Identity()),
    (tw.Server(tw.NoFeedback()), tw.Identity()),
]


def held(run: Run) -> list:
    return copy.deepcopy([(s.anchor, s._state.mem, s._state.outer, s.round) for s in run.shells])


@pytest.mark.parametrize(("exchange", "compressor"), EXCHANGES, ids=repr)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_one_ranks_nan_is_named_and_nothing_is_applied(exchange, compressor, bad, culprit) -> None:
    run = Run(3, sgd, H=2, compressor=compressor, exchange=exchange, outer=tw.Nesterov()).steps(5)
    before = held(run)
    run.gradients()
    run.nets[culprit][2].weight.grad[1, 2] = bad
    with pytest.raises(tw.NonFiniteError, match=f"round 2: rank {culprit}, tensor '2.weight'") as e:
        run.cluster.step()
    assert (e.value.found, e.value.round) == ([(culprit, "2.weight")], 2)
    same_bits(held(run), before)
    assert all(len(each) == 2 for each in run.reports)

    # The way out: put that worker's parameters right; the round that was due then runs.
    with torch.no_grad():
        good = run.nets[(culprit + 1) % 3][2].weight
        run.nets[culprit][2].weight.copy_(good)
    run.step()
    assert [s.round for s in run.shells] == [3, 3, 3]
    replicas_agree(run.nets)
    assert bool(vector(run.nets[0]).isfinite().all())
    run.steps(2)
    replicas_agree(run.nets)
    assert [s.round for s in run.shells] == [4, 4, 4]


@pytest.mark.parametrize(("exchange", "compressor"), EXCHANGES, ids=repr)
def test_all_culprits_are_named_in_rank_order(exchange, compressor) -> None:
    run = Run(4, sgd, compressor=compressor, exchange=exchange)
    run.gradients()
    run.nets[3][0].weight.grad.fill_(float("nan"))
    run.nets[1][0].bias.grad[2] = float("inf")
    run.nets[1][2].bias.grad[0] = float("nan")
    with pytest.raises(tw.NonFiniteError) as error:
        run.cluster.step()
    assert error.value.found == [(1, "0.bias"), (3, "0.weight")]
    assert "Nothing was applied" in str(error.value)


PLAIN = [tw.Server(tw.NoFeedback()), tw.Gather(tw.NoFeedback()), tw.AllReduce()]


@pytest.mark.parametrize("exchange", PLAIN, ids=repr)
def test_a_sum_that_overflows_is_named_as_the_sum(exchange) -> None:
    run = Run(2, lambda p: torch.optim.SGD(p, lr=1.0), exchange=exchange)
    before = held(run)
    run.gradients()
    for m in run.nets:
        m[2].bias.grad.fill_(3e38)
    with pytest.raises(tw.NonFiniteError, match=r"the sum over ranks, tensor '2\.bias'") as error:
        run.cluster.step()
    assert error.value.found == [(-1, "2.bias")]
    same_bits(held(run), before)


def test_a_nan_alone_in_one_process_is_named() -> None:
    run = Run(1, momentum, compressor=SIGNTOPK, exchange=tw.Server())
    run.gradients()
    run.nets[0][0].weight.grad[0, 0] = float("nan")
    with pytest.raises(tw.NonFiniteError, match=r"rank 0, tensor '0\.weight'"):
        run.cluster.step()


def test_a_nan_inside_a_round_is_named_when_the_round_runs() -> None:
    run = Run(2, sgd, H=3)
    run.gradients()
    run.nets[0][0].weight.grad[0, 0] = float("nan")
    run.cluster.step()
    run.cluster.step()
    with pytest.raises(tw.NonFiniteError, match=r"round 0: rank 0, tensor '0\.weight'"):
        run.cluster.step()


def test_parameters_put_back_to_the_anchor_let_training_go_on() -> None:
    run = Run(2, sgd, H=1, compressor=SIGNTOPK, exchange=tw.Server()).steps(2)
    run.gradients()
    run.nets[1][0].weight.grad.fill_(float("nan"))
    with pytest.raises(tw.NonFiniteError):
        run.cluster.step()
    with torch.no_grad():
        run.nets[1][0].weight.copy_(run.shells[1].anchor[:30].view(5, 6))
    run.cluster.sync()
    replicas_agree(run.nets)
    assert run.shells[0].round == 3
