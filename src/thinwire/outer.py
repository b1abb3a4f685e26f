"""Outer steps: anchor, direction -> anchor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire.value import Value, in_range

OuterState = dict[str, Tensor]


class Outer(Value, ABC):
    """A pure pair (init, step) that moves the anchor along the agreed direction."""

    @abstractmethod
    def init(self, anchor: Tensor) -> OuterState:
        """Returns the state before the first round.

        Args:
            anchor: (d,) float32.
        """

    @abstractmethod
    def step(
        self, anchor: Tensor, direction: Tensor, state: OuterState
    ) -> tuple[Tensor, OuterState]:
        """Returns the new anchor and the new state.

        Args:
            anchor: (d,) float32.
            direction: (d,) float32, the mean pseudo-gradient, in parameter units.
            state: what `init` or the last step returned.
        """


@dataclass(frozen=True, repr=False)
class Average(Outer):
    """Takes the mean as it is: anchor = anchor - lr direction, lr = 1.

    Args:
        lr: the outer learning rate.

    Example:
        >>> Average().step(torch.tensor([1.0]), torch.tensor([0.25]), {})
        (tensor([0.7500]), {})

    Source: Qsparse-local-SGD (arXiv 1906.02367), Algorithm 1, line 19.
    """

    lr: float = 1.0

    def __post_init__(self) -> None:
        in_range(self, "lr", self.lr, 0.0, 1e6)

    def init(self, anchor: Tensor) -> OuterState:
        return {}

    def step(
        self, anchor: Tensor, direction: Tensor, state: OuterState
    ) -> tuple[Tensor, OuterState]:
        return torch.sub(anchor, direction, alpha=self.lr), state


@dataclass(frozen=True, repr=False)
class Adopt(Outer):
    """Takes what it is handed as the anchor: the outer step was made by a master or a hub.

    Example:
        >>> Adopt().step(torch.tensor([1.0]), torch.tensor([0.25]), {})
        (tensor([0.2500]), {})
    """

    def init(self, anchor: Tensor) -> OuterState:
        return {}

    def step(
        self, anchor: Tensor, direction: Tensor, state: OuterState
    ) -> tuple[Tensor, OuterState]:
        return direction, state


@dataclass(frozen=True, repr=False)
class Nesterov(Outer):
    """Takes a Nesterov momentum step: b = mu b + direction; anchor -= lr (direction + mu b).

    Args:
        lr: the outer learning rate.
        momentum: mu.

    Example:
        >>> outer = Nesterov(lr=0.5, momentum=0.5)
        >>> anchor = torch.tensor([1.0])
        >>> outer.step(anchor, torch.tensor([1.0]), outer.init(anchor))[0]
        tensor([0.2500])

    Source: the outer optimizer of DiLoCo (arXiv 2311.08105); the same as `torch.optim.SGD` with
        `nesterov=True` on the mean pseudo-gradient.
    """

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        in_range(self, "lr", self.lr, 0.0, 1e6)
        in_range(self, "momentum", self.momentum, 0.0, 1.0)

    def init(self, anchor: Tensor) -> OuterState:
        return {"momentum": torch.zeros_like(anchor)}

    def step(
        self, anchor: Tensor, direction: Tensor, state: OuterState
    ) -> tuple[Tensor, OuterState]:
        b = self.momentum * state["momentum"] + direction
        return anchor - self.lr * (direction + self.momentum * b), {"momentum": b}
