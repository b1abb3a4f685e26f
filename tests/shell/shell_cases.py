"""What the shell's tests share: a small model, each worker's data, a cluster, and assertions."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import thinwire as tw

Inner = Callable[[Iterable[Any]], torch.optim.Optimizer]
IN, OUT, BATCH = 6, 3, 8


def sgd(params: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1)


def momentum(params: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def adam(params: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=0.01)


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Tensors 0.weight (5, 6), 0.bias (5,), 2.weight (3, 5), 2.bias (3,): d = 53."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(IN, 5), nn.Tanh(), nn.Linear(5, OUT)).to(dtype)


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(BATCH, IN, generator=draws), torch.randint(OUT, (BATCH,), generator=draws)


def loss_of(model: nn.Module, rank: int, step: int) -> Tensor:
    x, y = batch(rank, step)
    dtype = next(model.parameters()).dtype
    return nn.functional.cross_entropy(model(x.to(dtype)).float(), y)


def backward(model: nn.Module, rank: int, step: int) -> None:
    model.zero_grad()
    loss_of(model, rank, step).backward()


class Run:
    """N workers in one process, each with its model and its data."""

    def __init__(
        self,
        N: int,
        inner: Inner = sgd,
        model: Callable[[], nn.Module] = net,
        **arguments: Any,
    ) -> None:
        self.nets = [model() for _ in range(N)]
        self.reports: list[list[tw.RoundReport]] = [[] for _ in range(N)]
        arguments.setdefault("compressor", tw.Identity())
        self.shells = [
            tw.LocalSGD(
                m,
                inner(m.parameters()),
                group=tw.Seat(rank, N),
                on_round=self.reports[rank].append,
                **arguments,
            )
            for rank, m in enumerate(self.nets)
        ]
        self.cluster = tw.LockStep(self.shells)
        self.done = 0

    def gradients(self) -> None:
        for rank, model in enumerate(self.nets):
            backward(model, rank, self.done)

    def step(self) -> None:
        self.gradients()
        self.cluster.step()
        self.done += 1

    def steps(self, n: int) -> Run:
        for _ in range(n):
            self.step()
        return self


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def dense_mean(vectors: Sequence[Tensor]) -> Tensor:
    return torch.stack([v.double() for v in vectors]).mean(0)


def put(flat: Tensor, model: nn.Module) -> None:
    at = 0
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(flat[at : at + p.numel()].view(p.shape))
            at += p.numel()


def averaged_witness(N: int, H: int, steps: int, inner: Inner, model=net) -> Tensor:
    """Plain averaged training by torch alone: H steps of each worker, then a float64 mean."""
    nets = [model() for _ in range(N)]
    optimizers = [inner(m.parameters()) for m in nets]
    for step in range(steps):
        for rank, (m, o) in enumerate(zip(nets, optimizers, strict=True)):

            def closure(m: nn.Module = m, rank: int = rank, step: int = step) -> Tensor:
                backward(m, rank, step)
                return loss_of(m, rank, step)

            closure()
            o.step(closure)
        if (step + 1) % H == 0:
            mean = dense_mean([vector(m) for m in nets])
            for m in nets:
                put(mean, m)
    return dense_mean([vector(m) for m in nets])


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    """Within `tolerance`, relative and absolute: what float32 sums in another order may differ."""
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, check_dtype=False
    )


def same_bits(actual: Any, expected: Any, at: str = "value") -> None:
    """Equal to the last bit, through dicts, lists and tensors; +0 is not -0 and NaN is NaN."""
    assert type(actual) is type(expected), (at, type(actual), type(expected))
    if isinstance(actual, Tensor):
        assert actual.dtype == expected.dtype, (at, actual.dtype, expected.dtype)
        assert actual.shape == expected.shape, (at, actual.shape, expected.shape)
        a, b = (t.detach().contiguous().flatten().view(torch.uint8) for t in (actual, expected))
        assert torch.equal(a, b), (at, actual, expected)
    elif isinstance(actual, dict):
        assert list(actual) == list(expected), (at, list(actual), list(expected))
        for name in actual:
            same_bits(actual[name], expected[name], f"{at}[{name!r}]")
    elif isinstance(actual, (list, tuple)):
        assert len(actual) == len(expected), (at, len(actual), len(expected))
        for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
            same_bits(a, b, f"{at}[{number}]")
    else:
        assert actual == expected, (at, actual, expected)


def replicas_agree(nets: Sequence[nn.Module]) -> None:
    for rank, model in enumerate(nets):
        same_bits(vector(model), vector(nets[0]), f"rank {rank}")


def whole_state(run: Run) -> list[Any]:
    """Everything the workers hold, as an own copy: parameters, buffers, shells."""
    return copy.deepcopy(
        [
            (dict(m.state_dict()), s.state_dict(), s.round)
            for m, s in zip(run.nets, run.shells, strict=True)
        ]
    )


def through_a_file(value: Any) -> Any:
    """What torch.load(weights_only=True) returns of what torch.save wrote."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
