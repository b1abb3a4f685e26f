"""Any torch.optim optimizer inside, and which parameters the shell takes."""

from __future__ import annotations

import pytest
import torch
from shell_cases import (
    IN,
    OUT,
    Run,
    averaged_witness,
    backward,
    close,
    dense_mean,
    loss_of,
    momentum,
    net,
    put,
    replicas_agree,
    same_bits,
    sgd,
    vector,
)
from torch import nn

import thinwire as tw

O = torch.optim  # noqa: E741
LINEAR = {
    "SGD": sgd,
    "SGD momentum": momentum,
    "SGD nesterov": lambda p: O.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD weight decay": lambda p: O.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.1),
}
OTHERS = {
    "Adam": lambda p: O.Adam(p, lr=0.01),
    "AdamW": lambda p: O.AdamW(p, lr=0.01),
    "Adagrad": lambda p: O.Adagrad(p, lr=0.05),
    "RMSprop": lambda p: O.RMSprop(p, lr=0.01, momentum=0.5),
    "LBFGS": lambda p: O.LBFGS(p, lr=0.1, max_iter=3, history_size=4),
    "SGD fused": lambda p: O.SGD(p, lr=0.1, momentum=0.9, fused=True),
}
ALL = {**LINEAR, **OTHERS}
DENSE = [
    tw.Server(tw.NoFeedback()),
    tw.Gather(tw.NoFeedback()),
    tw.AllReduce(),
    tw.Server(tw.Feedback()),
    tw.Gather(tw.Feedback(), ),
]  # fmt: skip


def step_with_closures(run: Run) -> None:
    def closure_of(rank: int):
        def closure():
            backward(run.nets[rank], rank, run.done)
            return loss_of(run.nets[rank], rank, run.done)

        return closure

    run.gradients()
    losses = run.cluster.step([closure_of(rank) for rank in range(len(run.nets))])
    assert all(isinstance(loss, torch.Tensor) for loss in losses)
    run.done += 1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("N", "H"), [(1, 1), (2, 3), (3, 2)])
def test_every_inner_optimizer_equals_plain_averaged_training(name: str, N: int, H: int) -> None:
    run = Run(N, ALL[name], H=H)
    for _ in range(6):
        step_with_closures(run)
    close(vector(run.nets[0]), averaged_witness(N, H, 6, ALL[name]), 1e-5)
    replicas_agree(run.nets)


@pytest.mark.parametrize("exchange", DENSE, ids=repr)
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("N", [1, 2, 3, 5])
def test_one_step_rounds_equal_one_optimizer_on_the_mean_gradient(N, name, exchange) -> None:
    # Local momentum is linear in the gradients: the mean of the workers' steps is the step of
    # the mean gradient, for one optimizer that saw them all.
    run = Run(N, LINEAR[name], exchange=exchange).steps(8)
    plain = net()
    optimizer = LINEAR[name](plain.parameters())
    for step in range(8):
        gradients = []
        for rank in range(N):
            backward(plain, rank, step)
            gradients.append([p.grad.double() for p in plain.parameters()])
        for number, p in enumerate(plain.parameters()):
            p.grad = (sum(g[number] for g in gradients) / N).float()
        optimizer.step()
    close(vector(run.nets[0]), vector(plain), 2e-6)
    replicas_agree(run.nets)


@pytest.mark.parametrize("name", [n for n in ALL if n != "LBFGS"])
@pytest.mark.parametrize("H", [1, 3])
def test_one_worker_with_identity_is_the_plain_optimizer(name: str, H: int) -> None:
    # Not to the last bit: anchor - (anchor - params) rounds where an entry at least halves or
    # doubles within a round; within a factor of two it is exact (Sterbenz).
    model, plain = net(), net()
    optimizer = tw.LocalSGD(model, ALL[name](model.parameters()), H=H)
    other = ALL[name](plain.parameters())
    for step in range(9):
        backward(model, 0, step)
        optimizer.step()
        backward(plain, 0, step)
        other.step()
    assert optimizer.round == 9 // H
    close(vector(model), vector(plain), 2e-6)


