"""What the peers train: an MLP on MNIST, and a GPT on bytes; the same for every peer.

A task is judged on the model that all workers share: at a round's end where there are rounds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thinwire.cli.idx import load_mnist
from thinwire.errors import ConfigError

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "gpt"
EVALUATE_EVERY = 16


class Task(Protocol):
    """One model, its data and how far it is to be trained."""

    name: str
    goal: str
    far: float
    """What no run that goes anywhere is still worse than after half its steps."""
    steps: int
    """Of the runs whose final quality is compared: each H tried divides it."""

    def model(self, seed: int) -> nn.Module: ...

    def inner(self, model: nn.Module, peer: dict[str, Any]) -> torch.optim.Optimizer: ...

    def batches(self, seed: int, rank: int, N: int) -> Iterator[tuple[Tensor, Tensor]]: ...

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor: ...

    def score(self, model: nn.Module) -> float: ...

    def reached(self, score: float) -> bool: ...


@dataclass(frozen=True)
class Mlp:
    """784-1024-1024-10 on MNIST, 1.86 M parameters, SGD, to 97 % of the test set."""

    data: Path
    batch: int = 32
    target: float = 0.97
    name: str = "mlp"
    goal: str = "97 % test accuracy"
    far: float = 0.85
    steps: int = 1536

    @cached_property
    def digits(self) -> Any:
        return load_mnist(self.data)

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
        )

    def inner(self, model: nn.Module, peer: dict[str, Any]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            model.parameters(), lr=peer["lr"], momentum=peer["beta"], nesterov=peer["beta"] > 0
        )

    def batches(self, seed: int, rank: int, N: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(1000 * seed + rank)
        own = torch.arange(rank, len(self.digits.train_x), N)
        while True:
            drawn = own[torch.randint(len(own), (self.batch,), generator=order)]
            yield self.digits.train_x[drawn], self.digits.train_y[drawn]

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(module(x), y)

    def score(self, model: nn.Module) -> float:
        """Returns the test accuracy; of a tenth of the test set where that is far from it."""
        few = self._accuracy(model, 1000)
        return few if few < self.target - 0.015 else self._accuracy(model, 10_000)

    def reached(self, score: float) -> bool:
        return score >= self.target

    def _accuracy(self, model: nn.Module, n: int) -> float:
        x, y = self.digits.test_x[:n], self.digits.test_y[:n]
        with torch.no_grad():
            return float((model(x).argmax(1) == y).double().mean())


@dataclass(frozen=True)
class Gpt:
    """The byte-level GPT of recipes/gpt, 0.84 M parameters, AdamW, to so many bits a byte."""

    data: Path | None = None
    batch: int = 2
    target: float = 4.0
    name: str = "gpt"
    goal: str = "4 bits a byte"
    far: float = -5.0
    steps: int = 512

    @cached_property
    def _recipe(self) -> tuple[Any, Any]:
        if str(RECIPE) not in sys.path:
            sys.path.insert(0, str(RECIPE))
        import gpt_data
        import gpt_model

        return gpt_model, gpt_data.load([], gpt_model.Shape().context)

    def model(self, seed: int) -> nn.Module:
        module, _ = self._recipe
        model: nn.Module = module.GPT(module.Shape(), seed)
        return model

    def inner(self, model: nn.Module, peer: dict[str, Any]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            model.parameters(), lr=peer["lr"], betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )

    def batches(self, seed: int, rank: int, N: int) -> Iterator[tuple[Tensor, Tensor]]:
        module, text = self._recipe
        draws = torch.Generator().manual_seed(1000 * seed + rank)
        while True:
            yield text.batch(rank, N, self.batch, module.Shape().context, draws)

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(module(x).flatten(0, 1), y.flatten())

    def score(self, model: nn.Module) -> float:
        """Returns minus the bits a byte of 64 held-out windows: more is better."""
        module, text = self._recipe
        x, y = text.judged(64, module.Shape().context)
        with torch.no_grad():
            return -float(self.loss(model, x, y)) / math.log(2)

    def reached(self, score: float) -> bool:
        return score >= -self.target


def task(name: str, data: Path | None) -> Task:
    """Returns a task by name.

    Raises:
        ConfigError: there is none of that name, or it needs a folder of data.
    """
    if name == "gpt":
        return Gpt()
    if name != "mlp":
        raise ConfigError(f"no task {name!r}; choose mlp or gpt")
    if data is None:
        raise ConfigError("name MNIST's folder: --data ../shared/data/mnist")
    return Mlp(data)
