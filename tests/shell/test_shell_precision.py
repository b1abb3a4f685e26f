"""bfloat16 and float16 models: equal replicas, and the anchor's rounding is no progress."""

from __future__ import annotations

import copy

import pytest
import torch
from shell_cases import (
    Run,
    averaged_witness,
    backward,
    close,
    momentum,
    net,
    replicas_agree,
    same_bits,
    sgd,
    vector,
)
from torch import nn

import thinwire as tw

HALVES = [torch.bfloat16, torch.float16]
SIGNTOPK = tw.TopK(density=0.1) >> tw.Sign()
METHODS = [
    (tw.Identity(), tw.Server(tw.NoFeedback()), tw.Average()),
    (tw.Identity(), tw.AllReduce(), tw.Average()),
    (SIGNTOPK, tw.Server(), tw.Average()),
    (SIGNTOPK, tw.Gather(), tw.Nesterov()),
    (tw.QSGD(bits=4), tw.Server(downlink=tw.Sign()), tw.Average()),
]


def in_(dtype: torch.dtype):
    return lambda: net(dtype=dtype)


def arguments(method) -> dict:
    return dict(zip(("compressor", "exchange", "outer"), method, strict=True))


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("dtype", HALVES)
def test_replicas_of_half_precision_are_identical(dtype, method) -> None:
    run = Run(3, momentum, in_(dtype), H=2, **arguments(method)).steps(6)
    replicas_agree(run.nets)
    for shell in run.shells:
        same_bits(shell.anchor, run.shells[0].anchor)
        assert shell.anchor.dtype == torch.float32
    assert run.nets[0][0].weight.dtype == dtype
    with pytest.raises(AssertionError):
        close(vector(run.nets[0]).float(), vector(net(dtype=dtype)).float(), 1e-3)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("dtype", HALVES)
def test_without_a_gradient_nothing_is_said_and_nothing_is_owed(dtype, method) -> None:
    run = Run(3, sgd, in_(dtype), **arguments(method))
    start = vector(run.nets[0])
    for m in run.nets:
        for p in m.parameters():
            p.grad = torch.zeros_like(p)
    for _ in range(4):
        run.cluster.step()
    for m, shell in zip(run.nets, run.shells, strict=True):
        same_bits(vector(m), start)
        if shell.residual is not None:
            assert not shell.residual.any()
    assert run.shells[0].round == 4


@pytest.mark.parametrize("exchange", [tw.Server(), tw.Gather()], ids=repr)
@pytest.mark.parametrize("dtype", HALVES)
def test_the_rounding_of_an_anchor_between_two_halves_is_not_said(dtype, exchange) -> None:
    # The mean of three ranks is no bfloat16; what the parameters round away must stay unsaid.
    run = Run(3, sgd, in_(dtype), compressor=tw.Identity(), exchange=exchange).steps(3)
    anchor = run.shells[0].anchor.clone()
    with pytest.raises(AssertionError):
        same_bits(anchor.to(dtype).float(), anchor)
    for m in run.nets:
        for p in m.parameters():
            p.grad = torch.zeros_like(p)
    for _ in range(5):
        run.cluster.step()
    for m, shell in zip(run.nets, run.shells, strict=True):
        same_bits(shell.anchor, anchor)
        same_bits(vector(m), anchor.to(dtype))
        assert not shell.residual.any()


