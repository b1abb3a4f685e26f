"""What is left of a story: models that are compared, and books that must balance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from thinwire.cli.chaos_calm import attended
from thinwire.cli.chaos_net import Hosts
from thinwire.cli.chaos_plan import ROUNDS, Event, N, Story
from thinwire.cli.chaos_task import outcome
from thinwire.cli.demo_train import Digits
from thinwire.elastic.history import History
from thinwire.ledger import conservation_error


@dataclass
class Told:
    """What is known of a story while it runs.

    Args:
        story: what befalls it.
        folder: its own.
        hosts: where the workers are, if not all on this host.
        lives: how often each worker was started.
        links: until when each link is slow or cut; 0 where it is mended.
        ended: whether it came to its end.
        why: why it did not.
    """

    story: Story
    folder: Path
    hosts: Hosts | None = None
    lives: dict[int, int] = field(default_factory=dict)
    links: dict[Event, float] = field(default_factory=dict)
    ended: bool = True
    why: str | None = None

    def fail(self, why: str) -> None:
        """Notes that the story did not end as it should."""
        self.ended, self.why = False, self.why or why

    def struck(self, who: int) -> list[Event]:
        """Returns the events of a worker that have happened, the last one last."""
        return [
            e
            for e in self.story.events
            if e.who == who and (self.folder / f"struck-{e.who}-{e.round}").exists()
        ]


def again(told: Told, data: str) -> dict[str, Any]:
    """Returns how an elastic story ends with the same workers away and nothing else amiss."""
    ended = _ended(told)
    history = History.from_json(next(iter(ended.values()))["history"])
    return attended(told.story, data, told.folder, history, len(ended))


def measured(
    told: Told, digits: Digits, expected: dict[str, Any], there: dict[str, Any]
) -> dict[str, Any]:
    """Returns what a story that has ended came to.

    Args:
        told: the story.
        digits: of any worker.
        expected: the outcome of the calm run.
        there: the outcome of the calm run of the same attendance.
    """
    ended = _ended(told)
    books = [end["books"] for end in ended.values()]
    anchors = [end["anchor"] for end in ended.values()]
    same = all(torch.equal(anchor, anchors[0]) for anchor in anchors)
    if told.story.kind == "elastic":
        books += _of_the_dead(told, ended)
    end_of = outcome(anchors, digits)
    # Of those to whom nothing happened: how long they were held up.
    struck = {event.who for event in told.story.events}
    slowest = max((end["slowest"] for rank, end in ended.items() if rank not in struck), default=0)
    if told.story.kind != "gossip" and not same:
        told.fail("the workers hold different anchors")
    if any(end["round"] != ROUNDS for end in ended.values()):
        told.fail(f"the workers ended in rounds {[end['round'] for end in ended.values()]}")
    return {
        "ended": told.ended,
        "why": told.why,
        "accuracy": end_of["accuracy"],
        "conservation_error": conservation_error(books),
        "attended_accuracy": there["accuracy"],
        "same_bits_as_calm": end_of["digest"] == expected["digest"],
        "same_bits_as_attended": end_of["digest"] == there["digest"],
        "slowest_step": round(slowest, 2),
    }


def _ended(told: Told) -> dict[int, Any]:
    return {
        rank: torch.load(found[-1], weights_only=True)
        for rank in range(N)
        if (found := sorted(told.folder.glob(f"ended-{rank}-*.pt")))
    }


def _of_the_dead(told: Told, ended: dict[int, Any]) -> list[dict[str, torch.Tensor]]:
    """Returns the books of lives that were cut short: what they still owed is forgotten."""
    history = History.from_json(next(iter(ended.values()))["history"])
    books = []
    for rank, lives in told.lives.items():
        for life in range(lives):
            file = told.folder / f"books-{rank}-{life}.pt"
            done = told.folder / f"ended-{rank}-{life}.pt"
            if done.exists() or not file.exists():
                continue
            left = torch.load(file, weights_only=True)
            own = left["books"]
            for round, generation, closed in left["tries"]:
                if history.decided(round) == tuple(generation):
                    own = closed
            own["forgotten"] = own["forgotten"] + own["residual"]
            own["residual"] = own["residual"] * 0
            books.append(own)
    return books
