"""Telling all of trouble where each worker hears its neighbours alone."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import TypeVar

from thinwire.errors import FrameError, NonFiniteError
from thinwire.exchange.base import Here
from thinwire.exchange.consensus import agreed_mean
from thinwire.exchange.neighbours import bound_of, hearers
from thinwire.exchange.refusal import encode_refusal
from thinwire.topology import Topology
from thinwire.transport.base import Answer, Ask, Post, turn
from thinwire.wire.frame import Kind

R = TypeVar("R")
TOLD_ROUNDS = 8
"""Rounds ahead in which a worker tells of trouble where the graph changes."""


def or_refuse(
    talk: Generator[Ask, Answer, R],
    here: Here,
    topology: Topology,
    measuring: bool = False,
    replica: bool = False,
) -> Generator[Ask, Answer, R]:
    """Runs a talk among neighbours that may fail; if it does, the others are told why.

    In a round that measures, all ranks hear it at once. In any other a worker that hears of trouble
    tells its own listeners in the next round, they theirs in the one after, so that every rank
    stops within as many rounds as the graph is wide; no rank waits for one that stopped.

    Args:
        talk: what may fail.
        here: where this worker stands.
        topology: who hears whom.
        measuring: whether an `agreed_step` follows, for which the others would wait.
        replica: whether messages may hold a replica, too: see `bound_of`.
    """
    try:
        return (yield from talk)
    except (NonFiniteError, FrameError) as reason:
        if measuring:
            yield from agreed_mean(reason, here)
        else:
            yield from pass_on(reason, here, topology, replica)
        raise


def pass_on(
    reason: NonFiniteError | FrameError, here: Here, topology: Topology, replica: bool = False
) -> Generator[Ask, Answer, None]:
    """Tells this worker's listeners of the next rounds why there will be none.

    Price: degree frames of at most 4122 bytes, and only then.

    Args:
        reason: what went wrong.
        here: where this worker stands.
        topology: who hears whom.
        replica: whether messages may hold a replica, too: see `bound_of`.
    """
    if topology.fixed and _found_here(reason, here):
        return  # This round's listeners have heard it in the message's place.
    for later in range(1, 2 if topology.fixed else 1 + TOLD_ROUNDS):
        there = replace(here, round=here.round + later)
        frame = there.seal(Kind.REFUSAL, encode_refusal(reason))
        bound = bound_of(here, replica)
        yield from turn(tuple(Post(to, frame, bound) for to in hearers(there, topology)))


def _found_here(reason: NonFiniteError | FrameError, here: Here) -> bool:
    return (
        isinstance(reason, NonFiniteError)
        and reason.round == here.round
        and here.rank in (rank for rank, _ in reason.found)
    )
