"""Plan: what each method would cost over a given link, from a model whose terms are all named.

seconds of a round = H step + talk + code
talk   the round's frames in virtual time: bytes, headers in, at line rate; one latency a step;
       `message` s of software a frame
code   what coding adds to that: `own` s an entry before a round's first frame, and `hear` s an
       entry for as much as is heard, as it is heard
utilisation = H step / seconds of a round
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from thinwire.errors import ConfigError
from thinwire.exchange import AllReduce, Gather, Here
from thinwire.flat import Spans
from thinwire.keys import Key
from thinwire.link import Link
from thinwire.outer import Average
from thinwire.plan.options import Option, options
from thinwire.presets import Preset
from thinwire.value import whole
from thinwire.virtual import Compute, Method, Sizes, run_sizes

MOST_WORKERS = 1024
MOST_H = 512
"""Local steps a round beyond which nothing here was measured: no such H is recommended."""
VECTORS_OF_A_ROUND = 5
"""Beside anchor and memory: parameters, delta, u, direction and the new anchor."""
LEAN = 0.1
"""Of a vector: what a round in place takes, see `lean`."""


@dataclass(frozen=True)
class Coding:
    """What coding costs on one machine.

    Args:
        own: seconds an entry of the model to read, code and remember one's own message, and to
            take the outer step.
        hear: seconds an entry of the model to decode another's message and add it.
    """

    own: float = 0.0
    hear: float = 0.0

    def on(self, compute: Compute, sizes: Sizes) -> Compute:
        """Returns the same workers with the seconds that this takes of a model of these sizes."""
        return replace(compute, own=self.own * sizes.d, hear=self.hear * sizes.d / sizes.whole)


@dataclass(frozen=True)
class Job:
    """What is to be trained, and over what.

    Args:
        params: d.
        step: seconds of a local step while all take theirs, communication not in it.
        workers: N.
        link: of each.
        utilisation: the part of the time that machines shall compute.
        message: seconds that software adds to each latency.
        coding: by a method's name; nothing where it is not known.
        cores: of the machine on which all workers run; None where each has its own.

    Raises:
        ConfigError: a number is out of range.
    """

    params: int
    step: float
    workers: int
    link: Link
    utilisation: float = 0.9
    message: float = 0.0
    coding: Mapping[str, Coding] = field(default_factory=dict)
    cores: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.workers <= MOST_WORKERS:
            raise ConfigError(
                f"a plan is for 2 to {MOST_WORKERS} workers, not {self.workers}; for more, "
                "`thinwire simulate` runs one method"
            )
        if self.cores is not None:
            whole(self, "cores", self.cores, 1, 1 << 16)
        if self.cores is not None and self.cores < self.workers and self.workers % self.cores:
            able = max(n for n in range(1, self.cores) if self.workers % n == 0)
            raise ConfigError(
                f"{self.workers} workers do not share {self.cores} cores evenly, which a plan "
                f"takes them to do; write --cores {able}"
            )
        if not self.step > 0:
            raise ConfigError(f"a step of {self.step} s is no step; write --step-time 0.8s")
        if not 0 < self.utilisation < 1:
            raise ConfigError(
                f"a utilisation of {self.utilisation:g} cannot be planned for; write 0.9"
            )


@dataclass(frozen=True)
class Cost:
    """What one method costs.

    Args:
        option: which.
        sent: bytes that the busiest worker sends a round.
        heard: bytes that the busiest worker hears a round.
        talk: seconds that frames add to a round, of those that follow each other.
        code: seconds that coding adds to a round.
        H: local steps of a round, as the method has it.
        H_needed: the fewest with which the utilisation asked for is reached, were H free; see
            `possible`.
        kept: bytes that a worker keeps from round to round beside the model.
        peak: bytes more, while a round runs.
        exact: whether sizes are exact, not expected.
    """

    option: Option
    sent: int
    heard: int
    talk: float
    code: float
    H: int
    H_needed: int
    kept: int
    peak: int
    exact: bool

    @property
    def pause(self) -> float:
        """Seconds of a round in which nothing is computed."""
        return self.talk + self.code

    @property
    def possible(self) -> bool:
        """Whether the method can have the H that it needs: some take one step a round."""
        return self.option.chooses_H or self.H_needed <= self.H

    def seconds(self, H: int, step: float) -> float:
        """Returns the seconds of a round of H steps."""
        return H * step + self.pause

    def utilisation(self, H: int, step: float) -> float:
        """Returns the part of a round of H steps in which machines compute."""
        return H * step / self.seconds(H, step)


def costs(job: Job) -> list[Cost]:
    """Returns what each method would cost that job.

    Args:
        job: what is to be trained, and over what.
    """
    return [cost(option, job) for option in options()]


def cost(option: Option, job: Job) -> Cost:
    """Returns what one method would cost that job: a round of it in virtual time.

    Args:
        option: the method.
        job: what is to be trained, and over what.

    Example:
        >>> ring = next(o for o in options() if o.name == "8-bit ring")
        >>> found = cost(ring, Job(1_100_000_000, 0.8, 16, Link(2e8, 0.04)))
        >>> round(found.talk, 1), found.H_needed
        (86.6, 975)
    """
    preset, N = option.preset, job.workers
    sizes = Sizes(preset["compressor"], job.params)
    H = preset["H"] if isinstance(preset["H"], int) else 1
    method = Method(preset["exchange"], sizes, H)
    links = [replace(job.link, latency=job.link.latency + job.message)] * N
    silent = Compute(job.step * min(1.0, (job.cores or N) / N), cores=job.cores)
    seconds, sent, heard = _settled(method, links, silent)
    talk, code = seconds - H * job.step, 0.0
    if isinstance(preset["exchange"], AllReduce):
        sent = heard = [2 * (N - 1) * 4 * job.params // N] * N
    if option.name in job.coding:
        coded = job.coding[option.name].on(silent, sizes)
        code = _settled(method, links, coded)[0] - seconds
    asked = job.utilisation / (1 - job.utilisation)
    needed = max(1, math.ceil(asked * (talk + code) / job.step - 1e-9))
    kept, peak = memory(preset, job.params, N, max(heard))
    return Cost(option, max(sent), max(heard), talk, code, H, needed, kept, peak, sizes.exact)


def _settled(
    method: Method, links: list[Link], compute: Compute
) -> tuple[float, list[int], list[int]]:
    """Returns seconds of a round of those that follow, and what each rank sends and hears in it.

    The first round may measure something, and workers that share cores drift apart for a while.
    """
    few, many = (1, 2) if compute.cores is None else (2, 10)
    first, both = (run_sizes(method, links, rounds, compute) for rounds in (few, many))
    sent, heard = (
        [(b - a) // (many - few) for a, b in zip(x, y, strict=True)]
        for x, y in ((first.sent, both.sent), (first.received, both.received))
    )
    return (both.now - first.now) / (many - few), sent, heard


def memory(preset: Preset, d: int, N: int, heard: int) -> tuple[int, int]:
    """Returns the bytes that the busiest worker keeps, and those a round takes beside them.

    Args:
        preset: the method.
        d: parameters.
        N: workers.
        heard: bytes that it hears in a round, all at once at worst.
    """
    spans, C, exchange = Spans.of(1024), preset["compressor"], preset["exchange"]
    held = 0
    for rank in (0, 1):
        here = Here(rank, N, 0, Key(0, 0, rank), C, spans, 0)
        state = exchange.init(here)
        held = max(held, sum(t.numel() // spans.d for t in state.values()))
    lean = isinstance(exchange, Gather) and C.sparsifier.drops and preset["outer"] == Average()
    vectors = LEAN if lean else VECTORS_OF_A_ROUND
    return 4 * d * (1 + held), int(4 * d * vectors) + heard


def advice(job: Job, found: list[Cost]) -> tuple[Cost, int, str]:
    """Returns the method to take, its H, and the reason, in one sentence.

    The fewest local steps that reach the utilisation win, since local steps are what costs quality;
    among those that reach it with up to a third more, the one that sends least. A method of one
    step a round is taken at H = 1 or not at all. Where none reaches it with H up to 512, the one
    that comes closest.

    Args:
        job: what is to be trained.
        found: what each method costs.
    """
    asked, plain = f"{job.utilisation:.0%}", found[0]
    within = [c for c in found if c.possible and c.H_needed <= MOST_H]
    if not within:
        best = min((c for c in found if c.option.chooses_H), key=lambda c: c.pause)
        reached = best.utilisation(MOST_H, job.step)
        return (
            best,
            MOST_H,
            (
                f"no method reaches {asked} with H up to {MOST_H}; this one comes closest, "
                f"{reached:.1%} at H = {MOST_H}. A faster link, fewer workers or fewer kept "
                "entries would help"
            ),
        )
    fewest = min(c.H_needed for c in within)
    if plain.H_needed == 1:
        return plain, 1, f"the link is no bottleneck: plain averaging at every step has {asked}"
    most = math.ceil(fewest * 4 / 3)
    close = [c for c in within if c.H_needed <= most]
    best = min(close, key=lambda c: (max(c.sent, c.heard), c.H_needed))
    H = best.H_needed
    least = "the fewest of all" if fewest == H else f"near the fewest, {fewest}"
    at_one = f"plain averaging has {plain.utilisation(1, job.step):.2%} at H = 1"
    if not isinstance(best.option.preset["exchange"], AllReduce):
        at_one += f" and would need H = {plain.H_needed:,}"
    return (
        best,
        H,
        (
            f"it reaches {asked} with H = {H}, {least}, and sends least of those that do with "
            f"H up to {most}; {at_one}"
        ),
    )
