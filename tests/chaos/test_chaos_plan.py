"""A story is drawn from its seed and its number, and what befalls it befalls it once."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from thinwire.cli.chaos_faults import FULL, Strikes
from thinwire.cli.chaos_plan import FORMS, HARM, KINDS, LAST, SPOILS, Event, N, Story, plan
from thinwire.errors import PeerLost

MANY = [plan(seed, number) for seed in range(4) for number in range(100)]


def test_a_seed_replays_a_story() -> None:
    assert [plan(7, n) for n in range(40)] == [plan(7, n) for n in range(40)]
    assert len({plan(7, n) for n in range(40)}) == 40
    for told in MANY:
        assert Story.of(told.as_dict()) == told


def test_everything_that_can_befall_a_kind_does() -> None:
    for kind in KINDS:
        mine = [told for told in MANY if told.kind == kind]
        assert {event.what for told in mine for event in told.events} == set(HARM[kind])
        assert {told.form for told in mine} == set(FORMS[kind])


def test_events_leave_room_for_an_end_and_for_a_snapshot_to_go_back_to() -> None:
    for told in MANY:
        rounds = [event.round for event in told.events]
        assert rounds == sorted(set(rounds))
        for event in told.events:
            assert event.round < LAST
            assert event.who < N
            assert event.what not in ("flip", "short") or event.round >= SPOILS


def test_an_elastic_group_keeps_a_majority_that_can_return() -> None:
    for told in (told for told in MANY if told.kind == "elastic"):
        gone = {e.who for e in told.events if e.what in ("kill", "exit") and not e.seconds}
        assert len(gone) <= 1


def test_an_event_happens_once_however_often_its_worker_starts(tmp_path: Path) -> None:
    cut = Event("cut", who=1, round=3, turn=1)
    at = [0]
    for life in range(3):
        strikes = Strikes([cut], tmp_path, lambda: at[0])
        cuts = 0
        for at[0] in range(6):
            for _ in range(4):
                try:
                    strikes.message()
                except PeerLost:
                    cuts += 1
                    assert at[0] == 3
        assert cuts == (life == 0)


def test_a_full_disk_has_room_again_when_it_is_mended(tmp_path: Path) -> None:
    strikes = Strikes([Event("full", 0, 0, 0)], tmp_path, lambda: 0)
    strikes.message()
    file = tmp_path / "file"
    with strikes.disk(), pytest.raises(OSError, match="too large"):
        file.write_bytes(b"0" * (FULL + 1))
    strikes.mend()
    with strikes.disk():
        file.write_bytes(b"0" * (FULL + 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert soft == hard
