"""A group of workers in one process whose quorums, connections and memories a test can break.

It answers the very talks that run over torchft: `Elastic.joining` and `Elastic.rounds`.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import thinwire as tw
from thinwire import LocalSGD
from thinwire.elastic import Elastic
from thinwire.elastic.history import Generation
from thinwire.elastic.regroup import Place, Regroup, Talk
from thinwire.errors import RoundTimeout
from thinwire.exchange.driver import lockstep
from thinwire.ledger import Ledger, conservation_error, fold
from thinwire.stats import Stats
from thinwire.transport.base import Turn

D = 9
ROUNDS = 3


class Simulated(Elastic):
    """Runs nothing by itself: the simulation runs its talks."""

    def join(self, worker: tw.LocalSGD) -> None:
        """Left to the simulation."""

    def sync(self, worker: tw.LocalSGD, called: bool) -> None:
        """Left to the simulation."""

    def leave(self, worker: tw.LocalSGD) -> None:
        """Left to the simulation."""


@dataclass
class Fault:
    """What happens to one worker at one of its yields.

    Args:
        victim: its number.
        at: which of its yields, from 0.
        posts: how many of the posts of that yield still leave; None for all.
        what: "dies", "sleeps" (and wakes two quorums later), "errs" (its connections break),
            "returns" (dies, and starts again without a memory two quorums later), or "garbles"
            (it hears a broken frame).
    """

    victim: int
    at: int
    posts: int | None
    what: str


KINDS = [
    *((what, posts) for what in ("dies", "sleeps", "errs", "returns") for posts in (0, 1, None)),
    ("garbles", None),
]


@dataclass
class Setting:
    exchange: tw.Exchange
    compressor: Any
    outer: Any = field(default_factory=lambda: tw.Nesterov(lr=0.7, momentum=0.5))
    mean: str = "quorum"
    watch: tw.Watch = field(default_factory=tw.Watch)
    gives_up: int = 0
    """Who of those that wait for what never comes hears of it first: 0 or -1, by rank."""


@dataclass(eq=False)
class Life:
    """One worker from its start to its death."""

    number: int
    optimizer: tw.LocalSGD
    elastic: Simulated
    params: Tensor
    talk: Talk[None]
    born: int
    ask: Any = None
    steps: int = 0
    yields: int = 0
    awake: bool = True
    dead: bool = False
    wakes: int = -1
    syncing: bool = False


Tries = dict[tuple[int, Generation], dict[str, tuple[Any, Tensor, int, int]]]


class Group:
    """Up to N workers, and what befalls them."""

    def __init__(self, setting: Setting, N: int, faults: list[Fault]) -> None:
        self.setting, self.N = setting, N
        self.faults = list(faults)
        self.lives: list[Life] = []
        self.mail: dict[tuple[int, int], deque[bytes]] = defaultdict(deque)
        self.quorum: list[Life] = []
        self.quorums = 0
        self.tries: Tries = defaultdict(dict)
        self.returning: list[tuple[int, int]] = []
        self.yields = [0] * N
        self.shapes: list[list[tuple[int, int] | None]] = [[] for _ in range(N)]
        self.chose = False
        for number in range(N):
            self.bear(number)

    def bear(self, number: int) -> None:
        params = torch.nn.Parameter(torch.full((D,), 0.5 + (number > 0)))
        inner = torch.optim.SGD([params], lr=1.0)
        elastic = Simulated(self.N, f"w{number}", mean=self.setting.mean)  # type: ignore[arg-type]
        s = self.setting
        optimizer = LocalSGD(
            [params], inner, compressor=s.compressor, exchange=s.exchange, outer=s.outer,
            group=elastic, ledger=Ledger(), watch=s.watch,
        )  # fmt: skip
        life = Life(number, optimizer, elastic, params, elastic.joining(optimizer), len(self.lives))
        self.record(life)
        self.lives.append(life)
        self.resume(life, None)

    def record(self, life: Life) -> None:
        """Notes with what each try of a round begins, for whoever replays it."""
        run = life.optimizer.try_round

        def noted(*args: Any) -> Any:
            state, _ = life.optimizer.hold()
            mem = {name: t.clone() for name, t in state.mem.items()}
            outer = {name: t.clone() for name, t in state.outer.items()}
            kept = type(state)(state.anchor.clone(), mem, outer, state.round)
            key = (state.round, life.elastic._generation)
            seat = life.optimizer.place
            self.tries[key][life.elastic.name] = (kept, life.params.detach().clone(), *seat)
            return run(*args)

        life.optimizer.try_round = noted  # type: ignore[method-assign]

    # What the world does.

    def up(self) -> list[Life]:
        return [life for life in self.lives if not life.dead and life.awake]

    def resume(self, life: Life, answer: Any) -> None:
        self.go(life, lambda: life.talk.send(answer))

    def throw(self, life: Life, error: Exception) -> None:
        self.go(life, lambda: life.talk.throw(error))

    def go(self, life: Life, move: Callable[[], Any]) -> None:
        try:
            life.ask = move()
        except StopIteration:
            # Its round is done: local steps, and the next one.
            life.steps += 1
            draw = torch.Generator().manual_seed(1000 * life.born + life.steps)
            life.params.grad = torch.randn(D, generator=draw)
            life.optimizer.inner.step()
            life.talk = life.elastic.rounds(life.optimizer)
            life.ask = next(life.talk)
        self.asked(life)

    def asked(self, life: Life) -> None:
        at, self.yields[life.number] = self.yields[life.number], self.yields[life.number] + 1
        fault = next((f for f in self.faults if (f.victim, f.at) == (life.number, at)), None)
        posts = life.ask.posts if isinstance(life.ask, Turn) else ()
        self.shapes[life.number].append(
            (len(posts), len(life.ask.takes)) if isinstance(life.ask, Turn) else None
        )
        if fault is not None and fault.posts is not None:
            posts = posts[: fault.posts]
        for post in posts:
            # A fault in the past tense: what it posts to who has left is lost.
            self.mail[life.born, self.quorum[post.to].born].append(post.frame)
        if fault is not None:
            self.strike(life, fault)

    def strike(self, life: Life, fault: Fault) -> None:
        if fault.what in ("dies", "returns"):
            life.dead = True
            if fault.what == "returns":
                self.returning.append((self.quorums + 2, life.number))
        elif fault.what == "sleeps":
            life.awake, life.wakes = False, self.quorums + 2
        elif fault.what == "errs" and not isinstance(life.ask, Regroup):
            self.throw(life, RoundTimeout(0, "a fault"))
        elif fault.what == "garbles" and isinstance(life.ask, Turn):
            for take in life.ask.takes[:1]:
                life.garbled = take.source  # type: ignore[attr-defined]

    def run(self, rounds: int) -> None:
        """Goes on until all that are up have done these rounds, or wait for others for good."""
        for _ in range(400):
            self.settle()
            up = self.up()
            assert up == [] or all(isinstance(life.ask, Regroup) for life in up)
            if up and all(life.optimizer.round >= rounds for life in up) and not self.pending():
                return
            if len(up) < self.N // 2 + 1 and not self.pending():
                return
            self.regroup()
        raise AssertionError(f"no end: {[(x.number, x.optimizer.round, x.ask) for x in up]}")

    def pending(self) -> bool:
        return bool(self.returning) or any(x.wakes >= 0 and not x.dead for x in self.lives)

    def regroup(self) -> None:
        self.quorums += 1
        for life in self.lives:
            if not life.awake and not life.dead and life.wakes <= self.quorums:
                life.awake, life.wakes = True, -1
                if not isinstance(life.ask, Regroup):
                    self.throw(life, RoundTimeout(0, "it slept"))
        for when, number in [r for r in self.returning if r[0] <= self.quorums]:
            self.returning.remove((when, number))
            self.bear(number)
        there = sorted(
            (x for x in self.up() if isinstance(x.ask, Regroup)), key=lambda x: (x.number, x.born)
        )
        if len(there) < self.N // 2 + 1:
            return
        failed = any(x.ask.failed is not None for x in there)
        fresh = failed or [x.born for x in there] != [x.born for x in self.quorum]
        if fresh:
            self.mail.clear()
        self.quorum = there
        for rank, life in enumerate(there):
            if not life.dead and life.awake:
                self.resume(life, Place(rank, len(there), fresh))

    def settle(self) -> None:
        """Moves frames until all that are up wait for a quorum."""
        while True:
            moved = False
            for life in self.up():
                if self.ready(life):
                    self.answer(life)
                    moved = True
            if moved:
                continue
            stuck = [x for x in self.up() if not isinstance(x.ask, Regroup)]
            if not stuck:
                return
            # Nobody can go on: the deadline passes for one, and the others go on from there.
            self.chose |= len(stuck) > 1
            self.throw(stuck[self.setting.gives_up], RoundTimeout(0, "the deadline passed"))

    def ready(self, life: Life) -> bool:
        if isinstance(life.ask, Regroup):
            return False
        wanted: dict[int, int] = defaultdict(int)
        for take in life.ask.takes:
            wanted[self.quorum[take.source].born] += 1
        return all(len(self.mail[source, life.born]) >= n for source, n in wanted.items())

    def answer(self, life: Life) -> None:
        frames = [
            self.mail[self.quorum[t.source].born, life.born].popleft() for t in life.ask.takes
        ]
        if hasattr(life, "garbled"):
            del life.garbled
            frames[0] = frames[0][:-1] + bytes([frames[0][-1] ^ 1])
        self.resume(life, frames)

    # What must be true of it.

    def check(self) -> None:
        up = self.up()
        if not up:
            return
        history = max((x.elastic.standing.history for x in up), key=lambda h: (h.round, h.stamp))
        for life in up:
            own = life.elastic.standing.history
            assert own.round == life.optimizer.round
            if own.round == history.round:
                assert own.reigns == history.reigns, (own, history)
        same = [x for x in up if x.optimizer.round == history.round]
        for life in same[1:]:
            state, first = life.optimizer.hold()[0], same[0].optimizer.hold()[0]
            assert torch.equal(state.anchor, first.anchor)
            for name in first.outer:
                assert torch.equal(state.outer[name], first.outer[name])
        self.check_replay(history, same[0].optimizer.anchor)
        self.check_books(history)

    def check_replay(self, history: Any, last: Tensor) -> None:
        """Asserts that each round that stands is the plain round of those that took part."""
        anchor = None
        for round in range(history.round):
            inputs = self.tries[round, history.decided(round)]
            reign = [r for r in history.reigns if r.first <= round][-1]
            assert set(inputs) >= set(reign.names)
            members = sorted((inputs[name] for name in reign.names), key=lambda m: m[2])
            assert [m[2:] for m in members] == [(i, len(members)) for i in range(len(members))]
            talks = []
            for state, params, rank, n in members:
                assert anchor is None or torch.equal(state.anchor, anchor), round
                talks.append(self.plain(state, params, rank, n))
            ends = lockstep(talks, [Stats() for _ in talks])
            anchor = ends[0].anchor
        if anchor is not None:
            assert torch.equal(anchor, last)

    def plain(self, state: Any, params: Tensor, rank: int, n: int) -> Any:
        s = self.setting
        from thinwire.exchange import Here
        from thinwire.flat import Spans
        from thinwire.keys import Key
        from thinwire.round import one_round

        outer = s.outer
        if s.mean == "configured" and n < self.N:
            outer = Share(outer, n / self.N)
        spans = Spans(("0",), ((D,),))
        here = Here(rank, n, state.round, Key(0, state.round, rank), s.compressor, spans, 7)
        return one_round(state, [params], s.exchange, outer, here)

    def check_books(self, history: Any) -> None:
        """Asserts that every update is said once, owed or booked as forgotten."""
        books = []
        for life in self.lives:
            optimizer, standing = life.optimizer, life.elastic.standing
            ledger, state = copy.copy(optimizer.ledger), optimizer.hold()[0]
            assert ledger is not None
            mem = state.mem
            behind = standing.history != history
            if life.dead or behind:
                # As it will do itself, if it ever comes back.
                told = [t for t in standing.told if not t.counted]
                counts = [t for t in told if history.decided(t.round) == t.generation]
                if counts:
                    delta = state.anchor - life.params.detach()
                    mem, entry = fold(optimizer.exchange, delta, mem)
                    ledger.book(entry)
                standing, mem = standing.move(history, mem, ledger)
            if life.dead and "residual" in mem:
                ledger.forget(mem["residual"])
                mem = {}
            books.append(ledger.closed(optimizer.exchange, mem, 1))
        error = conservation_error(books)
        assert error < 1e-5, error


class Share:
    """An outer step along a share of the direction; the test's own."""

    def __init__(self, outer: Any, share: float) -> None:
        self.outer, self.share = outer, share

    def step(self, anchor: Tensor, direction: Tensor, state: Any) -> Any:
        return self.outer.step(anchor, direction * torch.tensor(self.share), state)


def told(setting: Setting, N: int, faults: list[Fault]) -> Group:
    """Runs a group through faults and a calm end, and checks all that must hold."""
    group = Group(setting, N, faults)
    group.run(ROUNDS)
    group.run(ROUNDS + 2)
    group.check()
    return group


def every_fault(setting: Setting, N: int, kinds: Any = KINDS) -> Iterator[Fault]:
    """Yields each different fault of these kinds at each yield of each worker.

    Until its fault a run is the calm one, so that what a yield posts and takes is known. Left out
    is what changes nothing there: an error at a yield that waits for a quorum, a broken frame at
    one that takes none; and of kinds that differ in posts that do not exist, all but the first.
    """
    calm = Group(setting, N, [])
    calm.run(ROUNDS - 1)
    for victim, shapes in enumerate(calm.shapes):
        for at, shape in enumerate(shapes):
            seen = set()
            posts, takes = shape or (0, 0)
            for what, most in kinds:
                idle = (what == "errs" and shape is None) or (what == "garbles" and not takes)
                leave = posts if most is None else min(most, posts)
                if not idle and (what, leave) not in seen:
                    seen.add((what, leave))
                    yield Fault(victim, at, most, what)
