"""What a chaos story is measured by: the same run in one process, with nothing that happens.

`calm` is the story without its events. `attended` is a calm run in which the same workers are away
in the same rounds as in an elastic story: what it is behind `calm`, absence has cost; what a story
is behind it, to the last bit, is lost.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinwire.cli.chaos_plan import ROUNDS, N, Story
from thinwire.cli.chaos_task import H, network, optimizer_of, outcome, slope
from thinwire.cli.demo_train import Digits
from thinwire.elastic.history import Generation, History
from thinwire.exchange.driver import lockstep
from thinwire.ledger import fold
from thinwire.round import RoundState
from thinwire.seat import Seat
from thinwire.simulate import LockStep

SEEDS = 16
"""Calm runs whose accuracies are the spread of a form."""


def calm(story: Story, data: str) -> dict[str, Any]:
    """Runs the story without its events, all workers in this process, and returns how it ends."""
    models = [network(story.seed) for _ in range(N)]
    workers = [optimizer_of(story, m, Seat(rank, N)) for rank, m in enumerate(models)]
    cluster = LockStep(workers)
    shares = [Digits(data, rank, N, story.seed) for rank in range(N)]
    for step in range(H * ROUNDS):
        for model, worker, share in zip(models, workers, shares, strict=True):
            slope(model, worker, share, step)
        cluster.step()
    return outcome([worker.anchor for worker in workers], shares[0])


def of_seeds(kind: str, form: str, data: str) -> list[float]:
    """Returns how accurate calm runs of this form end, one for each seed."""
    stories = (Story(0, seed, kind, form, ()) for seed in range(SEEDS))
    return [calm(story, data)["accuracy"] for story in stories]


@dataclass
class Spell:
    """H local steps of one worker from one anchor.

    Args:
        life: of the worker.
        round: which it was then in.
        step: the first, as the worker counts.
        said: in whose tries of that round it spoke.
        told: whether others told it how the round ended.
    """

    life: int
    round: int
    step: int
    said: set[Generation] = field(default_factory=set)
    told: bool = False


class Seen:
    """One worker of an elastic story, seen again from its notes.

    Args:
        story: of the worker.
        rank: its number.
        data: file of the digits.
        folder: of the story, with the notes.
    """

    def __init__(self, story: Story, rank: int, data: str, folder: Path) -> None:
        self.model = network(story.seed)
        self.worker = optimizer_of(story, self.model, Seat(rank, N))
        self.worker.before_round = self._before
        self.digits = Digits(data, rank, N, story.seed)
        self.spells = deque(_spells(folder, rank))
        self._kept = folder / f"kept-{rank}-{{}}.pt"
        self._life = -1
        self._owed: Tensor | None = None

    def begin(self, past: list[RoundState], decided: Generation) -> Spell:
        """Brings the worker to the spell whose update that try took, and returns it.

        Args:
            past: where all stood after each number of rounds.
            decided: the try that stands of the round that is next.
        """
        while True:
            spell = self.spells.popleft()
            if spell.life != self._life:
                self._life = spell.life
                kept = torch.load(str(self._kept).format(spell.life), weights_only=True)
                mem = {"residual": kept["residual"]}
            else:
                mem = self.worker.hold()[0].mem
            self.worker.stand(replace(past[spell.round], mem=mem), torch.empty(0))
            if spell.round == len(past) - 1 and decided in spell.said:
                return spell
            if spell.told:
                self._owe(spell)

    def end(self, spell: Spell) -> None:
        """Has the residual be what is left where others told the worker that it was heard."""
        state, buffers = self.worker.hold()
        assert self._owed is not None
        if spell.told:
            # In the order in which it was taken off, which the last bit knows.
            left = self._owed - (self._owed - state.mem["residual"])
            self.worker.stand(replace(state, mem={**state.mem, "residual": left}), buffers)

    def _owe(self, spell: Spell) -> None:
        for step in range(spell.step, spell.step + H):
            slope(self.model, self.worker, self.digits, step)
            self.worker.inner.step()
        self._before()
        state, buffers = self.worker.hold()
        assert self._owed is not None
        mem = {**state.mem, "residual": self._owed}
        self.worker.stand(replace(state, mem=mem), buffers)

    def _before(self) -> None:
        state, _ = self.worker.hold()
        delta = self.worker.delta(state.anchor)
        mem, _ = fold(self.worker.exchange, delta, state.mem)
        self._owed = mem["residual"]


def attended(story: Story, data: str, folder: Path, history: History, left: int) -> dict[str, Any]:
    """Runs an elastic story again in this process, those away who were, and returns how it ends.

    Args:
        story: that has been played.
        data: file of the digits.
        folder: of the story.
        history: who took part in each of its rounds.
        left: workers that reached the end.
    """
    seen = [Seen(story, rank, data, folder) for rank in range(N)]
    past = [seen[0].worker.hold()[0]]
    for round in range(history.round):
        decided = history.decided(round)
        assert decided is not None
        there = [seen[int(name[1:])] for name in history.names(round)]
        spells = [who.begin(past, decided) for who in there]
        for rank, who in enumerate(there):
            who.worker.sit(rank, len(there), 0)
        for step in range(H):
            for who, spell in zip(there, spells, strict=True):
                slope(who.model, who.worker, who.digits, spell.step + step)
            workers = [who.worker for who in there]
            lockstep([w.steps() for w in workers], [w.stats for w in workers])
        for who, spell in zip(there, spells, strict=True):
            who.end(spell)
        past.append(there[0].worker.hold()[0])
    return outcome([past[-1].anchor] * left, seen[0].digits)


def _spells(folder: Path, rank: int) -> Iterator[Spell]:
    files = folder.glob(f"notes-{rank}-*.jsonl")
    for life, file in sorted((int(file.stem.split("-")[2]), file) for file in files):
        spell = None
        for line in file.read_text().splitlines():
            what, *facts = json.loads(line)
            if what == "began":
                if spell is not None:
                    yield spell
                spell = Spell(life, *facts)
            elif spell is not None and what == "said":
                spell.said.add((facts[0], facts[1]))
            elif spell is not None:
                spell.told = True
        if spell is not None:
            yield spell
