"""Gossip: QPRSGD without any all-reduce; neighbours hear quantized differences of models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from thinwire import host
from thinwire.compress import Compressor
from thinwire.errors import FrameError
from thinwire.exchange.alarm import or_refuse, pass_on
from thinwire.exchange.base import Here, Memory, Talk
from thinwire.exchange.neighbours import check_accurate, check_graph, mix, owes_repair, repair
from thinwire.exchange.over_graph import Mixing
from thinwire.flat import Spans
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

    def round(self, anchor: Tensor, delta: Tensor, mem: Memory, here: Here) -> Talk:
        p, plead = mem["p"], owes_repair(mem)
        u = delta + p + mem["s"] if self.correction else delta + p
        u = u + mem["owed"] if "owed" in mem else u
        talk = mix(u, here, self.topology, plead=plead)
        heard = yield from or_refuse(talk, here, self.topology)
        direction = heard.said if self.mixing == "before" else heard.mixed
        new = p - heard.said + heard.mixed
        replica = anchor - heard.said if self.mixing == "before" else anchor + p - heard.said
        mending = repair(replica, heard, plead, here, self.topology)
        mixed = yield from or_refuse(mending, here, self.topology)
        owed = {}
        if mixed is not None:
            # What p had been short of since the loss, s is short of, too; and this worker has said
            # that much less: it says it in the next round, so that the mean of all moves by it.
            owed = {"owed": replica - mixed - new}
            p = p + owed["owed"]
            new = replica - mixed
            direction = heard.said if self.mixing == "before" else anchor - mixed
        missed = heard.missed or (plead and mixed is None)
        after = {"p": new, "missed": host.ints([int(missed)]), **owed}
        if not self.correction:
            return direction, after
        if plead and missed:
            lost = FrameError(
                f"rank {here.rank}, round {here.round}: a second message is missing before the "
                "first was made good, so that the corrections of all workers no longer sum to "
                "zero; resume from a checkpoint, or use correction=0"
            )
            yield from pass_on(lost, here, self.topology)
            raise lost
        return direction, {**after, "s": mem["s"] + self.correction * p}
