"""A story is measured by calm runs, and one of the same attendance ends in the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from thinwire.cli.chaos_calm import attended, calm
from thinwire.cli.chaos_plan import ROUNDS, N, Story
from thinwire.cli.chaos_task import H, network
from thinwire.cli.demo_train import save_digits
from thinwire.elastic.history import History
from thinwire.flat import read

pytest.importorskip("sklearn")
STORY = Story(0, 3, "elastic", "gather", ())
AWAY = range(10, 20)
"""Rounds in which the last worker may be away."""


def noted(folder: Path, rank: int, life: int, lines: list[list[object]]) -> None:
    """Writes what one life of a worker leaves behind."""
    file = folder / f"notes-{rank}-{life}.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    owed = torch.zeros_like(read(list(network(3).parameters())))
    torch.save({"residual": owed}, folder / f"kept-{rank}-{life}.pt")


def lines(rounds: range, late: int = 0) -> list[list[object]]:
    """Returns the notes of a worker that takes part in these rounds."""
    each = ([["began", round, H * round + late], ["said", 1, 7]] for round in rounds)
    return [line for pair in each for line in pair]


def history(away: range) -> History:
    """Returns the history of a group whose last worker is away in these rounds."""
    made = History()
    for round in range(ROUNDS):
        names = tuple(f"w{rank}" for rank in range(N - (round in away)))
        made = made.after((1, 7), names)
    return made


def digest(folder: Path, away: range = range(0)) -> str:
    data = str(folder / "digits.npz")
    return str(attended(STORY, data, folder, history(away), N)["digest"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_digits(str(tmp_path / "digits.npz"), 0)
    for rank in range(N):
        noted(tmp_path, rank, 0, lines(range(ROUNDS)))
    return tmp_path


def test_where_all_attend_it_is_the_calm_run(folder: Path) -> None:
    assert digest(folder) == calm(STORY, str(folder / "digits.npz"))["digest"]


def test_one_other_batch_of_one_worker_is_noticed(folder: Path) -> None:
    right = digest(folder)
    noted(folder, 2, 0, [*lines(range(ROUNDS - 1)), *lines(range(ROUNDS - 1, ROUNDS), late=1)])
    assert digest(folder) != right


def test_what_a_sleeper_owes_is_in_its_next_update_and_what_a_dead_one_owed_is_not(
    folder: Path,
) -> None:
    first, later = lines(range(AWAY.start)), lines(range(AWAY.stop, ROUNDS))
    unheard: list[list[object]] = [["began", AWAY.start, H * AWAY.start]]
    noted(folder, N - 1, 0, [*first, *unheard, ["told"], *later])
    slept = digest(folder, AWAY)
    noted(folder, N - 1, 0, [*first, *unheard])
    noted(folder, N - 1, 1, later)
    died = digest(folder, AWAY)
    noted(folder, N - 1, 0, first)
    assert digest(folder, AWAY) == died != slept
