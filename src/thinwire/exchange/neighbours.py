"""Speaking to one's neighbours: each hears the same message, and mixes what it heard.

mix(said) = sum over j, oneself among them, in rank order, of W_ij said_j
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Compressor, Payload
from thinwire.errors import ConfigError, NonFiniteError
from thinwire.exchange.base import Here, tensor_name
from thinwire.exchange.feedback import broken_by_saying
from thinwire.exchange.mending import Mending
from thinwire.exchange.refusal import REFUSAL_BODY, encode_refusal, refusal
from thinwire.host import Bytes
from thinwire.topology import Topology
from thinwire.transport.base import Answer, Ask, Post, Take, turn
from thinwire.wire.body import in_pieces, unpack
from thinwire.wire.frame import HEADER, REPAIR_PART, Kind, unseal

SPOKEN = (Kind.SAID, Kind.PLEA)


@dataclass(frozen=True, eq=False)
class Heard:
    """What one round among neighbours said.

    Args:
        said: (d,) float32, this worker's own message as its neighbours decode it.
        mixed: (d,) float32, mix(said), without what was missed.
        missed: whether some neighbour's message did not come.
        absent: the weight of those whose did not.
        pleas: the neighbours that missed one before and want a replica whole.
        others: (d,) float32, sum of W_ij x^_j over the neighbours j, as they were before this
            round, where this worker had asked and all of them told; else None.
    """

    said: Tensor
    mixed: Tensor
    missed: bool
    absent: float
    pleas: tuple[int, ...]
    others: Tensor | None = None

    @property
    def whole(self) -> Tensor:
        """mix(said) with oneself in the place of whom one did not hear: its weights sum to 1."""
        return self.mixed + self.said * self.absent if self.missed else self.mixed


def mix(
    v: Tensor,
    here: Here,
    topology: Topology,
    silent: bool = False,
    mending: Mending | None = None,
    beside: Tensor | None = None,
) -> Generator[Ask, Answer, Heard]:
    """Says C(v) to all listeners and returns what it was, and the mix of what was heard.

    Price: 1 step; sends degree |C| and receives degree |C|; a silent worker sends 26 bytes each,
    and a replica is 4d bytes more to who missed a message, and only then.

    Args:
        v: (d,) float32.
        here: where this worker stands.
        topology: who hears whom, and W.
        silent: says nothing this round, which counts as saying zero.
        mending: what this worker asks of its neighbours and owes them; None where a message that
            is missed is not made good.
        beside: (d,) float32 that this worker does not say but will use; it must be finite, too.

    Raises:
        NonFiniteError: this worker's message, or one that a neighbour tells of, is not finite.
        FrameError: a neighbour's frame is broken. Of either `or_refuse` tells the others.
    """
    rank, row = here.rank, topology.row(here.rank, here.N, here.round, here.key.seed)
    plead = mending is not None and mending.pleads
    own, frame, error = _own_message(v, here, silent, plead, v if beside is None else beside)
    bound, to_all = bound_of(here, mending is not None), hearers(here, topology)
    frames_to: dict[int, Bytes] = dict.fromkeys(to_all, frame)
    if mending is not None and error is None:
        frames_to |= mending.with_replica(frame, here)
    posts = tuple(Post(to, frames_to[to], bound) for to in rightwards(frames_to, rank, here.N))
    speakers = leftwards((j for j in row if j != rank), rank, here.N)
    frames = yield from turn(posts, tuple(Take(j, bound) for j in speakers))
    if error is not None:
        raise error
    return _fold(own, dict(zip(speakers, frames, strict=True)), row, here, mending)


def _fold(
    own: Payload | None,
    told: dict[int, Bytes],
    row: dict[int, float],
    here: Here,
    mending: Mending | None,
) -> Heard:
    C = here.compressor
    mixed, missed, pleas, replicas = here.zeros(), [], [], {}
    for j, weight in row.items():
        payload = own
        if j != here.rank:
            if not told[j]:
                missed.append(weight)
                continue
            at = here.address(j)
            if mending is not None and mending.is_told(told[j]):
                at = replace(at, part=REPAIR_PART)
            kind, body = unseal(told[j], at, *SPOKEN, Kind.SILENCE, Kind.REFUSAL)
            reader = here.reader(body, j)
            if kind is Kind.REFUSAL:
                raise refusal(reader, here)
            if at.part == REPAIR_PART:
                replicas[j] = host.send(reader.floats(here.spans.d, "replica"), here.device)
            payload = None
            if kind in SPOKEN:
                payload = unpack(reader, C, here.spans, here.key_of(j), here.device)
            reader.end()
            if kind is Kind.PLEA:
                pleas.append(j)
        if payload is not None:
            C.accumulate(mixed, payload, weight)
    said = here.zeros() if own is None else C.decompress(own)
    others = None
    if mending is not None and mending.awaits and len(replicas) == len(told):
        others = here.zeros()
        for j, replica in replicas.items():
            others += replica * row[j]
    return Heard(said, mixed, bool(missed), sum(missed), tuple(pleas), others)


def bound_of(here: Here, replica: bool = False) -> int:
    """Returns the most bytes that a message, or the news that there is none, can have.

    Args:
        here: where a worker stands.
        replica: whether it may have to tell its replica with it. The hearer cannot know whether
            its plea was heard, and both must name one bound: it is this in every round.
    """
    before = 4 * here.spans.d if replica else 0
    return HEADER + max(REFUSAL_BODY, before + here.compressor.nbytes(here.spans))


def rightwards(ranks: Iterable[int], rank: int, N: int) -> list[int]:
    """Returns whom to speak to in order, the next on the right first.

    On a ring, or any graph that looks alike from each rank, each then hears one at a time; in the
    order of ranks all would speak to the lowest first, whose one line holds the others up.

    Example:
        >>> rightwards([0, 2], rank=1, N=4), leftwards([0, 2], rank=1, N=4)
        ([2, 0], [0, 2])
    """
    return sorted(ranks, key=lambda j: (j - rank) % N)


def leftwards(ranks: Iterable[int], rank: int, N: int) -> list[int]:
    """Returns whom to hear in order, the next on the left first: who speaks `rightwards`."""
    return sorted(ranks, key=lambda j: (rank - j) % N)


def hearers(here: Here, topology: Topology) -> tuple[int, ...]:
    """Returns who hears this worker in this round."""
    return topology.listeners(here.rank, here.N, here.round, here.key.seed)


def _own_message(
    v: Tensor, here: Here, silent: bool, plead: bool, beside: Tensor
) -> tuple[Payload | None, Bytes, NonFiniteError | None]:
    look, starts = kernels.active(here.device).first_nonfinite, here.spans.starts
    broken, own = max(look(one, starts) for one in (v, beside)), None
    if broken < 0 and silent and not plead:
        return None, here.seal(Kind.SILENCE, b""), None
    if broken < 0:
        own = here.compressor.compress(v, here.key, here.spans)
        broken = broken_by_saying(own, v, here)
    if own is None or broken >= 0:
        error = NonFiniteError([(here.rank, tensor_name(here, broken))], here.round)
        return None, here.seal(Kind.REFUSAL, encode_refusal(error)), error
    kind = Kind.PLEA if plead else Kind.SAID
    return own, here.seal(kind, *in_pieces(own, here.compressor)), None


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
            f"{topology!r} changes by round. Use EdgeGossip (replicas per edge), DPSGD (whole "
            "models), or a graph that stays: RingGraph, Torus, Hypercube, Exponential, Complete"
        )
    _check(topology, N, differences)


@lru_cache(maxsize=64)
def _check(topology: Topology, N: int, symmetric: bool) -> None:
    # All N workers of a simulation ask the same, and the answer costs O(edges).
    topology.check(N, symmetric)


def check_accurate(compressor: Compressor, whose: str) -> None:
    """Raises a ConfigError for an operator with which this conversation misses its point."""
    if compressor.biased:
        raise ConfigError(
            f"{whose}: {compressor!r} is biased, and without feedback it converges to a wrong "
            "point without a sign of it. Use an unbiased operator (QSGD(bits=8, scale='none')), "
            "or Choco, which takes any contraction"
        )
