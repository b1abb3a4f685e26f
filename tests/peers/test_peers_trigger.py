"""The event trigger: a worker speaks where it has enough to say, and enough may change by round."""

from __future__ import annotations

import pytest
import torch
from peer_talks import run

import thinwire as tw
from thinwire import TopK
from thinwire.value import Value
from thinwire.wire.frame import Kind

D = 40
SCHEDULE = ((0, 100.0), (2, 0.0), (4, 1e-3))


def learn(rank: int, round: int, x: torch.Tensor) -> torch.Tensor:
    return torch.full((D,), 0.1 * (rank + 1))


def spoke(trigger, rounds: int = 6) -> list[list[bool]]:
    seen = run(tw.Choco(gamma=0.5, trigger=trigger), TopK(density=0.5), torch.zeros(D), 4, rounds,
               learn)  # fmt: skip
    return [[all(f[3] == Kind.SAID for _, f in e.posted) for e in one.ends] for one in seen]


def test_a_schedule_holds_from_each_of_its_rounds_on() -> None:
    exchange = tw.Choco(trigger=SCHEDULE)
    assert [exchange.threshold(t) for t in range(6)] == [100.0, 100.0, 0.0, 0.0, 1e-3, 1e-3]
    assert spoke(SCHEDULE) == [[False] * 4] * 2 + [[True] * 4] * 4


def test_a_schedule_of_one_number_is_that_number() -> None:
    assert spoke(((0, 1.0),)) == spoke(1.0)
    assert spoke(0.0) == [[True] * 4] * 6


def test_the_threshold_is_of_the_squared_distance_in_parameter_units() -> None:
    # At round 0 the distance to one's replica is delta alone: 40 entries of 0.1 (rank + 1).
    for rank in range(4):
        exactly = float(torch.full((D,), 0.1 * (rank + 1)).double().square().sum())
        for factor, speaks in ((0.999, True), (1.001, False)):
            assert spoke(factor * exactly, 1)[0][rank] == speaks


def test_a_schedule_goes_to_plain_data_and_back() -> None:
    exchange = tw.Choco(trigger=SCHEDULE)
    assert Value.from_json(exchange.to_json()) == exchange
    assert eval(repr(exchange), {"Choco": tw.Choco, "RingGraph": tw.RingGraph}) == exchange
    assert tw.squarm_sgd(trigger=SCHEDULE)["exchange"].trigger == SCHEDULE


@pytest.mark.parametrize(
    "trigger",
    [
        -1.0,
        "often",
        (),
        ((1, 0.5),),
        ((0, 1.0), (0, 2.0)),
        ((0, 1.0), (5, -2.0)),
        (0, 1),
        (("a", 1),),
        ((0.0, 1.0),),
        ((0, float("nan")),),
    ],
    ids=repr,
)
def test_what_is_no_threshold_is_refused_and_the_way_out_named(trigger: object) -> None:
    with pytest.raises(tw.ConfigError, match=r"trigger is .*(schedule from round 0|must lie in)"):
        tw.Choco(trigger=trigger)
