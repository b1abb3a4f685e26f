"""Outer steps: anchor, direction -> anchor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire import host
from thinwire.value import Value, in_range, whole

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
        moved = direction if self.lr == 1 else direction * host.float_(self.lr)
        return torch.sub(anchor, moved, out=host.like(anchor)), state


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


@dataclass(frozen=True, repr=False)
class DelayedNesterov(Outer):
    """Nesterov for a hub that steps at every update: the momentum moves once in `every` of them.

    anchor -= lr direction; every n-th time b = mu b + (sum of the n directions), and also
    anchor -= lr mu b. Plain Nesterov would apply its momentum at each late, small update.

    Args:
        lr: the outer learning rate.
        momentum: mu.
        every: updates from one move of the momentum to the next; the paper takes N.

    Example:
        >>> outer = DelayedNesterov(lr=1.0, momentum=0.5, every=2)
        >>> anchor, state = torch.tensor([4.0]), outer.init(torch.tensor([4.0]))
        >>> for _ in range(2):
        ...     anchor, state = outer.step(anchor, torch.tensor([1.0]), state)
        >>> anchor
        tensor([1.])

    Source: Asynchronous Local-SGD (arXiv 2401.09135), delayed Nesterov with c = 0.
    """

    lr: float = 0.7
    momentum: float = 0.9
    every: int = 8

    def __post_init__(self) -> None:
        in_range(self, "lr", self.lr, 0.0, 1e6)
        in_range(self, "momentum", self.momentum, 0.0, 1.0)
        whole(self, "every", self.every, 1, 1 << 20)

    def init(self, anchor: Tensor) -> OuterState:
        zero = torch.zeros_like(anchor)
        return {"momentum": zero, "gathered": zero, "count": host.ints([0])}

    def step(
        self, anchor: Tensor, direction: Tensor, state: OuterState
    ) -> tuple[Tensor, OuterState]:
        b, gathered, count = state["momentum"], state["gathered"] + direction, state["count"] + 1
        if int(count) < self.every:
            return anchor - self.lr * direction, {
                "momentum": b, "gathered": gathered, "count": count,
            }  # fmt: skip
        b = self.momentum * b + gathered
        zero = torch.zeros_like(anchor)
        after = anchor - self.lr * (direction + self.momentum * b)
        return after, {"momentum": b, "gathered": zero, "count": host.ints([0])}
