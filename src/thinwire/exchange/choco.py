"""Choco: gossip by differences that takes any contraction, with a consensus step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from thinwire import host
from thinwire.compress import Compressor
from thinwire.errors import ConfigError
from thinwire.exchange.alarm import or_refuse
from thinwire.exchange.base import Here, Memory, Talk
from thinwire.exchange.consensus import agreed_step, known_step
from thinwire.exchange.feedback import Feedback, check_feedback
from thinwire.exchange.mending import Mending
from thinwire.exchange.neighbours import check_graph, mix
from thinwire.exchange.over_graph import Stepping
from thinwire.flat import Spans, Vector
from thinwire.value import in_range

Trigger = float | tuple[tuple[int, float], ...]


@dataclass(frozen=True, repr=False)
class Choco(Stepping):
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
        trigger: says nothing in a round where ||u||^2 <= trigger, the papers' c_t eta_t^2: in
            parameter units, squared, so it falls as the step size squared does. A number, or a
            schedule ((first round, threshold), ...) such as ((0, 1e-2), (500, 1e-4)); 0 always
            speaks.

    Source: CHOCO-SGD (arXiv 1902.00340, 1907.09356); the trigger is SPARQ-SGD's (arXiv
        1910.14280) and SQuARM-SGD's (arXiv 2005.07041).
    Differs: two vectors in place of a replica of each neighbour.
    """

    trigger: Trigger = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.trigger, tuple):
            object.__setattr__(self, "trigger", self._schedule(self.trigger))
        else:
            in_range(self, "trigger", self.trigger, 0.0, 1e30)

    def threshold(self, round: int) -> float:
        """Returns the trigger of that round.

        Example:
            >>> [Choco(trigger=((0, 1e-2), (500, 1e-4))).threshold(round) for round in (0, 500)]
            [0.01, 0.0001]
        """
        if not isinstance(self.trigger, tuple):
            return self.trigger
        return [threshold for first, threshold in self.trigger if first <= round][-1]

    def _schedule(self, given: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        try:
            pairs = tuple((first, threshold) for first, threshold in given)
            firsts = [first for first, _ in pairs]
            sound = firsts[0] == 0 and sorted(set(firsts)) == firsts
            sound = sound and all(type(first) is int for first in firsts)
        except (TypeError, ValueError, IndexError):
            sound = False
        if not sound:
            raise ConfigError(
                f"Choco: trigger is {given!r}; give a number, or a schedule from round 0 upwards "
                "such as ((0, 1e-2), (500, 1e-4))"
            )
        for _, threshold in pairs:
            in_range(self, "trigger", threshold, 0.0, 1e30)
        return pairs

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_feedback(Feedback(), compressor, spans, "Choco")

    def init(self, here: Here) -> Memory:
        check_graph(self.topology, here.N, "Choco", differences=True)
        return {
            "p": here.zeros(),
            "r": here.zeros(),
            "missed": host.ints([0]),
        }

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        delta = delta[:]
        p, r = mem["p"], mem["r"]
        u, mending = delta + r, Mending.of(mem, anchor, r)
        threshold = self.threshold(here.round)
        silent = threshold > 0 and float(u.double().square().sum()) <= threshold
        step = known_step(self.gamma, mem)
        talk = mix(u, here, self.topology, silent, mending)
        measuring = step is None
        heard = yield from or_refuse(talk, here, self.topology, measuring, replica=True)
        if step is None:
            said = (u[:0], u[:0]) if silent else (u, heard.said)
            step = yield from agreed_step(*said, here)
        p = p - heard.said + heard.mixed
        after = mending.after(heard.missed, heard.others is not None, heard.pleas)
        stepped = p
        if heard.others is not None:
            replica = mending.replica
            row = self.topology.row(here.rank, here.N, here.round, here.key.seed)
            mixed = heard.others + replica * row[here.rank] - heard.mixed
            short = replica - heard.said - mixed - p
            # By what p had been short of in each round since the loss it stepped too little.
            p, stepped = p + short, p + short * (1 + mending.rounds)
        pull = step.get("gamma", host.float_(0.0)) * stepped
        return delta + pull, {"p": p, "r": u - heard.said + pull, **after, **step}
