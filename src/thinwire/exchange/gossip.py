"""Gossip: QPRSGD without any all-reduce; neighbours hear quantized differences of models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from thinwire import host
from thinwire.compress import Compressor
from thinwire.exchange.base import Exchange, Here, Memory, Talk
from thinwire.exchange.neighbours import check_accurate, check_graph, mix, owes_repair, repair
from thinwire.flat import Spans
from thinwire.topology import RingGraph, Topology
from thinwire.value import of_kind, one_of


@dataclass(frozen=True, repr=False)
class Gossip(Exchange):
    """Each worker tells its neighbours the quantized change of its model, and mixes theirs.

    u = delta + p; say C(u); p' = p - said + mix(said), where p = x^_i - sum_j W_ij x^_j and x^ are
    the replicas that all neighbours hold. Mixing before the local steps: direction = said, so
    x_i <- Q(sum_j W_ij x_j - delta_i). Mixing after: direction = mix(said), so
    x_i <- sum_j W_ij x^_j with x^_j the quantized model after j's local steps. sum_i p_i = 0.

    Price: 1 step; sends and receives degree |C|. Memory: p, one d-vector, whatever the degree.

    Args:
        topology: who hears whom, and W: symmetric, and the same in all rounds.
        mixing: "after" the local steps, more robust where data differ, or "before" them.

    Source: QPRSGD (arXiv 2004.09125), gossip; the differences as in DCD-PSGD (arXiv 1803.06443).
    Differs: one vector p in place of a replica of each neighbour, which is the same while W is
        fixed, starts are equal and no message is lost; and the choice of mixing.
    """

    replicates: ClassVar[bool] = False
    topology: Topology = field(default_factory=RingGraph)
    mixing: Literal["after", "before"] = "after"

    def __post_init__(self) -> None:
        of_kind(self, "topology", self.topology, Topology)
        one_of(self, "mixing", self.mixing, ("after", "before"))

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_accurate(compressor, "Gossip")

    def init(self, here: Here) -> Memory:
        check_graph(self.topology, here.N, "Gossip", differences=True)
        return {"p": here.zeros(), "missed": host.ints([0])}

    def round(self, anchor: Tensor, delta: Tensor, mem: Memory, here: Here) -> Talk:
        p, plead = mem["p"], owes_repair(mem)
        u = delta + p
        heard = yield from mix(u, here, self.topology, plead=plead)
        direction = heard.said if self.mixing == "before" else heard.mixed
        new = p - heard.said + heard.mixed
        replica = anchor - heard.said if self.mixing == "before" else anchor + p - heard.said
        mixed = yield from repair(replica, heard, plead, here, self.topology)
        if mixed is not None:
            new = replica - mixed
            direction = heard.said if self.mixing == "before" else anchor - mixed
        missed = heard.missed or (plead and mixed is None)
        return direction, {"p": new, "missed": host.ints([int(missed)])}
