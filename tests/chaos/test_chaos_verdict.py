"""What is wrong with a story is said, and how far stories may end from their calm runs."""

from __future__ import annotations

import math
from typing import Any

import pytest

from thinwire.cli.chaos_verdict import balances, problem, show, spread, within

SEEDS = [0.96, 0.962, 0.958, 0.96]


def result(accuracy: float = 0.96, calm: float = 0.96, **other: Any) -> dict[str, Any]:
    made = {
        "kind": "elastic", "ended": True, "why": None, "conservation_error": 1e-8, "left_over": 0,
        "events": [], "same_bits_as_attended": True, "accuracy": accuracy,
        "calm_accuracy": calm, "calm_spread": spread(SEEDS), **other,
    }  # fmt: skip
    return {"within_spread": within(made), **made}


def test_what_is_wrong_with_a_result_is_said() -> None:
    assert problem(result()) is None
    assert "hung" in str(problem(result(ended=False, why="it hung")))
    assert "missing" in str(problem(result(conservation_error=2e-5)))
    assert "missing" in str(problem(result(conservation_error=float("nan"))))
    assert "process" in str(problem(result(left_over=1)))
    assert "4 seeds lie 0.4% apart" in str(problem(result(0.95)))


def test_only_a_lost_message_may_change_bits() -> None:
    other = result(same_bits_as_attended=False)
    assert "other bits" in str(problem(other))
    assert problem({**other, "events": [{"what": "lose"}]}) is None
    assert "other bits" in str(problem({**other, "events": [{"what": "kill"}]}))


def test_a_story_may_end_as_far_from_its_calm_run_as_calm_runs_lie_apart() -> None:
    # Of the same seed: where that seed's own calm run is unlucky, so may the story be.
    assert within(result(0.9, 0.904))
    assert within(result(0.904, 0.9))
    assert not within(result(0.9, 0.905))
    assert not within(result(0.905, 0.9))


def test_stories_of_a_kind_may_end_one_deviation_from_their_calm_runs_in_the_mean() -> None:
    sd = spread(SEEDS)["sd"]
    (fine,) = balances([result(0.96 - 0.9 * sd)] * 8)
    (worse,) = balances([result(0.96 - 1.1 * sd)] * 8)
    assert fine.bound == pytest.approx(sd)
    assert fine.problem is None
    assert "elastic: 8 stories end -0.18 points" in str(worse.problem)
    # Of few stories the mean is luck.
    (two,) = balances([result(0.96 - 1.1 * sd), result()])
    assert two.bound == pytest.approx(2 * sd)
    assert two.error == pytest.approx(0.55 * sd)
    (alone,) = balances([result(0.96 - 1.1 * sd)])
    assert alone.problem is None
    assert math.isnan(alone.error)


def test_kinds_are_balanced_by_themselves_and_without_what_did_not_end() -> None:
    hung = result(ended=False, why="it hung") | {"accuracy": None}
    found = balances([result(), result(kind="sync"), hung])
    assert [(b.kind, b.stories, b.mean) for b in found] == [("sync", 1, 0), ("elastic", 1, 0)]


def test_the_table_shows_kinds_of_which_none_ended_and_fits_a_terminal(capsys) -> None:
    worst = result(0.95, conservation_error=1e-8, slowest_step=13.7)
    show([worst] * 100 + [result(kind="ring", ended=False, why="it hung")])
    said = capsys.readouterr().out
    assert "elastic  100/100" in said
    assert "ring         0/1" in said
    assert "13.7 s" in said
    assert "\u2026" not in said
