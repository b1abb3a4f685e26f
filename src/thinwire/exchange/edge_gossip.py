"""EdgeGossip: gossip by differences where the graph changes, with a pair of replicas per edge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Compressor
from thinwire.errors import ConfigError, NonFiniteError
from thinwire.exchange.base import Exchange, Here, Memory, Talk, tensor_name
from thinwire.exchange.consensus import agreed_step, check_step, known_step
from thinwire.exchange.feedback import Feedback, check_feedback
from thinwire.exchange.neighbours import hearers, pass_on
from thinwire.exchange.refusal import REFUSAL_BODY, encode_refusal, refusal
from thinwire.flat import Spans
from thinwire.topology import RandomMatching, Topology
from thinwire.transport.base import Post, Take, turn
from thinwire.wire.body import pack, unpack
from thinwire.wire.frame import HEADER, Kind, unseal


@dataclass(frozen=True, repr=False)
class EdgeGossip(Exchange):
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

    replicates: ClassVar[bool] = False
    topology: Topology = field(default_factory=RandomMatching)
    gamma: float | None = None

    def __post_init__(self) -> None:
        check_step(self, self.gamma)

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

    def round(self, anchor: Tensor, delta: Tensor, mem: Memory, here: Here) -> Talk:
        C, bound = here.compressor, HEADER + max(REFUSAL_BODY, here.compressor.nbytes(here.spans))
        start = mem.get("start", anchor)
        row = self.topology.row(here.rank, here.N, here.round, here.key.seed)
        others = [j for j in row if j != here.rank]
        x = anchor - delta
        new, posts, first = {**mem, "start": start}, [], (host.zeros(0), host.zeros(0))
        broken = kernels.active().first_nonfinite(x, here.spans.starts)
        if broken >= 0:
            error = NonFiniteError([(here.rank, tensor_name(here, broken))], here.round)
            frame = here.seal(Kind.REFUSAL, encode_refusal(error))
            yield from turn(
                tuple(Post(to, frame, bound) for to in hearers(here, self.topology)),
                tuple(Take(j, bound) for j in others),
            )
            raise error
        for j in others:
            u = mem.get(f"mine/{j}", start) - x
            payload = C.compress(u, here.key.of_part(j), here.spans)
            said = C.decompress(payload)
            new[f"mine/{j}"] = mem.get(f"mine/{j}", start) - said
            posts.append(Post(j, here.seal(Kind.SAID, pack(payload, C)), bound))
            first = (u, said) if not len(first[0]) else first
        frames = yield from turn(tuple(posts), tuple(Take(j, bound) for j in others))
        pull = torch.zeros_like(x)
        for j, frame in zip(others, frames, strict=True):
            kind, body = unseal(frame, here.address(j), Kind.SAID, Kind.REFUSAL)
            reader = here.reader(body, j)
            if kind is Kind.REFUSAL:
                reason = refusal(reader, here)
                yield from pass_on(reason, here, self.topology, bound)
                raise reason
            said = C.decompress(unpack(reader, C, here.spans, here.key_of(j).of_part(here.rank)))
            reader.end()
            new[f"theirs/{j}"] = mem.get(f"theirs/{j}", start) - said
            pull += row[j] * (new[f"theirs/{j}"] - new[f"mine/{j}"])
        step = known_step(self.gamma, mem) or (yield from agreed_step(*first, here))
        gamma = step.get("gamma", host.float_(0.0))
        return delta - gamma * pull, {**new, **step}
