"""Programs: what one worker does in virtual time, with real frames or with sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from thinwire.exchange import Exchange
from thinwire.schedule import H_at, HSchedule
from thinwire.shell import LocalSGD
from thinwire.transport.base import Answer, Ask, Turn
from thinwire.virtual.compute import Busy, Compute
from thinwire.virtual.engine import Program
from thinwire.virtual.sizes import Sizes
from thinwire.virtual.talks import Place, sized_round

OnRound = Callable[[int, int], None]
"""Is told that a worker has done a round: its rank, and the round's number."""


def trains(
    worker: LocalSGD,
    closure: Callable[[int], Any],
    rounds: int,
    compute: Compute,
    on_round: OnRound,
) -> Program[None]:
    """Takes real local steps and speaks real frames, each step as long as `compute` says.

    Args:
        worker: on a `Seat`.
        closure: is told a step's number, and makes its gradients.
        rounds: after so many it is done; where workers speak at gaps of their own, after as many
            of the longest.
        compute: how long a step takes.
        on_round: is told of each round.
    """
    rank, step, took = worker.place[0], 0, 0
    # All must take the same number of steps where a master reads from them who speaks when.
    steps = rounds * H_at(worker.H, 0) if worker.exchange.pace == "own" else None
    while worker.round < rounds if steps is None else step < steps:
        if step == took:
            # In one piece, as `speaks` has it: on shared cores nobody comes between two of them.
            n = H_at(worker.H, worker.round) if steps is None else 1
            took = step + n
            yield Busy(compute.steps(rank, step, n))
        closure(step)
        step, before = step + 1, worker.round
        yield from _coded(worker.steps(), rank, compute)
        worker.zero_grad()
        if worker.round > before:
            on_round(rank, before)


def speaks(
    exchange: Exchange,
    sizes: Sizes,
    seat: tuple[int, int],
    H: HSchedule,
    rounds: int,
    compute: Compute,
    on_round: OnRound,
) -> Program[None]:
    """Computes and speaks as `trains` does, but allocates no tensor: frames have a size only.

    Args:
        exchange: who says what to whom.
        sizes: of the frames.
        seat: this worker's rank, and N.
        H: local steps of a round.
        rounds: after so many it is done.
        compute: how long a step takes, and whose seed is the run's.
        on_round: is told of each round.
    """
    rank, N = seat
    step = 0
    for round in range(rounds):
        steps = H_at(H, round)
        yield Busy(compute.steps(rank, step, steps))
        step += steps
        talk = sized_round(exchange, Place(rank, N, round, compute.seed, sizes))
        yield from _coded(talk, rank, compute)
        on_round(rank, round)


def _coded(
    talk: Generator[Ask, Answer, Any], rank: int, compute: Compute
) -> Generator[Ask | Busy, Answer, None]:
    """Runs a talk: its message is coded before it leaves, and what it hears is decoded."""
    try:
        ask = next(talk)
        if compute.own:
            yield Busy(compute.own)
        while True:
            answer = yield ask
            if compute.hear and isinstance(ask, Turn):
                heard = zip(ask.takes, answer, strict=True)
                n = sum(len(frame) for take, frame in heard if take.source != rank)
                if n:
                    yield Busy(compute.hear * n)
            ask = talk.send(answer)
    except StopIteration:
        return
    finally:
        talk.close()
