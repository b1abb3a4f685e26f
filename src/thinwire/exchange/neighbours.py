"""Speaking to one's neighbours: each hears the same message, and mixes what it heard.

mix(said) = sum over j, oneself among them, in rank order, of W_ij said_j
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Compressor
from thinwire.errors import ConfigError, FrameError, NonFiniteError
from thinwire.exchange.base import Here, tensor_name
from thinwire.exchange.refusal import REFUSAL_BODY, encode_refusal, refusal
from thinwire.topology import Topology
from thinwire.transport.base import Answer, Ask, Post, Take, turn
from thinwire.wire.body import pack, unpack
from thinwire.wire.frame import HEADER, Kind, unseal


@dataclass(frozen=True, eq=False)
class Heard:
    """What one round among neighbours said.

    Args:
        said: (d,) float32, this worker's own message as its neighbours decode it.
        mixed: (d,) float32, mix(said).
    """

    said: Tensor
    mixed: Tensor


def mix(
    v: Tensor, here: Here, topology: Topology, silent: bool = False
) -> Generator[Ask, Answer, Heard]:
    """Says C(v) to all listeners and returns what it was, and the mix of what was heard.

    Price: 1 step; sends degree |C| and receives degree |C|; a silent worker sends 26 bytes each.

    Args:
        v: (d,) float32.
        here: where this worker stands.
        topology: who hears whom, and W.
        silent: says nothing this round, which counts as saying zero.

    Raises:
        NonFiniteError: this worker's message, or one that a neighbour tells of, is not finite.
            Whoever hears of it tells its own listeners in the next round, so that all learn it.
    """
    seed, N, rank = here.key.seed, here.N, here.rank
    hearers = topology.listeners(rank, N, here.round, seed)
    row = topology.row(rank, N, here.round, seed)
    bound = HEADER + max(REFUSAL_BODY, here.compressor.nbytes(here.spans))
    C, spans = here.compressor, here.spans
    broken = kernels.active().first_nonfinite(v, spans.starts)
    own = None
    if broken >= 0:
        error = NonFiniteError([(rank, tensor_name(here, broken))], here.round)
        frame = here.seal(Kind.REFUSAL, encode_refusal(error))
    elif silent:
        frame = here.seal(Kind.SILENCE, b"")
    else:
        own = C.compress(v, here.key, spans)
        frame = here.seal(Kind.SAID, pack(own, C))
    speakers = tuple(j for j in row if j != rank)
    posts = tuple(Post(to, frame, bound) for to in hearers)
    frames = yield from turn(posts, tuple(Take(j, bound) for j in speakers))
    if broken >= 0:
        raise error
    told = dict(zip(speakers, frames, strict=True))
    mixed = host.zeros(spans.d)
    for j, weight in row.items():
        payload = own
        if j != rank:
            kind, body = unseal(told[j], here.address(j), Kind.SAID, Kind.SILENCE, Kind.REFUSAL)
            if kind is Kind.REFUSAL:
                reason = refusal(here.reader(body, j), here)
                yield from _pass_on(reason, here, topology, bound)
                raise reason
            payload = None
            if kind is Kind.SAID:
                reader = here.reader(body, j)
                payload = unpack(reader, C, spans, here.key_of(j))
                reader.end()
        if payload is not None:
            C.accumulate(mixed, payload, weight)
    said = host.zeros(spans.d) if own is None else C.decompress(own)
    return Heard(said, mixed)


def _pass_on(
    reason: NonFiniteError | FrameError, here: Here, topology: Topology, bound: int
) -> Generator[Ask, Answer, None]:
    later = replace(here, round=here.round + 1)
    frame = later.seal(Kind.REFUSAL, encode_refusal(reason))
    hearers = topology.listeners(here.rank, here.N, later.round, here.key.seed)
    yield from turn(tuple(Post(to, frame, bound) for to in hearers))


def check_graph(topology: Topology, N: int, whose: str, differences: bool) -> None:
    """Raises a ConfigError unless this conversation can run over that graph.

    Args:
        topology: the graph.
        N: workers.
        whose: names the exchange.
        differences: whether it sends differences to replicas that all neighbours keep.
    """
    if differences and not topology.fixed:
        raise ConfigError(
            f"{whose} sends differences, and every neighbour must hear every one of them; "
            f"{topology!r} changes by round. Use DPSGD (whole models, any graph), or a graph "
            "that stays: RingGraph, Torus, Hypercube, Exponential, Complete"
        )
    topology.check(N, symmetric=differences)


def check_accurate(compressor: Compressor, whose: str) -> None:
    """Raises a ConfigError for an operator with which this conversation misses its point."""
    if compressor.biased:
        raise ConfigError(
            f"{whose}: {compressor!r} is biased, and without feedback it converges to a wrong "
            "point without a sign of it. Use an unbiased operator (QSGD(bits=8, scale='none')), "
            "or Choco, which takes any contraction"
        )