def test_one_worker_with_identity_is_exact_while_entries_move_little() -> None:
    model, plain = nn.Linear(4, 1, bias=False), nn.Linear(4, 1, bias=False)
    for m in (model, plain):
        put(torch.tensor([1.0, 1.3, -1.7, 1.9]), m)
    optimizer = tw.LocalSGD(model, O.SGD(model.parameters(), lr=0.01, momentum=0.9), H=2)
    other = O.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    for step in range(6):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        for m, o in ((model, optimizer), (plain, other)):
            o.zero_grad()
            m(x).square().mean().backward()
            o.step()
    same_bits(vector(model), vector(plain))


def test_the_closure_loss_is_returned_also_when_a_round_runs() -> None:
    model = net()
    optimizer = tw.LocalSGD(model, sgd(model.parameters()), H=2)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0, 0)
        loss.backward()
        return loss

    for _ in range(4):
        expected = loss_of(model, 0, 0).item()
        losses.append((optimizer.step(closure).item(), expected))
    assert all(got == expected for got, expected in losses)
    assert optimizer.round == 2
    assert optimizer.step() is None


@pytest.mark.parametrize("outer", [tw.Nesterov(lr=0.7, momentum=0.9), tw.Nesterov(0.3, 0.5)])
def test_outer_nesterov_is_torch_sgd_on_the_mean_pseudo_gradient(outer: tw.Nesterov) -> None:
    _check_outer(outer, lambda p: O.SGD(p, lr=outer.lr, momentum=outer.momentum, nesterov=True))


@pytest.mark.parametrize("lr", [1.0, 0.25])
def test_outer_average_is_torch_sgd_on_the_mean_pseudo_gradient(lr: float) -> None:
    _check_outer(tw.Average(lr=lr), lambda p: O.SGD(p, lr=lr))


def test_the_outer_check_fails_for_another_momentum() -> None:
    with pytest.raises(AssertionError):
        _check_outer(tw.Nesterov(0.7, 0.9), lambda p: O.SGD(p, lr=0.7, momentum=0.8, nesterov=True))


def _check_outer(outer: tw.Outer, witness) -> None:
    N, H, rounds = 3, 2, 5
    run = Run(N, momentum, H=H, outer=outer).steps(rounds * H)
    anchor = nn.Parameter(vector(net()))
    outer_witness = witness([anchor])
    nets = [net() for _ in range(N)]
    inners = [momentum(m.parameters()) for m in nets]
    for step in range(rounds * H):
        for rank, (m, o) in enumerate(zip(nets, inners, strict=True)):
            backward(m, rank, step)
            o.step()
        if (step + 1) % H == 0:
            mean = dense_mean([vector(m) for m in nets])
            anchor.grad = (anchor.detach().double() - mean).float()
            outer_witness.step()
            for m in nets:
                put(anchor.detach(), m)
    close(vector(run.nets[0]), anchor.detach(), 5e-6)
    replicas_agree(run.nets)


def test_parameter_groups_keep_their_own_learning_rates() -> None:
    def groups(params):
        first, *rest = params
        return O.SGD([{"params": [first], "lr": 0.0}, {"params": rest, "lr": 0.2}], lr=0.1)

    run = Run(2, groups, H=2).steps(4)
    assert [g["lr"] for g in run.shells[0].param_groups] == [0.0, 0.2]
    same_bits(run.nets[0][0].weight, net()[0].weight)
    close(vector(run.nets[0]), averaged_witness(2, 2, 4, groups))


def test_a_changed_learning_rate_of_the_shell_reaches_the_inner_optimizer() -> None:
    model = net()
    inner = sgd(model.parameters())
    optimizer = tw.LocalSGD(model, inner)
    optimizer.param_groups[0]["lr"] = 0.0
    assert inner.param_groups[0]["lr"] == 0.0
    before = vector(model)
    backward(model, 0, 0)
    optimizer.step()
    same_bits(vector(model), before)


