"""Choco: gossip by differences that takes any contraction, with a consensus step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from thinwire import host
from thinwire.compress import Compressor
from thinwire.exchange.base import Exchange, Here, Memory, Talk
from thinwire.exchange.consensus import agreed_step, check_step, known_step, or_refuse
from thinwire.exchange.feedback import Feedback, check_feedback
from thinwire.exchange.neighbours import check_graph, mix, owes_repair, repair
from thinwire.flat import Spans
from thinwire.topology import RingGraph, Topology
from thinwire.value import in_range, of_kind


@dataclass(frozen=True, repr=False)
class Choco(Exchange):
    """Each worker tells its neighbours what their replica of it lacks, and steps towards theirs.

    u = delta + r; say C(u); p' = p - said + mix(said); direction = delta + gamma p';
    r' = u - said + gamma p', where p = x^_i - sum_j W_ij x^_j and r = x^_i - x_i of the textbook.
    The mean of the anchors moves by exactly -mean(delta).

    Price: 1 step; sends and receives degree |C|, or 26 bytes where the trigger keeps silent.
    Memory: p and r, two d-vectors, whatever the degree.

    Args:
        topology: who hears whom, and W: symmetric, and the same in all rounds.
        gamma: the consensus step; None measures it at the first round: min(1, 0.7 c), c the
            contraction of the first differences, averaged over workers.
        trigger: says nothing in a round where ||u||^2 <= trigger; 0 always speaks.

    Source: CHOCO-SGD (arXiv 1902.00340, 1907.09356); the trigger is SPARQ-SGD's (arXiv
        1910.14280) and SQuARM-SGD's (arXiv 2005.07041) with a constant threshold c_t eta^2.
    Differs: two vectors in place of a replica of each neighbour.
    """

    replicates: ClassVar[bool] = False
    topology: Topology = field(default_factory=RingGraph)
    gamma: float | None = None
    trigger: float = 0.0

    def __post_init__(self) -> None:
        of_kind(self, "topology", self.topology, Topology)
        check_step(self, self.gamma)
        in_range(self, "trigger", self.trigger, 0.0, 1e30)

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_feedback(Feedback(), compressor, spans, "Choco")

    def init(self, here: Here) -> Memory:
        check_graph(self.topology, here.N, "Choco", differences=True)
        return {
            "p": here.zeros(),
            "r": here.zeros(),
            "missed": host.ints([0]),
        }

    def round(self, anchor: Tensor, delta: Tensor, mem: Memory, here: Here) -> Talk:
        p, r, plead = mem["p"], mem["r"], owes_repair(mem)
        u = delta + r
        silent = self.trigger > 0 and float(u.double().square().sum()) <= self.trigger
        step = known_step(self.gamma, mem)
        talk = mix(u, here, self.topology, silent, plead)
        heard = yield from or_refuse(talk, here, measuring=step is None)
        if step is None:
            said = (u[:0], u[:0]) if silent else (u, heard.said)
            step = yield from agreed_step(*said, here)
        p = p - heard.said + heard.mixed
        replica = anchor + r - heard.said
        mixed = yield from repair(replica, heard, plead, here, self.topology)
        if mixed is not None:
            p = replica - mixed
        missed = host.ints([int(heard.missed or (plead and mixed is None))])
        pull = step.get("gamma", host.float_(0.0)) * p
        return delta + pull, {"p": p, "r": u - heard.said + pull, "missed": missed, **step}
