"""A run in virtual time: who computes, over which links, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from thinwire.errors import ConfigError
from thinwire.exchange import Exchange
from thinwire.link import Link
from thinwire.schedule import HSchedule
from thinwire.shell import LocalSGD
from thinwire.simulate import LockStep
from thinwire.virtual.compute import Compute, Cores
from thinwire.virtual.engine import VirtualTime
from thinwire.virtual.fast import speak_fast
from thinwire.virtual.programs import speaks, trains
from thinwire.virtual.sizes import Sizes
from thinwire.virtual.spoken import Spoken
from thinwire.virtual.talks import TALKS, Place, sized_round
from thinwire.virtual.timeline import Timeline
from thinwire.wire.body import decoded_once

MOST_FRAMES = 5_000_000
"""Frames of one round that fit here, about 100 bytes each."""
AllDid = Callable[[int], None]
"""Is told how many rounds all workers have done."""


@dataclass(frozen=True)
class Method:
    """Who says what to whom, and how often.

    Args:
        exchange: who says what to whom.
        sizes: of its frames.
        H: local steps of a round.
    """

    exchange: Exchange
    sizes: Sizes
    H: HSchedule


def run_sizes(
    method: Method,
    links: Sequence[Link],
    rounds: int,
    compute: Compute,
    on_rounds: AllDid = lambda _: None,
    timeline: Timeline | None = None,
) -> Spoken:
    """Runs N workers whose frames have sizes and no bytes; no tensor is allocated.

    Args:
        method: what they do.
        links: one of each worker.
        rounds: after so many it is over.
        compute: how long their steps take, and whose seed is the run's.
        on_rounds: is told how many rounds all have done, now and then.
        timeline: takes note of who did what when; slower.

    Raises:
        ConfigError: what they say depends on more than sizes, or is too much.

    Example:
        >>> from thinwire import QSGD, Gossip
        >>> eight = QSGD(bits=8, norm="max", scale="none", bucket=1024, coding="fixed")
        >>> method = Method(Gossip(), Sizes(eight, 7850), H=1)
        >>> spoken = run_sizes(method, [Link(1e8, 0.02)] * 8, 3, Compute(0.01))
        >>> round(spoken.now, 3), spoken.sent[0] // 3
        (0.094, 15816)
    """
    check_frames(method, len(links), compute.seed)
    if timeline is None:
        fast = speak_fast(
            method.exchange, method.sizes, links, method.H, rounds, compute, on_rounds
        )
        if fast is not None:
            return fast
    N, did = len(links), _All(len(links), on_rounds)
    programs = [
        speaks(method.exchange, method.sizes, (rank, N), method.H, rounds, compute, did)
        for rank in range(N)
    ]
    cores = Cores(compute.cores)
    return _ended(VirtualTime(programs, links, None, compute.seed, timeline, cores))


def run_training(
    workers: Sequence[LocalSGD],
    closures: Sequence[Callable[[int], Any]],
    links: Sequence[Link],
    rounds: int,
    compute: Compute,
    on_round: Callable[[int, int, float], None] = lambda *_: None,
    timeline: Timeline | None = None,
) -> Spoken:
    """Trains real workers with real frames, each decoded once however many hear it.

    Args:
        workers: one on each `Seat`, in rank order.
        closures: one of each: is told a step's number, and makes its gradients.
        links: one of each.
        rounds: after so many each is done.
        compute: how long their steps take.
        on_round: is told of each round: the rank, its number, and virtual seconds.
        timeline: takes note of who did what when.

    Raises:
        ConfigError: the workers disagree, or speak when a hub has time for them, or say too much.
    """
    if workers[0].exchange.pace == "free":
        raise ConfigError(
            f"{workers[0].exchange!r} answers workers one by one, without rounds; simulate one of "
            "the other exchanges, or try `thinwire demo-hub`"
        )
    one = workers[0]
    method = Method(one.exchange, Sizes(one.compressor, one.spans), one.H)
    check_frames(method, len(workers), compute.seed)
    LockStep(workers)
    clock: list[VirtualTime[None]] = []
    programs = [
        trains(w, f, rounds, compute, lambda rank, k: on_round(rank, k, clock[0].now))
        for w, f in zip(workers, closures, strict=True)
    ]
    observers = [worker.stats for worker in workers]
    cores = Cores(compute.cores)
    clock.append(VirtualTime(programs, links, observers, compute.seed, timeline, cores))
    with decoded_once():
        return _ended(clock[0])


def _ended(clock: VirtualTime[None]) -> Spoken:
    clock.run()
    return Spoken(clock.now, clock.sent, clock.received, clock.busy, clock.frames, clock.lost)


def check_frames(method: Method, N: int, seed: int) -> None:
    """Refuses a method that would send more frames in a round than fit here.

    Args:
        method: what the workers do.
        N: workers.
        seed: of the run.

    Raises:
        ConfigError: it would.
    """
    if type(method.exchange) not in TALKS:
        return  # It says a frame or two a worker, or is refused elsewhere.
    # The last rank is nobody's master: what it says, all say.
    talk = sized_round(method.exchange, Place(N - 1, N, 0, seed, method.sizes))
    said = 0
    with suppress(StopIteration):
        ask = next(talk)
        while said * N <= MOST_FRAMES:
            said += len(getattr(ask, "posts", ()))
            ask = talk.send([])
    talk.close()
    if said * N > MOST_FRAMES:
        raise ConfigError(
            f"{N} workers with {method.exchange!r} would send more than {MOST_FRAMES:,} frames a "
            "round, which do not fit here; take fewer workers, or gossip on a sparse graph"
        )


class _All:
    """Counts the rounds that all workers have done."""

    def __init__(self, N: int, tell: AllDid) -> None:
        self._left: dict[int, int] = {}
        self._N, self._tell = N, tell

    def __call__(self, rank: int, round: int) -> None:
        left = self._left.get(round, self._N) - 1
        self._left[round] = left
        if not left:
            del self._left[round]
            self._tell(round + 1)
