"""Outer steps: pure, and what `torch.optim` would do on the mean pseudo-gradient."""

from __future__ import annotations

import pytest
import torch
from laws.law_cases import OUTERS, generator, same_bits, same_values

import thinwire as tw

outers = pytest.mark.parametrize("outer", OUTERS, ids=repr)


@outers
@pytest.mark.parametrize("d", [0, 1, 7, 1000])
def test_a_step_is_a_function_and_leaves_its_input_alone(outer: tw.Outer, d: int) -> None:
    anchor, direction = (torch.randn(d, generator=generator(s)) for s in (1, 2))
    state = outer.init(anchor)
    kept = anchor.clone(), direction.clone(), {n: t.clone() for n, t in state.items()}
    first, after = outer.step(anchor, direction, state)
    second, again = outer.step(anchor, direction, state)
    same_bits(first, second)
    assert first.shape == (d,)
    assert after.keys() == again.keys() == state.keys()
    same_bits(anchor, kept[0])
    same_bits(direction, kept[1])
    for name, tensor in state.items():
        same_bits(tensor, kept[2][name])
        same_bits(after[name], again[name])


@outers
def test_no_direction_and_no_momentum_move_nothing(outer: tw.Outer) -> None:
    anchor = torch.randn(9, generator=generator(1))
    moved, _ = outer.step(anchor, torch.zeros(9), outer.init(anchor))
    same_bits(moved, anchor)


@outers
def test_twenty_steps_follow_torch_optim(outer: tw.Outer) -> None:
    momentum = getattr(outer, "momentum", 0.0)
    anchor = torch.randn(50, generator=generator(1))
    witness = torch.nn.Parameter(anchor.clone())
    sgd = torch.optim.SGD([witness], lr=outer.lr, momentum=momentum, nesterov=momentum > 0)
    state = outer.init(anchor)
    for round in range(20):
        direction = torch.randn(50, generator=generator(round + 10))
        witness.grad = direction.clone()
        sgd.step()
        anchor, state = outer.step(anchor, direction, state)
    same_values(anchor, witness.detach(), float(anchor.abs().max()), rtol=1e-5)
    with pytest.raises(AssertionError):
        same_values(anchor * 1.001, witness.detach(), float(anchor.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("lr", [-1.0, 2e6, "1", True, float("nan")])
def test_a_learning_rate_out_of_range_is_refused(lr: object) -> None:
    for outer in (tw.Average, tw.Nesterov):
        with pytest.raises(tw.ConfigError, match="lr"):
            outer(lr=lr)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, None])
def test_a_momentum_out_of_range_is_refused(momentum: object) -> None:
    with pytest.raises(tw.ConfigError, match="momentum"):
        tw.Nesterov(momentum=momentum)
