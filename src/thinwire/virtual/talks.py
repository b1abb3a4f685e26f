"""The talks of every exchange with frames that have a size and no bytes.

Each says what its exchange says, to whom and in which turn: a law runs both and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import torch

from thinwire.compress import Identity
from thinwire.errors import ConfigError, FrameError
from thinwire.exchange import (
    DPSGD,
    AllReduce,
    Choco,
    DeepSqueeze,
    EdgeGossip,
    Exchange,
    Gather,
    Gossip,
    Marsit,
    Ring,
    Server,
)
from thinwire.exchange.consensus import ROOT
from thinwire.exchange.hear import goes_round
from thinwire.exchange.marsit import PIECE
from thinwire.exchange.neighbours import leftwards, rightwards
from thinwire.exchange.over_graph import OverGraph, Stepping
from thinwire.exchange.ring import unheard
from thinwire.exchange.segments import places
from thinwire.transport.base import Answer, Ask, Post, Reduce, Take, Turn, turn
from thinwire.virtual.sizes import Sized, Sizes
from thinwire.wire.frame import HEADER

Talk = Generator[Ask, Answer, None]
NUMBER = Sized(HEADER + 8)
"""A worker's number of which all take the mean."""


@dataclass(frozen=True)
class Place:
    """Where a worker stands in a round.

    Args:
        rank: this worker.
        N: workers in all.
        round: the round number.
        seed: of the run.
        sizes: of its frames.
    """

    rank: int
    N: int
    round: int
    seed: int
    sizes: Sizes


def sized_round(exchange: Exchange, at: Place) -> Talk:
    """Says what a round of that exchange says, sizes only.

    A trigger that keeps silent depends on the values, so here each worker always speaks; and where
    a lost frame is made good, what makes it good is not said.

    Args:
        exchange: who says what to whom.
        at: where this worker stands.

    Raises:
        ConfigError: what this exchange says depends on more than sizes.
        FrameError: a frame never came, and the exchange does not go on without one.
    """
    if type(exchange) not in TALKS:
        known = ", ".join(kind.__name__ for kind in TALKS)
        raise ConfigError(
            f"what {exchange!r} says depends on what is learned, so sizes alone do not tell; run "
            f"it with real frames, or take one of {known}"
        )
    return TALKS[type(exchange)](exchange, at)


def _hear(ask: Turn, at: Place) -> Talk:
    """Takes frames that must all come; who only wants to know the turns answers with none."""
    frames = yield ask
    assert isinstance(frames, list)
    for take, frame in zip(ask.takes, frames, strict=False):
        if not frame:
            raise FrameError(
                f"frame from rank {take.source}, round {at.round}: 0 bytes are no frame; its link "
                "dropped it, which only messages of Gossip, Choco, DeepSqueeze and DPSGD survive"
            )


def _server(exchange: Server, at: Place) -> Talk:
    root, N = exchange.root, at.N
    said, reply = Sized(at.sizes.whole), Sized(at.sizes.reply(exchange.downlink, N))
    post = Post(root, said, len(said))
    if at.rank != root:
        yield from turn((post,))
        yield from _hear(Turn(takes=(Take(root, len(reply)),)), at)
        return
    yield from _hear(Turn((post,), tuple(Take(rank, len(said)) for rank in range(N))), at)
    yield from turn(tuple(Post(rank, reply, len(reply)) for rank in range(N) if rank != root))


def _gather(exchange: Gather, at: Place) -> Talk:
    said, r, N = Sized(at.sizes.whole), at.rank, at.N
    n = len(said)
    if goes_round(n):
        yield from _passed_on(at)
        return
    yield from turn(tuple(Post((r + hop) % N, said, n) for hop in range(N)))
    yield from _hear(Turn(takes=tuple(Take((r - hop) % N, n) for hop in range(N))), at)


def _passed_on(at: Place) -> Talk:
    said = Sized(at.sizes.whole)
    for _ in range(1, at.N):
        yield from turn((Post((at.rank + 1) % at.N, said, len(said)),))
        yield from _hear(Turn(takes=(Take((at.rank - 1) % at.N, len(said)),)), at)


def _all_reduce(exchange: AllReduce, at: Place) -> Talk:
    yield Reduce(torch.empty(at.sizes.d, device="meta"))


def _ring(exchange: Ring, at: Place) -> Talk:
    form, _ = exchange.choose(at.sizes.compressor)
    if form == "ring":
        yield from _hops(at, exchange.pipeline, at.sizes.piece)
    elif form == "two-phase":
        yield from _two_phase(at, exchange.pipeline)
    else:
        yield from _passed_on(at)


