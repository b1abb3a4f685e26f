"""EdgeGossip: gossip by differences where the graph changes, with a pair of replicas per edge."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Compressor
from thinwire.errors import ConfigError, NonFiniteError
from thinwire.exchange.alarm import or_refuse
from thinwire.exchange.base import Here, Memory, Talk, tensor_name
from thinwire.exchange.consensus import agreed_step, known_step
from thinwire.exchange.feedback import Feedback, check_feedback
from thinwire.exchange.neighbours import bound_of, leftwards, rightwards
from thinwire.exchange.over_graph import Stepping
from thinwire.exchange.refusal import encode_refusal, refusal
from thinwire.flat import Spans, Vector
from thinwire.topology import RandomMatching, Topology
from thinwire.transport.base import Answer, Ask, Post, Take, turn
from thinwire.wire.body import in_pieces, unpack
from thinwire.wire.frame import Kind, unseal


@dataclass(frozen=True, eq=False)
class Met:
    """What one round's meetings came to.

    Args:
        pull: (d,) float32, sum_j W_ij (x^_ji - x^_ij).
        replicas: the new ones, by name.
        first: what there was to say to the first neighbour, and what was said.
    """

    pull: Tensor
    replicas: Memory
    first: tuple[Tensor, Tensor]


@dataclass(frozen=True, repr=False)
class EdgeGossip(Stepping):
    """Each pair of workers that ever met keeps two replicas; only they hear each other's changes.

    For each neighbour j of the round: u_j = x^_ij - (x - delta); say C(u_j) to j alone;
    x^_ij <- x^_ij - said_j; direction = delta - gamma sum_j W_ij (x^_ji - x^_ij), where x^_ij is
    what j holds of this worker and x^_ji what this worker holds of j. The mean of the anchors moves
    by exactly -mean(delta).

    Price: 1 step; sends and receives degree |C|, each message its own. Memory: the common start,
    and two d-vectors for every worker ever met.

    Args:
        topology: who hears whom, and W: symmetric in every round; it may change by round.
        gamma: the consensus step; None measures it at the first round, as `Choco` does.

    Source: CHOCO-SGD (arXiv 1902.00340) on each edge by itself.
    Differs: replicas per edge, which a graph that changes needs.
    """

    topology: Topology = field(default_factory=RandomMatching)

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_feedback(Feedback(), compressor, spans, "EdgeGossip")

    def init(self, here: Here) -> Memory:
        if self.topology.directed:
            raise ConfigError(
                f"EdgeGossip needs both ends of an edge to hear each other; {self.topology!r} is "
                "directed. Use RandomMatching, or DPSGD, which takes whole models"
            )
        self.topology.check(here.N, symmetric=True)
        return {}

    def alike(self, anchor: Tensor, mem: Memory, here: Here) -> Memory:
        pairs = super().alike(anchor, mem, here)
        for name, replica in mem.items():
            whose, _, j = name.partition("/")
            if whose in ("mine", "theirs"):
                of, at = (here.rank, j) if whose == "mine" else (j, here.rank)
                pairs[f"replica of rank {of} at rank {at}"] = replica
        return pairs

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        delta = delta[:]
        mem = {"start": anchor, **mem}
        step = known_step(self.gamma, mem)
        talk = self._meet(anchor - delta, mem, here)
        met = yield from or_refuse(talk, here, self.topology, measuring=step is None)
        if step is None:
            step = yield from agreed_step(*met.first, here)
        gamma = step.get("gamma", host.float_(0.0))
        return delta - gamma * met.pull, {**mem, **met.replicas, **step}

    def _meet(self, x: Tensor, mem: Memory, here: Here) -> Generator[Ask, Answer, Met]:
        C, bound = here.compressor, bound_of(here)
        row = self.topology.row(here.rank, here.N, here.round, here.key.seed)
        others = [j for j in row if j != here.rank]
        speakers = leftwards(others, here.rank, here.N)
        takes = tuple(Take(j, bound) for j in speakers)
        met = Met(torch.zeros_like(x), {}, (x[:0], x[:0]))
        broken = kernels.active(here.device).first_nonfinite(x, here.spans.starts)
        if broken >= 0:
            error = NonFiniteError([(here.rank, tensor_name(here, broken))], here.round)
            frame = here.seal(Kind.REFUSAL, encode_refusal(error))
            yield from turn(tuple(Post(to, frame, bound) for to in others), takes)
            raise error
        posts = {}
        for j in others:
            mine = mem.get(f"mine/{j}", mem["start"])
            payload = C.compress(mine - x, here.key.of_part(j), here.spans)
            said = C.decompress(payload)
            met = met if len(met.first[0]) else replace(met, first=(mine - x, said))
            met.replicas[f"mine/{j}"] = mine - said
            posts[j] = Post(j, here.seal(Kind.SAID, *in_pieces(payload, C)), bound)
        to_all = tuple(posts[j] for j in rightwards(others, here.rank, here.N))
        told = dict(zip(speakers, (yield from turn(to_all, takes)), strict=True))
        for j in others:
            kind, body = unseal(told[j], here.address(j), Kind.SAID, Kind.REFUSAL)
            reader = here.reader(body, j)
            if kind is Kind.REFUSAL:
                raise refusal(reader, here)
            key = here.key_of(j).of_part(here.rank)
            said = C.decompress(unpack(reader, C, here.spans, key, here.device))
            reader.end()
            theirs = mem.get(f"theirs/{j}", mem["start"]) - said
            met.replicas[f"theirs/{j}"] = theirs
            met.pull.add_(theirs - met.replicas[f"mine/{j}"], alpha=row[j])
        return met
