"""A hub without a network: cores, workers that talk to them, and what both must end in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import thinwire as tw
from thinwire.exchange import Here
from thinwire.exchange.driver import Observer
from thinwire.flat import Spans
from thinwire.hub.core import Core
from thinwire.hub.journal import Journal
from thinwire.hub.state import first_state
from thinwire.keys import Key
from thinwire.round import RoundState, one_round
from thinwire.stats import Stats
from thinwire.transport.base import Turn

SPANS = Spans(("w", "b"), ((4, 8), (9,)))
RUN, SEED = 0xBEE, 5
SIGNTOPK = tw.TopK(k=3) >> tw.Sign()
STREAM = tw.Stream(tw.TopK(density=0.4) >> tw.Sign(), every=2)
PER_WORKER = tw.PerWorker(tw.TopK(density=0.1) >> tw.QSGD(bits=4), memory=2 * 4 * SPANS.d)
"""With room for two workers."""


def first_model(d: int = SPANS.d) -> torch.Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(3))


def begun(folder: Path) -> Journal:
    """A journal of a new run, ready for records."""
    journal = Journal(folder)
    list(journal.recover()[1])
    journal.begin(0)
    journal.snapshot(0, [b"x"])
    return journal


def core(exchange: tw.Hub, compressor=SIGNTOPK, **more) -> Core:
    state = first_state(exchange, first_model())
    return Core(exchange, compressor, SPANS, SEED, RUN, state, **more)


class Worker:
    """One worker on a core: its rounds are the library's own."""

    def __init__(self, hub: Core, name: str, weight: float = 1.0) -> None:
        self.hub, self.name, self.weight = hub, name, weight
        self.stats: Observer = Stats()
        self.records: list[bytes] = []
        self.last: tuple[int, bytes, bytes] | None = None
        self.join(0.0)

    def join(self, now: float) -> None:
        member, record = self.hub.join(self.name, self.weight, now)
        self.records = [record.content] if record else []
        self.number = member.number
        mem = {**self.hub.exchange.init(self.here(member.sequence))}
        self.adopt(self.hub.whole(member.number), mem, member.sequence)
        self.draws = torch.Generator().manual_seed(100 + self.number + 1000 * member.sequence)

    def adopt(self, whole: bytes, mem: dict[str, torch.Tensor], sequence: int) -> None:
        """Takes a whole model as it was told."""
        version = int.from_bytes(whole[34:42], "little")
        x = torch.frombuffer(bytearray(whole[26 + 18 :]), dtype=torch.float32)
        self.state = RoundState(x, {**mem, "version": torch.tensor([version])}, {}, sequence)

    def here(self, round: int) -> Here:
        key = Key(SEED, round, self.number)
        return Here(self.number, 0, round, key, self.hub.compressor, SPANS, RUN)

    def learn(self, amount: float = 0.1) -> torch.Tensor:
        return self.state.anchor - amount * torch.randn(SPANS.d, generator=self.draws)

    def talk(self, params: torch.Tensor | None = None):
        params = self.learn() if params is None else params
        return one_round(
            self.state, [params], self.hub.exchange, tw.Adopt(), self.here(self.state.round)
        )

    def say(self, now: float = 0.0, params: torch.Tensor | None = None) -> list[bytes]:
        """One round; returns the records it left."""
        talk = self.talk(params)
        ask = next(talk)
        assert isinstance(ask, Turn)
        frame, base = ask.posts[0].frame, int(self.state.mem["version"])
        taken = self.hub.update(self.name, base, frame, now)
        reply = b"".join(taken.reply)
        self.last = (base, frame, reply)
        self.stats.asked(ask, self.number)
        self.stats.answered(ask, [reply], self.number)
        try:
            talk.send([reply])
        except StopIteration as stop:
            self.state = stop.value
        return [taken.record.content] if taken.record else []


def told(hub: Core, worker: Worker) -> torch.Tensor:
    """What the hub has told that worker of its model, with its last answer."""
    replicas = hub._replies._replicas
    held = {} if replicas is None else replicas._held
    return held.get(worker.number, (0, hub.state.anchor))[1]


def same_state(a, b) -> None:
    """Asserts that two hubs hold the same bits and the same books."""
    for name in ("anchor", "owed", "touched"):
        mine, theirs = getattr(a, name), getattr(b, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            view = torch.int32 if mine.dtype == torch.float32 else mine.dtype
            assert torch.equal(mine.view(view), theirs.view(view)), name
    assert a.outer.keys() == b.outer.keys()
    for name in a.outer:
        assert torch.equal(a.outer[name], b.outer[name]), name
    for name in ("version", "applied", "unsaid", "refused", "staleness", "histogram"):
        assert getattr(a, name) == getattr(b, name), name
    books = [{n: replace(m, stamp=0) for n, m in side.members.items()} for side in (a, b)]
    assert books[0] == books[1]
    assert (a.ring.last, list(a.ring.entries)) == (b.ring.last, list(b.ring.entries))