def _hops(at: Place, pipeline: int, size: Callable[[int, int], int]) -> Talk:
    N, r = at.N, at.rank
    right, left = (r + 1) % N, (r - 1) % N
    for hop in range(2 * N - 1):
        # The second time round a rank passes on what it hears, up to where it came from.
        segment = (r - hop) % N if hop < N else (r - (hop - N)) % N
        for _, low, high in places(at.sizes.d, N, segment, pipeline):
            n = size(low, high)
            if hop:
                yield from _hear(Turn(takes=(Take(left, n),)), at)
            if N > 1 and hop < 2 * N - 2:
                yield from turn((Post(right, Sized(n), n),))


def _two_phase(at: Place, pipeline: int) -> Talk:
    N, r = at.N, at.rank
    cuts = _cuts(at.sizes, N, pipeline)
    hops = [((r + hop) % N, (r - hop) % N) for hop in range(1, N)]
    says = [(owner, n) for owner, _ in hops for n in cuts[owner]]
    hears = [(rank, n) for _, rank in hops for n in cuts[r]]
    long = goes_round(max(map(sum, cuts)))
    tellers = hops[:1] if long else hops
    ahead = unheard(cuts[r], at.sizes.d // N) if long else len(says)
    yield from turn()
    for owner, n in says[:ahead]:
        yield from turn((Post(owner, Sized(n), n),))
    for (rank, n), after in zip_longest(hears, says[ahead:]):
        yield from _hear(Turn(takes=(Take(rank, n),)), at)
        if after is not None:
            yield from turn((Post(after[0], Sized(after[1]), after[1]),))
        if rank == hops[-1][1]:
            yield from turn(tuple(Post(to, Sized(n), n) for to, _ in tellers))
    for _, owner in hops:
        for n in cuts[owner]:
            yield from _hear(Turn(takes=(Take(hops[0][1] if long else owner, n),)), at)
            if long and owner != hops[0][0]:
                yield from turn((Post(hops[0][0], Sized(n), n),))


@lru_cache(maxsize=64)
def _cuts(sizes: Sizes, N: int, pipeline: int) -> tuple[tuple[int, ...], ...]:
    """Returns the bytes of each segment's pieces."""
    return tuple(
        tuple(sizes.piece(a, b) for _, a, b in places(sizes.d, N, g, pipeline)) for g in range(N)
    )


def _marsit(exchange: Marsit, at: Place) -> Talk:
    if at.round % exchange.K == 0:
        dense = Place(at.rank, at.N, at.round, at.seed, Sizes(Identity(), at.sizes.model))
        yield from _two_phase(dense, Ring().pipeline)
        return
    yield from _number(at)
    yield from _hops(at, PIECE, lambda low, high: HEADER + (high - low + 7) // 8)


def _graph(exchange: OverGraph, at: Place) -> Talk:
    round = 0 if exchange.topology.fixed else at.round
    meets = _speaks(exchange, Place(at.rank, at.N, round, at.seed, at.sizes))
    if isinstance(exchange, EdgeGossip):
        yield from _hear(meets, at)
    else:
        yield meets
    if at.round == 0 and isinstance(exchange, Stepping) and exchange.gamma is None:
        yield from _number(at)


@lru_cache(maxsize=1 << 14)
def _speaks(exchange: OverGraph, at: Place) -> Turn:
    graph, said = exchange.topology, Sized(at.sizes.whole)
    where = at.rank, at.N, at.round, at.seed
    to_all = rightwards(graph.listeners(*where), at.rank, at.N)
    posts = tuple(Post(to, said, len(said)) for to in to_all)
    speakers = leftwards(graph.neighbours(*where), at.rank, at.N)
    return Turn(posts, tuple(Take(j, len(said)) for j in speakers))


def _number(at: Place) -> Talk:
    others = [rank for rank in range(at.N) if rank != ROOT]
    n = len(NUMBER)
    if at.rank != ROOT:
        yield from turn((Post(ROOT, NUMBER, n),))
        yield from _hear(Turn(takes=(Take(ROOT, n),)), at)
        return
    yield from _hear(Turn(takes=tuple(Take(rank, n) for rank in others)), at)
    yield from turn(tuple(Post(rank, NUMBER, n) for rank in others))


TALKS: dict[type[Exchange], Callable[[Any, Place], Talk]] = {
    Server: _server,
    Gather: _gather,
    AllReduce: _all_reduce,
    Ring: _ring,
    Marsit: _marsit,
    Gossip: _graph,
    Choco: _graph,
    DeepSqueeze: _graph,
    DPSGD: _graph,
    EdgeGossip: _graph,
}
