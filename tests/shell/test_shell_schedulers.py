"""Learning-rate schedulers attach to the shell as to any optimizer, without a warning."""

from __future__ import annotations

import pytest
import torch
from shell_cases import Run, backward, close, momentum, net, replicas_agree, vector
from torch.optim import lr_scheduler as schedules

import thinwire as tw

SCHEDULERS = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda step: 1 / (1 + step)),
    "StepLR": lambda o: schedules.StepLR(o, step_size=2, gamma=0.1),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, max_lr=0.2, total_steps=12),
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, T_max=12),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o, [schedules.ConstantLR(o, 0.5), schedules.ExponentialLR(o, 0.9)], [3]
    ),
}


def advance(scheduler) -> None:
    if isinstance(scheduler, schedules.ReduceLROnPlateau):
        scheduler.step(1.0)
    else:
        scheduler.step()


def plain_run(name: str, steps: int) -> tuple[torch.Tensor, list[float]]:
    model, rates = net(), []
    optimizer = momentum(model.parameters())
    scheduler = SCHEDULERS[name](optimizer)
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        backward(model, 0, step)
        optimizer.step()
        advance(scheduler)
    return vector(model), rates


# Warnings are errors here, the one about lr_scheduler.step() before optimizer.step() included.
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("H", [1, 3])
def test_a_scheduler_on_the_shell_acts_as_on_the_plain_optimizer(name: str, H: int) -> None:
    model, rates = net(), []
    optimizer = tw.LocalSGD(model, momentum(model.parameters()), H=H)
    scheduler = SCHEDULERS[name](optimizer)
    for step in range(9):
        rates.append(optimizer.inner.param_groups[0]["lr"])
        backward(model, 0, step)
        optimizer.step()
        advance(scheduler)
    expected, expected_rates = plain_run(name, 9)
    assert rates == expected_rates
    assert len(set(rates)) > 1
    close(vector(model), expected, 2e-6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_on_a_worker_of_a_lockstep_raises_no_warning(name: str) -> None:
    run = Run(2, momentum, H=2)
    each = [SCHEDULERS[name](shell) for shell in run.shells]
    rates = []
    for _ in range(6):
        rates.append(run.shells[0].inner.param_groups[0]["lr"])
        run.step()
        for scheduler in each:
            advance(scheduler)
    assert rates == plain_run(name, 6)[1]
    replicas_agree(run.nets)


def test_a_scheduler_stepped_too_early_still_warns() -> None:
    model = net()
    optimizer = tw.LocalSGD(model, momentum(model.parameters()))
    scheduler = SCHEDULERS["StepLR"](optimizer)
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        scheduler.step()


def test_a_scheduler_resumes_beside_the_shell() -> None:
    def fresh(seed: int):
        model = net(seed)
        optimizer = tw.LocalSGD(model, momentum(model.parameters()), H=2)
        return model, optimizer, SCHEDULERS["LambdaLR"](optimizer)

    def train(parts, steps) -> None:
        model, optimizer, scheduler = parts
        for step in steps:
            backward(model, 0, step)
            optimizer.step()
            scheduler.step()

    whole, stopped, resumed = fresh(0), fresh(0), fresh(1)
    train(whole, range(7))
    train(stopped, range(3))
    for old, new in zip(stopped, resumed, strict=True):
        new.load_state_dict(old.state_dict())
    train(resumed, range(3, 7))
    assert torch.equal(vector(whole[0]), vector(resumed[0]))
    assert whole[1].param_groups[0]["lr"] == resumed[1].param_groups[0]["lr"]
