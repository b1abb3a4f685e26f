"""GradScaler with the shell inside: unscaled alike, and a skipped step is still a step."""

from __future__ import annotations

import pytest
import torch
from shell_cases import (
    Run,
    backward,
    close,
    loss_of,
    momentum,
    net,
    replicas_agree,
    same_bits,
    vector,
)

import thinwire as tw


def scaled_backward(scaler: torch.amp.GradScaler, model, optimizer, step: int) -> None:
    optimizer.zero_grad()
    scaler.scale(loss_of(model, 0, step)).backward()


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("H", [1, 3])
def test_a_scaler_of_a_power_of_two_changes_no_bit(H: int, unscale_first: bool) -> None:
    scaled, plain = net(), net()
    a = tw.LocalSGD(scaled, momentum(scaled.parameters()), H=H)
    b = tw.LocalSGD(plain, momentum(plain.parameters()), H=H)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(6):
        scaled_backward(scaler, scaled, a, step)
        if unscale_first:
            scaler.unscale_(a)
            torch.nn.utils.clip_grad_norm_(scaled.parameters(), 1e9)
        scaler.step(a)
        scaler.update()
        backward(plain, 0, step)
        if unscale_first:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1e9)
        b.step()
    same_bits(vector(scaled), vector(plain))
    assert a.round == 6 // H
    assert not hasattr(a, "grad_scale")
    assert not hasattr(a, "found_inf")


@pytest.mark.parametrize("unscale_first", [False, True])
def test_a_step_the_scaler_skips_moves_nothing_and_still_counts(unscale_first: bool) -> None:
    model = net()
    optimizer = tw.LocalSGD(model, momentum(model.parameters()), H=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaled_backward(scaler, model, optimizer, 0)
    model[0].weight.grad[0, 0] = float("inf")
    before = vector(model)
    if unscale_first:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    same_bits(vector(model), before)
    assert scaler.get_scale() == 128.0
    assert not optimizer.inner.state
    scaled_backward(scaler, model, optimizer, 1)
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.round == 1


def test_a_disabled_scaler_is_no_scaler() -> None:
    a, b = net(), net()
    one = tw.LocalSGD(a, momentum(a.parameters()))
    two = tw.LocalSGD(b, momentum(b.parameters()))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(3):
        scaled_backward(scaler, a, one, step)
        scaler.step(one)
        scaler.update()
        backward(b, 0, step)
        two.step()
    same_bits(vector(a), vector(b))


def test_a_step_skipped_on_one_rank_alone_keeps_the_rounds_in_step() -> None:
    # GradScaler hands over what it found as attributes; a gang with real scalers is in engines.
    run = Run(3, momentum, H=2, compressor=tw.TopK(k=2), exchange=tw.Server())
    run.step()
    before = vector(run.nets[1])
    run.shells[1].found_inf = torch.tensor(1.0)
    run.shells[1].grad_scale = torch.tensor(2.0)
    held = run.shells[1].inner.state_dict()["state"][0]["momentum_buffer"].clone()
    run.step()
    del run.shells[1].found_inf, run.shells[1].grad_scale
    same_bits(run.shells[1].inner.state_dict()["state"][0]["momentum_buffer"], held)
    assert [s.round for s in run.shells] == [1, 1, 1]
    replicas_agree(run.nets)
    with pytest.raises(AssertionError):
        same_bits(vector(run.nets[1]), before)
    run.steps(4)
    assert [s.round for s in run.shells] == [3, 3, 3]
    replicas_agree(run.nets)


def test_a_scaler_divides_by_its_scale_to_float32_accuracy() -> None:
    scaled, plain = net(), net()
    a = tw.LocalSGD(scaled, momentum(scaled.parameters()))
    b = tw.LocalSGD(plain, momentum(plain.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    for step in range(4):
        scaled_backward(scaler, scaled, a, step)
        scaler.step(a)
        scaler.update()
        backward(plain, 0, step)
        b.step()
    close(vector(scaled), vector(plain), 2e-6)
