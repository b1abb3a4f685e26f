"""Gossip: QPRSGD without any all-reduce; neighbours hear quantized differences of models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire import host
from thinwire.compress import Compressor
from thinwire.errors import FrameError
from thinwire.exchange.alarm import or_refuse, pass_on
from thinwire.exchange.base import Here, Memory, Talk
from thinwire.exchange.mending import Mending
from thinwire.exchange.neighbours import check_accurate, check_graph, mix
from thinwire.exchange.over_graph import Mixing
from thinwire.flat import Spans, Vector
from thinwire.value import in_range


@dataclass(frozen=True, repr=False)
class Gossip(Mixing):
    """Each worker tells its neighbours the quantized change of its model, and mixes theirs.

    u = delta + p; say C(u); p' = p - said + mix(said), where p = x^_i - sum_j W_ij x^_j and x^ are
    the replicas that all neighbours hold. Mixing before the local steps: direction = said, so
    x_i <- Q(sum_j W_ij x_j - delta_i). Mixing after: direction = mix(said), so
    x_i <- sum_j W_ij x^_j with x^_j the quantized model after j's local steps. sum_i p_i = 0.

    With a correction c, u = delta + p + s and s' = s + c p: s learns where a worker's own data pull
    it from its neighbours, round after round, and takes that back. sum_i s_i = 0, so the mean moves
    as before, and not one byte more is sent; where data differ, much of what a sparse graph costs
    is won back.

    Price: 1 step; sends and receives degree |C|. Memory: p, one d-vector, whatever the degree; with
    a correction s, one more; after a message that was lost, for one round, one more.

    Args:
        topology: who hears whom, and W: symmetric, and the same in all rounds.
        mixing: "after" the local steps, more robust where data differ, or "before" them.
        correction: c, from 0 (none, as the paper has it) to below 1; 0.5 is EXTRA's.

    Source: QPRSGD (arXiv 2004.09125), gossip; the differences as in DCD-PSGD (arXiv 1803.06443);
        the correction with c = 1/2 and mixing before is EXTRA (arXiv 1404.6264, equation 2.13).
    Differs: one vector p in place of a replica of each neighbour, which is the same while W is
        fixed, starts are equal and no message is lost; and the choice of mixing.
    """

    correction: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, "correction", self.correction, 0.0, 0.99)

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_accurate(compressor, "Gossip")

    def init(self, here: Here) -> Memory:
        check_graph(self.topology, here.N, "Gossip", differences=True)
        mem = {"p": here.zeros(), "missed": host.ints([0])}
        return {**mem, "s": here.zeros()} if self.correction else mem

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        p, s = mem["p"], mem["s"] if self.correction else None
        mending = Mending.of(mem, anchor, None if self.mixing == "before" else p)
        u = torch.add(delta[:], p, out=host.like(p))
        u = u if s is None else u.add_(s)
        u = u.add_(mem["owed"]) if "owed" in mem else u
        talk = mix(u, here, self.topology, mending=mending)
        heard = yield from or_refuse(talk, here, self.topology, replica=True)
        direction = heard.said if self.mixing == "before" else heard.mixed
        after = mending.after(heard.missed, heard.others is not None, heard.pleas)
        p_after = torch.sub(p, heard.said, out=host.like(p)).add_(heard.mixed)
        n, short = mending.rounds, None
        if heard.others is not None:
            replica = mending.replica
            row = self.topology.row(here.rank, here.N, here.round, here.key.seed)
            mixed = heard.others + replica * row[here.rank] - heard.mixed
            # What p had been short of since the loss, s is short of, too, and this worker has said
            # that much less in each round: it says it in the next, so that the mean moves by it.
            short = replica - heard.said - mixed - p_after
            after["owed"] = short * (n + self.correction * n * (n - 1) / 2)
            p_after = replica - heard.said - mixed
            direction = heard.said if self.mixing == "before" else anchor - mixed
        if s is None:
            return direction, {"p": p_after, **after}
        if n and heard.missed:
            lost = FrameError(
                f"rank {here.rank}, round {here.round}: a second message is missing before the "
                "first was made good, so that the corrections of all workers no longer sum to "
                "zero; resume from a checkpoint, or use correction=0"
            )
            yield from pass_on(lost, here, self.topology, replica=True)
            raise lost
        s_after = s + self.correction * p
        if short is not None:
            s_after = s_after + self.correction * n * short
        return direction, {"p": p_after, "s": s_after, **after}
