"""What coding costs: measured on this machine alone, or in rounds of a job."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist

from thinwire.flat import Spans
from thinwire.keys import Key
from thinwire.link import Link
from thinwire.plan import Coding, Job, Option, cost, options
from thinwire.presets import Preset
from thinwire.seat import Seat
from thinwire.shell import LocalSGD
from thinwire.simulate import LockStep
from thinwire.virtual import Sizes
from thinwire.virtual.sizes import normal
from thinwire.wire.body import Reader, pack, unpack

ENTRIES = 1 << 20
"""Of the vector that coding is measured on."""
FEWEST = 1 << 14
LONG = 1.0
"""Seconds that a round of a job may talk where coding is measured, if more than `FEWEST` do so."""
ROUNDS = 4
"""Of a job, of which the first loads kernels."""


def measured_coding() -> dict[str, Coding]:
    """Returns what coding costs on this machine, by method; see `coding_of`."""
    return {option.name: coding_of(option.preset) for option in options()}


def coding_of(preset: Preset) -> Coding:
    """Returns what coding costs on this machine, from a vector of 2^20 entries.

    `own` is a whole round of a worker that is alone: reading parameters, forming and coding the
    message, remembering what is owed, the outer step. `hear` is decoding one message and adding it.
    Each is the fastest of five, since another program can only slow them down.

    Args:
        preset: the method.
    """
    model = torch.nn.Linear(ENTRIES // 1024, 1024, bias=False)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    cluster = LockStep([LocalSGD(model, inner, group=Seat(0, 1), **preset)])
    spans, C, key = Spans.of(ENTRIES), preset["compressor"], Key(0)
    u = normal(ENTRIES, key)
    body = pack(C.compress(u, key, spans), C)
    total = torch.zeros(ENTRIES)

    def sync() -> None:
        with torch.no_grad():
            model.weight.view(-1).add_(u, alpha=1e-3)
        cluster.sync()

    def hear() -> None:
        C.accumulate(total, unpack(Reader(body, "measured"), C, spans, key))

    own, heard = (min(took(action, 6)[1:]) / ENTRIES for action in (sync, hear))
    return Coding(own, heard)


class Work:
    """What a rank computes in a round: seconds on a core.

    Args:
        transport: whose turns are noted from now on.

    Attributes:
        rounds: of each, those up to the end of each turn, those after the last, and last those of
            the engine's own threads.
    """

    def __init__(self, transport: Any) -> None:
        self.rounds: list[list[float]] = []
        self._marks: list[float] = []
        answer = transport.turn

        def turn(asked: Any) -> Any:
            frames = answer(asked)
            self._marks.append(time.thread_time())
            return frames

        transport.turn = turn

    def note(self, sync: Callable[[], Any]) -> None:
        """Runs a round and notes it."""
        self._marks, before = [time.thread_time()], time.process_time()
        sync()
        self._marks.append(time.thread_time())
        own = [b - a for a, b in pairwise(self._marks)]
        self.rounds.append([*own, time.process_time() - before - sum(own)])

    def medians(self) -> list[float]:
        """Returns the median of each over the rounds noted, without those of unusual turns."""
        # Now and then replicas compare themselves in a turn more.
        usual = min(map(len, self.rounds))
        rounds = [own for own in self.rounds if len(own) == usual]
        return [statistics.median(turn) for turn in zip(*rounds, strict=True)]


def coding_in_job(option: Option, d: int, link: Link) -> Coding:
    """Returns what coding costs in rounds of this job, alike on all ranks.

    Args:
        option: the method.
        d: parameters of the model that is planned for; no more than 2^20 are coded here, and over a
            slow link fewer.
        link: between the ranks.
    """
    n, N, preset = min(d, ENTRIES), dist.get_world_size(), option.preset
    while n > FEWEST and cost(option, Job(n, 1.0, N, link)).talk > LONG:
        n //= 2
    weight = torch.nn.Parameter(normal(n, Key(0)))
    inner = torch.optim.SGD([weight], lr=0.1)
    optimizer = LocalSGD([("w", weight)], inner, **preset)
    work, delta = Work(optimizer.transport), normal(n, Key(1))
    heard = 0
    for _ in range(ROUNDS):
        with torch.no_grad():
            weight.add_(delta, alpha=1e-3)
        before = optimizer.stats.totals()[2]
        work.note(optimizer.sync)
        heard = optimizer.stats.totals()[2] - before
    work.rounds.pop(0)  # The first one loads kernels.
    return agreed_coding(work.medians(), heard, Sizes(preset["compressor"], n))


def agreed_coding(medians: list[float], heard: float, sizes: Sizes) -> Coding:
    """Returns what coding costs, alike on all ranks of a job.

    What precedes the first answer is the rank's own, the slowest's; what follows goes with the
    bytes heard, all ranks' together, for a master hears others than its workers.

    Args:
        medians: this rank's, as `Work` has them.
        heard: bytes that it hears in a round.
        sizes: of the frames.
    """
    own = torch.tensor([medians[0]], dtype=torch.float64)
    rest = torch.tensor([sum(medians[1:-1]), heard], dtype=torch.float64)
    dist.all_reduce(own, dist.ReduceOp.MAX)
    dist.all_reduce(rest)
    seconds, heard_by_all = rest.tolist()
    hear = seconds * sizes.whole / heard_by_all if heard_by_all else 0.0
    return Coding(float(own) / sizes.d, hear / sizes.d)


def took(action: Callable[[], Any], times: int) -> list[float]:
    """Returns the seconds that an action takes, so many times in a row."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return seconds
