"""What exchanges over a graph share: who hears whom, and how a worker mixes what it heard."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from thinwire.exchange.base import Exchange, Here, Memory
from thinwire.topology import RingGraph, Topology
from thinwire.value import in_range, of_kind, one_of


@dataclass(frozen=True, repr=False)
class OverGraph(Exchange, ABC):
    """An exchange in which a worker hears its neighbours alone, so anchors differ.

    Args:
        topology: who hears whom, and W.
    """

    replicates: ClassVar[bool] = False
    topology: Topology = field(default_factory=RingGraph)

    def __post_init__(self) -> None:
        of_kind(self, "topology", self.topology, Topology)


@dataclass(frozen=True, repr=False)
class Mixing(OverGraph, ABC):
    """One that takes the weighted mean itself.

    Args:
        topology: who hears whom, and W.
        mixing: "after" the local steps or "before" them.
    """

    mixing: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "mixing", self.mixing, ("after", "before"))


@dataclass(frozen=True, repr=False)
class Stepping(OverGraph, ABC):
    """One that takes a consensus step towards it.

    Args:
        topology: who hears whom, and W.
        gamma: the consensus step; None measures it at the first round.
    """

    gamma: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma is not None:
            in_range(self, "gamma", self.gamma, 1e-9, 1.0)

    def alike(self, anchor: Tensor, mem: Memory, here: Here) -> Memory:
        return {"consensus step": mem["gamma"].view(1)} if "gamma" in mem else {}
