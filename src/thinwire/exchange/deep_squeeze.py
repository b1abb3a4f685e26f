"""DeepSqueeze: neighbours hear compressed models, with feedback of what was left out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from thinwire import host
from thinwire.compress import Compressor
from thinwire.exchange.alarm import or_refuse
from thinwire.exchange.base import Here, Memory, Talk
from thinwire.exchange.consensus import agreed_step, known_step
from thinwire.exchange.feedback import Feedback, check_feedback
from thinwire.exchange.neighbours import check_graph, mix
from thinwire.exchange.over_graph import Stepping
from thinwire.flat import Spans, Vector


@dataclass(frozen=True, repr=False)
class DeepSqueeze(Stepping):
    """Each worker tells its neighbours its compressed model and steps towards theirs.

    v = x - delta + m; say C(v); m' = v - said; x <- x - delta + gamma (mix(said) - said). No
    replicas: what is compressed is the model, so the consensus error has a floor; only near 8
    bits does it match `Choco`.

    Price: 1 step; sends and receives degree |C|. Memory: m, one d-vector.

    Args:
        topology: who hears whom, and W: doubly stochastic; it may change by round.
        gamma: the consensus step; None measures it at the first round, as `Choco` does.

    Source: DeepSqueeze (arXiv 1907.07346).
    """

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_feedback(Feedback(), compressor, spans, "DeepSqueeze")

    def init(self, here: Here) -> Memory:
        check_graph(self.topology, here.N, "DeepSqueeze", differences=False)
        return {"residual": here.zeros()}

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        delta = delta[:]
        v = anchor - delta + mem["residual"]
        step = known_step(self.gamma, mem)
        talk = mix(v, here, self.topology)
        heard = yield from or_refuse(talk, here, self.topology, measuring=step is None)
        if step is None:
            step = yield from agreed_step(v, heard.said, here)
        gamma = step.get("gamma", host.float_(0.0))
        direction = delta - gamma * (heard.whole - heard.said)
        return direction, {"residual": v - heard.said, **step}
