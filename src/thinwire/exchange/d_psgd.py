"""DPSGD: neighbours hear whole models; nothing is remembered, so any graph will do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from thinwire.compress import Compressor
from thinwire.exchange.alarm import or_refuse
from thinwire.exchange.base import Here, Memory, Talk
from thinwire.exchange.neighbours import check_accurate, check_graph, mix
from thinwire.exchange.over_graph import Mixing
from thinwire.flat import Spans, Vector


@dataclass(frozen=True, repr=False)
class DPSGD(Mixing):
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

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_accurate(compressor, "DPSGD")

    def init(self, here: Here) -> Memory:
        check_graph(self.topology, here.N, "DPSGD", differences=False)
        return {}

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        delta = delta[:]
        if self.mixing == "before":
            talk = mix(anchor, here, self.topology, beside=delta)
            heard = yield from or_refuse(talk, here, self.topology)
            return anchor - heard.whole + delta, mem
        talk = mix(anchor - delta, here, self.topology)
        heard = yield from or_refuse(talk, here, self.topology)
        return anchor - heard.whole, mem
