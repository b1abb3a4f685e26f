"""DPSGD: neighbours hear whole models; nothing is remembered, so any graph will do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from thinwire.compress import Compressor
from thinwire.exchange.base import Exchange, Here, Memory, Talk
from thinwire.exchange.neighbours import check_accurate, check_graph, mix
from thinwire.flat import Spans
from thinwire.topology import RingGraph, Topology
from thinwire.value import of_kind, one_of


@dataclass(frozen=True, repr=False)
class DPSGD(Exchange):
    """Each worker tells its neighbours its model, and takes the weighted mean of theirs.

    Mixing before the local steps: x_i <- sum_j W_ij x_j - delta_i; after: sum_j W_ij (x_j -
    delta_j). With a quantizer it is the models themselves that are quantized: no replica, no
    difference, and an error floor.

    Price: 1 step; sends and receives degree |C|. Memory: none.

    Args:
        topology: who hears whom, and W: doubly stochastic; it may change by round.
        mixing: "after" the local steps or "before" them.

    Source: D-PSGD (arXiv 1705.09056), which mixes before.
    """

    replicates: ClassVar[bool] = False
    topology: Topology = field(default_factory=RingGraph)
    mixing: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        of_kind(self, "topology", self.topology, Topology)
        one_of(self, "mixing", self.mixing, ("after", "before"))

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_accurate(compressor, "DPSGD")

    def init(self, here: Here) -> Memory:
        check_graph(self.topology, here.N, "DPSGD", differences=False)
        return {}

    def round(self, anchor: Tensor, delta: Tensor, mem: Memory, here: Here) -> Talk:
        if self.mixing == "before":
            heard = yield from mix(anchor, here, self.topology)
            return anchor - heard.mixed + delta, mem
        heard = yield from mix(anchor - delta, here, self.topology)
        return anchor - heard.mixed, mem