def test_frozen_parameters_are_left_alone_and_not_sent() -> None:
    def half_frozen() -> nn.Module:
        model = net()
        model[0].requires_grad_(False)
        return model

    run = Run(2, sgd, half_frozen, H=1)
    with torch.no_grad():  # Each rank's own frozen values stay its own.
        run.nets[1][0].weight += 1
    frozen = [m[0].weight.clone() for m in run.nets]
    run.steps(3)
    for m, weight in zip(run.nets, frozen, strict=True):
        same_bits(m[0].weight.detach(), weight)
    assert run.shells[0].spans.names == ("2.weight", "2.bias")
    assert len(run.shells[0].anchor) == 18
    replicas_agree([m[2] for m in run.nets])
    with pytest.raises(AssertionError):
        same_bits(run.nets[0][2].weight, net()[2].weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(IN, IN, bias=False)
        self.second = nn.Linear(IN, IN, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(IN, OUT)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def tied() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tied()


def test_tied_weights_count_once_and_stay_tied() -> None:
    run = Run(2, sgd, tied, H=2).steps(4)
    assert run.shells[0].spans.names == ("first.weight", "last.weight", "last.bias")
    assert len(run.shells[0].anchor) == IN * IN + IN * OUT + OUT
    assert run.nets[0].second.weight is run.nets[0].first.weight
    close(vector(run.nets[0]), averaged_witness(2, 2, 4, sgd, tied))


@pytest.mark.parametrize("named", [True, False])
def test_tied_weights_in_a_list_count_once_where_they_first_stand(named: bool) -> None:
    model = tied()
    pairs = list(model.named_parameters(remove_duplicate=False))
    given = pairs if named else [p for _, p in pairs]
    optimizer = tw.LocalSGD(given, sgd(model.parameters()))
    assert len(optimizer.anchor) == IN * IN + IN * OUT + OUT
    assert optimizer.spans.shapes == ((IN, IN), (OUT, IN), (OUT,))


@pytest.mark.parametrize("given", ["model", "list", "generator", "pairs"])
def test_a_model_a_list_a_generator_and_pairs_train_alike(given: str) -> None:
    model = net()
    forms = {
        "model": model,
        "list": list(model.parameters()),
        "generator": model.parameters(),
        "pairs": model.named_parameters(),
    }
    optimizer = tw.LocalSGD(
        forms[given], sgd(model.parameters()), compressor=tw.TopK(k=2), exchange=tw.Server()
    )
    witness_model = net()
    witness = tw.LocalSGD(
        witness_model,
        sgd(witness_model.parameters()),
        compressor=tw.TopK(k=2),
        exchange=tw.Server(),
    )
    for step in range(3):
        for m, o in ((model, optimizer), (witness_model, witness)):
            backward(m, 0, step)
            o.step()
    same_bits(vector(model), vector(witness_model))
    names = optimizer.spans.names
    assert names == (
        ("0.weight", "0.bias", "2.weight", "2.bias")
        if given in ("model", "pairs")
        else ("param0", "param1", "param2", "param3")
    )


def test_nothing_to_train_is_refused() -> None:
    model = net().requires_grad_(False)
    with pytest.raises(tw.ConfigError, match="floating-point parameters; got none"):
        tw.LocalSGD(model, sgd(model.parameters()))
    with pytest.raises(tw.ConfigError, match="got none"):
        tw.LocalSGD(nn.Tanh(), sgd(model.parameters()))


def test_integer_parameters_alone_are_refused_and_beside_others_are_frozen() -> None:
    whole = nn.Parameter(torch.arange(3), requires_grad=False)
    with pytest.raises(tw.ConfigError, match="got none"):
        tw.LocalSGD([whole], sgd([whole]))
    real = nn.Parameter(torch.ones(2))
    optimizer = tw.LocalSGD([whole, real], sgd([whole, real]))
    real.grad = torch.ones(2)
    optimizer.step()
    assert whole.tolist() == [0, 1, 2]
    assert len(optimizer.anchor) == 2


def test_complex_parameters_are_refused_by_name() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(tw.ConfigError, match=r"phase \(torch.complex64\)"):
        tw.LocalSGD([("phase", p)], sgd([p]))


def test_an_inner_optimizer_over_other_parameters_is_refused() -> None:
    model, other = net(), net()
    with pytest.raises(tw.ConfigError, match=r"does not step 0\.weight, 0\.bias"):
        tw.LocalSGD(model, sgd(other.parameters()))
    with pytest.raises(tw.ConfigError, match=r"does not step 2\.weight, 2\.bias"):
        tw.LocalSGD(model, sgd(model[0].parameters()))
    with pytest.raises(tw.ConfigError, match="steps 4 tensors that LocalSGD was not given"):
        tw.LocalSGD(model, sgd([*model.parameters(), *other.parameters()]))


def test_parameters_of_no_entries_and_of_no_dimensions_train() -> None:
    def model() -> nn.ParameterDict:
        return nn.ParameterDict(
            {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0), "one": torch.ones(1)}
        )

    nets = [model() for _ in range(2)]
    shells = [
        tw.LocalSGD(
            m,
            sgd(m.parameters()),
            group=tw.Seat(r, 2),
            compressor=tw.TopK(k=1) >> tw.Sign(),
            exchange=tw.Server(),
        )
        for r, m in enumerate(nets)
    ]
    cluster = tw.LockStep(shells)
    for r, m in enumerate(nets):
        (m["scalar"] * (r + 1) + m["one"].sum() + m["empty"].sum()).backward()
    cluster.step()
    assert nets[0]["scalar"].item() == pytest.approx(2.0 - 0.15)
    assert nets[0]["one"].item() == pytest.approx(0.9)
    replicas_agree(nets)


def test_parameters_that_are_not_contiguous_train_as_contiguous_ones() -> None:
    def turned() -> nn.Module:
        model = net()
        model[0].weight = nn.Parameter(model[0].weight.detach().T.contiguous().T)
        assert not model[0].weight.is_contiguous()
        return model

    a, b = Run(2, sgd, turned, H=2), Run(2, sgd, H=2)
    same_bits(a.shells[0].anchor, b.shells[0].anchor)
    close(vector(a.steps(4).nets[0]), vector(b.steps(4).nets[0]))  # matmul sums in another order


def test_gradient_accumulation_is_one_step_on_the_sum() -> None:
    a, b = net(), net()
    shells = [tw.LocalSGD(m, momentum(m.parameters()), H=2) for m in (a, b)]
    for step in range(4):
        shells[0].zero_grad()
        for micro in range(3):
            (loss_of(a, micro, step) / 3).backward()
        shells[0].step()
        shells[1].zero_grad()
        (sum(loss_of(b, micro, step) for micro in range(3)) / 3).backward()
        shells[1].step()
    assert shells[0].round == 2
    close(vector(a), vector(b), 2e-6)


def test_zero_grad_clears_as_the_inner_optimizer_does() -> None:
    model = net()
    optimizer = tw.LocalSGD(model, sgd(model.parameters()))
    backward(model, 0, 0)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad.abs().sum() == 0 for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_step_hooks_run_around_every_step() -> None:
    model, heard = net(), []
    optimizer = tw.LocalSGD(model, sgd(model.parameters()), H=2)
    optimizer.register_step_pre_hook(lambda *_: heard.append("before"))
    optimizer.register_step_post_hook(lambda *_: heard.append("after"))
    backward(model, 0, 0)
    optimizer.step()
    optimizer.step()
    assert heard == ["before", "after"] * 2