@pytest.mark.parametrize("dtype", HALVES)
def test_without_a_gradient_anchor_less_mean_residual_is_kept(dtype) -> None:
    # What is owed may still be said, but nothing is made up and nothing is lost.
    run = Run(3, momentum, in_(dtype), H=2, compressor=SIGNTOPK, exchange=tw.Server()).steps(4)

    def total() -> torch.Tensor:
        residuals = torch.stack([s.residual.double() for s in run.shells])
        assert bool(residuals.any())
        return run.shells[0].anchor.double() - residuals.mean(0)

    before = total()
    for _ in range(6):
        run.cluster.sync()
    close(total(), before, 1e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_small_steps_add_up_in_the_anchor_of_many_ranks(dtype) -> None:
    # One rank of four moves by one unit in the last place; a quarter of it each round is too
    # small for the parameters, yet four rounds later they have moved.
    def one() -> nn.Module:
        model = nn.Linear(1, 1, bias=False).to(dtype)
        nn.init.ones_(model.weight)
        return model

    eps = torch.finfo(dtype).eps
    run = Run(4, lambda p: torch.optim.SGD(p, lr=1.0), one)
    for _ in range(4):
        for rank, m in enumerate(run.nets):
            m.weight.grad = torch.full_like(m.weight, -eps if rank == 0 else 0.0)
        run.cluster.step()
    replicas_agree(run.nets)
    assert run.shells[0].anchor.item() == pytest.approx(1.0 + eps, rel=1e-6)
    assert run.nets[3].weight.item() == 1.0 + eps


def test_a_model_of_several_dtypes_trains_and_replicas_agree() -> None:
    def several() -> nn.Module:
        model = net()
        model[2].bias = nn.Parameter(model[2].bias.detach().double())
        model[0].bias = nn.Parameter(model[0].bias.detach().bfloat16())
        return model

    run = Run(3, momentum, several, H=2, compressor=SIGNTOPK, exchange=tw.Server())
    for n in range(6):
        for rank, m in enumerate(run.nets):
            for number, p in enumerate(m.parameters()):
                draws = torch.Generator().manual_seed(100 * n + 10 * rank + number)
                p.grad = torch.randn(p.shape, generator=draws).to(p.dtype)
        run.cluster.step()
    assert [p.dtype for p in run.nets[0].parameters()] == [
        torch.float32,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ]
    for m in run.nets:
        same_bits(list(m.parameters()), list(run.nets[0].parameters()))


def test_a_float64_model_equals_plain_averaged_training() -> None:
    run = Run(2, momentum, in_(torch.float64), H=2).steps(6)
    witness = averaged_witness(2, 2, 6, momentum, in_(torch.float64))
    close(vector(run.nets[0]), witness, 2e-6)
    replicas_agree(run.nets)


@pytest.mark.parametrize("dtype", HALVES)
def test_one_worker_of_half_precision_with_identity_is_the_plain_optimizer(dtype) -> None:
    model, plain = net(dtype=dtype), net(dtype=dtype)
    optimizer = tw.LocalSGD(model, sgd(model.parameters()), H=2)
    other = sgd(plain.parameters())
    for step in range(6):
        for m, o in ((model, optimizer), (plain, other)):
            backward(m, 0, step)
            o.step()
    close(vector(model).float(), vector(plain).float(), 2e-3 if dtype == torch.float16 else 2e-2)


DEFAULTS = [
    (tw.Identity(), tw.Server(tw.NoFeedback()), tw.Nesterov()),
    (SIGNTOPK, tw.Server(), tw.Average()),
    (tw.QSGD(bits=8, norm="max", bucket=16), tw.Gather(), tw.Average()),
    (tw.Rotated(levels=15), tw.Server(downlink=tw.Sign()), tw.Average()),
]


def trained_on_noise(method, start: nn.Module) -> torch.Tensor:
    """The anchor after two rounds on gradients that depend on no default."""
    run = Run(2, momentum, lambda: copy.deepcopy(start), H=2, **arguments(method))
    for n in range(4):
        for rank, m in enumerate(run.nets):
            for number, p in enumerate(m.parameters()):
                draws = torch.Generator().manual_seed(100 * n + 10 * rank + number)
                p.grad = torch.randn(p.shape, generator=draws, dtype=torch.float32, device="cpu")
        run.cluster.step()
    return run.shells[0].anchor


@pytest.mark.parametrize("method", DEFAULTS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_no_bit(dtype, method) -> None:
    # A program that computes in float64 elsewhere says so with torch.set_default_dtype.
    expected, before = trained_on_noise(method, net()), torch.get_default_dtype()
    start = net()
    torch.set_default_dtype(dtype)
    try:
        actual = trained_on_noise(method, start)
    finally:
        torch.set_default_dtype(before)
    same_bits(actual, expected)


@pytest.mark.parametrize("method", DEFAULTS, ids=repr)
def test_the_default_device_changes_no_bit(method) -> None:
    # As torch.set_default_device("cuda") does; "meta" stands for any device that is not the CPU.
    expected, start = trained_on_noise(method, net()), net()
    with torch.device("meta"):
        actual = trained_on_noise(method, start)
    same_bits(actual, expected)
