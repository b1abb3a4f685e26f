"""The same clock as `engine.VirtualTime`, compiled, for frames of sizes only over steady links.

What a frame does is what the engine says it does, in the same order and to the last bit of the
clock: a law compares them. The heap is a tree of winners over each worker's next resumption and the
next frame of its uplink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from thinwire.exchange import Exchange
from thinwire.kernels.numba_support import kernel
from thinwire.link import MESSAGE, PACKET, SEGMENT, Link
from thinwire.schedule import H_at, HSchedule
from thinwire.virtual.compute import Compute
from thinwire.virtual.script import Script, repeats, script_of
from thinwire.virtual.sizes import Sizes
from thinwire.virtual.spoken import Spoken

Array = npt.NDArray[Any]
WINDOW = 4
"""Rounds by which a worker may be ahead of who hears it."""
EVENTS = 4_000_000
"""After so many the caller is told how far it is, and Ctrl-C is heard."""
GOES_ON, OVER, TOO_FAR_AHEAD = range(3)
COMPUTES, CODES, TALKS, DONE = range(4)


def speak_fast(
    exchange: Exchange,
    sizes: Sizes,
    links: Sequence[Link],
    H: HSchedule,
    rounds: int,
    compute: Compute,
    on_rounds: Callable[[int], None],
) -> Spoken | None:
    """Runs what `speaks` does on each of these links; None where only the engine can.

    Args:
        exchange: who says what to whom.
        sizes: of the frames.
        links: one of each worker.
        H: local steps of a round.
        rounds: after so many it is done.
        compute: how long a step takes, and whose seed is the run's.
        on_rounds: is told, now and then, how many rounds all workers have done.
    """
    N = len(links)
    if any(link.jitter or link.loss or link.drop for link in links):
        return None
    names = [repeats(exchange, N, round) for round in range(rounds)]
    firsts = {name: round for round, name in reversed(list(enumerate(names)))}
    scripts: list[Script] = []
    for round in firsts.values():
        script = script_of(exchange, sizes, N, round, compute.seed)
        if script is None:
            return None
        scripts.append(script)
    which = np.array([list(firsts).index(name) for name in names], np.int64)
    steps = np.cumsum([0, *(H_at(H, round) for round in range(rounds))]).tolist()
    busy = np.array(
        [[compute.steps(rank, a, b - a) for rank in range(N)] for a, b in pairwise(steps)]
    ).reshape(rounds, N)
    state = _State(scripts, links, N)
    sums = np.array(
        [
            max(link.all_reduce(int(n), N) for link in set(links)) if n >= 0 else -1.0
            for script in scripts
            for n in script.sums
        ]
    )
    hears = np.concatenate([compute.hear * script.heard for script in scripts])
    cores = np.zeros(compute.cores or 0)
    while True:
        code = _run(which, busy, compute.own, hears, cores, sums, EVENTS, *state.arrays)
        on_rounds(int(state.round.min()))
        if code == TOO_FAR_AHEAD:
            return None
        if code == OVER:
            return Spoken(
                float(state.clock[0]),
                state.sent.tolist(),
                state.received.tolist(),
                state.busy.tolist(),
                int(state.count[0]),
            )


class _State:
    """All arrays of a run: the scripts end to end, and where each worker and frame is."""

    def __init__(self, scripts: list[Script], links: Sequence[Link], N: int) -> None:
        turns = np.cumsum([0, *(len(s.takes) for s in scripts)])
        posts = np.cumsum([0, *(len(s.to) for s in scripts)])
        first = np.stack([s.first + t for s, t in zip(scripts, turns, strict=False)])
        self.first = first
        self.posts = np.concatenate(
            [s.posts[:-1] + p for s, p in zip(scripts, posts, strict=False)] + [posts[-1:]]
        )
        self.to, self.n, self.slot, self.takes = (
            np.concatenate([getattr(s, name) for s in scripts])
            for name in ("to", "n", "slot", "takes")
        )
        # What is said in one turn shares the line until the shortest of it is through.
        self.by_size = np.lexsort((self.n, np.repeat(np.arange(turns[-1]), np.diff(self.posts))))
        self.ends = np.zeros(posts[-1])
        # The most turns and posts that a worker has in one round, over all scripts.
        longest = np.diff(first, axis=1).max(0)
        said = (self.posts[first[:, 1:]] - self.posts[first[:, :-1]]).max(0)
        self.desk = np.concatenate([[0], np.cumsum(longest)])
        self.queue = np.concatenate([[0], np.cumsum(2 * said + 1)])
        self.got = np.zeros(self.desk[-1] * WINDOW, np.int64)
        self.ready = np.zeros(self.desk[-1] * WINDOW)
        flying = int(self.queue[-1])
        self.fly_first, self.fly_last = np.zeros(flying), np.zeros(flying)
        self.fly_post, self.fly_round = np.zeros(flying, np.int64), np.zeros(flying, np.int64)
        self.head, self.tail = np.zeros(N, np.int64), np.zeros(N, np.int64)
        self.up, self.down = np.zeros(N), np.zeros(N)
        self.phase, self.round = np.full(N, -1, np.int64), np.zeros(N, np.int64)
        self.turn, self.waits = np.zeros(N, np.int64), np.zeros(N, np.int64)
        rates = [(k.bandwidth, k.bandwidth if k.down is None else k.down) for k in links]
        bits = np.array([[np.inf if b is None else b for b in pair] for pair in rates])
        self.up_rate, self.down_rate = bits[:, 0].copy(), bits[:, 1].copy()
        self.latency = np.array([k.latency for k in links])
        self.sent, self.received = np.zeros(N, np.int64), np.zeros(N, np.int64)
        self.busy = np.zeros(N)
        leaves = 1 << max(1, (2 * N - 1).bit_length())
        self.times = np.full(leaves, np.inf)
        self.tree = np.zeros(2 * leaves, np.int64)
        self.tree[leaves:] = np.arange(leaves)
        for node in range(leaves - 1, 0, -1):
            self.tree[node] = self.tree[2 * node]
        self.clock, self.count, self.summing = (
            np.zeros(1),
            np.zeros(1, np.int64),
            np.zeros(1, np.int64),
        )

    @property
    def arrays(self) -> tuple[Array, ...]:
        return tuple(vars(self).values())


@kernel
def _set(times: Array, tree: Array, leaf: int, time: float) -> None:
    """Gives a leaf a new time and lets it play up to the root; ties go to the lower leaf."""
    times[leaf] = time
    node = (leaf + len(times)) >> 1
    while node:
        a, b = tree[2 * node], tree[2 * node + 1]
        tree[node] = b if times[b] < times[a] else a
        node >>= 1


@kernel
def _line(n: int, rate: float) -> float:
    packets = (n + MESSAGE + SEGMENT - 1) // SEGMENT
    return 8 * (n + MESSAGE + PACKET * packets) / rate


@kernel
def _served(cores: Array, now: float, seconds: float) -> float:
    if not len(cores):
        return now + seconds
    core = np.argmin(cores)
    cores[core] = max(now, cores[core]) + seconds
    return float(cores[core])


@kernel
def _run(  # noqa: PLR0915
    which: Array, work: Array, own: float, hears: Array, cores: Array, sums: Array, most: int,
    first: Array, posts: Array, to: Array, n: Array, slot: Array, takes: Array, by_size: Array,
    ends: Array, desk: Array, queue: Array, got: Array, ready: Array, fly_first: Array,
    fly_last: Array, fly_post: Array, fly_round: Array, head: Array, tail: Array, up: Array,
    down: Array, phase: Array, round: Array, turn: Array, waits: Array, up_rate: Array,
    down_rate: Array, latency: Array, sent: Array, received: Array, busy: Array, times: Array,
    tree: Array, clock: Array, count: Array, summing: Array,
) -> int:  # fmt: skip
    N, rounds = len(phase), len(which)
    if phase[0] < 0:
        for rank in range(N):
            phase[rank] = COMPUTES
            busy[rank] += work[0, rank]
            _set(times, tree, 2 * rank, _served(cores, 0.0, work[0, rank]))
    for _ in range(most):
        event = tree[1]
        now = times[event]
        if now == np.inf:
            return OVER
        clock[0] = now
        rank = event >> 1
        if event & 1:
            # The first bit of this sender's next frame comes to the receiver's line.
            size = queue[rank + 1] - queue[rank]
            at = queue[rank] + head[rank] % size
            post, said_in = fly_post[at], fly_round[at]
            there = fly_last[at]
            head[rank] += 1
            following = queue[rank] + head[rank] % size
            more = head[rank] < tail[rank]
            _set(times, tree, event, fly_first[following] if more else np.inf)
            hearer = to[post]
            if said_in >= round[hearer] + WINDOW:
                return TOO_FAR_AHEAD
            took = _line(n[post], down_rate[hearer])
            down[hearer] = max(down[hearer], now) + took
            there = max(there, down[hearer])
            received[hearer] += n[post]
            box = (desk[hearer] + slot[post]) * WINDOW + said_in % WINDOW
            got[box] += 1
            ready[box] = max(ready[box], there)
            waiting = waits[hearer] == 1 and turn[hearer] == slot[post]
            if waiting and round[hearer] == said_in:
                g = first[which[said_in], hearer] + turn[hearer]
                if got[box] == takes[g]:
                    waits[hearer] = 0
                    _set(times, tree, 2 * hearer, ready[box])
            continue
        _set(times, tree, event, np.inf)
        script = which[round[rank]]
        turns = first[script, rank + 1] - first[script, rank]
        coding = 0.0
        if phase[rank] == COMPUTES:
            turn[rank] = 0
            coding = own if turns else 0.0
        elif phase[rank] == TALKS:
            box = (desk[rank] + turn[rank]) * WINDOW + round[rank] % WINDOW
            got[box], ready[box] = 0, 0.0
            coding = hears[first[script, rank] + turn[rank]]
            turn[rank] += 1
        phase[rank] = TALKS
        if coding:
            phase[rank] = CODES
            busy[rank] += coding
            _set(times, tree, event, _served(cores, now, coding))
            continue
        if turn[rank] == turns:
            round[rank] += 1
            phase[rank] = DONE
            if round[rank] < rounds:
                phase[rank] = COMPUTES
                busy[rank] += work[round[rank], rank]
                _set(times, tree, event, _served(cores, now, work[round[rank], rank]))
            continue
        g = first[script, rank] + turn[rank]
        if sums[g] >= 0:
            summing[0] += 1
            if summing[0] == N:
                summing[0] = 0
                for each in range(N):
                    _set(times, tree, 2 * each, now + sums[g])
            continue
        size = queue[rank + 1] - queue[rank]
        began, passed, before, left = max(up[rank], now), 0.0, 0.0, posts[g + 1] - posts[g]
        for post in by_size[posts[g] : posts[g + 1]]:
            took = _line(n[post], up_rate[rank])
            passed += (took - before) * left
            before, left, ends[post] = took, left - 1, began + passed
        if posts[g] < posts[g + 1]:
            up[rank] = began + passed
        for post in range(posts[g], posts[g + 1]):
            if tail[rank] - head[rank] == size:
                return TOO_FAR_AHEAD
            at = queue[rank] + tail[rank] % size
            fly_first[at] = began + latency[rank]
            fly_last[at] = ends[post] + latency[rank]
            fly_post[at], fly_round[at] = post, round[rank]
            if head[rank] == tail[rank]:
                _set(times, tree, 2 * rank + 1, fly_first[at])
            tail[rank] += 1
            sent[rank] += n[post]
            count[0] += 1
        box = (desk[rank] + turn[rank]) * WINDOW + round[rank] % WINDOW
        ready[box] = max(ready[box], now)
        if got[box] == takes[g]:
            _set(times, tree, event, ready[box])
        else:
            waits[rank] = 1
    return GOES_ON
