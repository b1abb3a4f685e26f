"""Stories end, at the accuracy of the calm run, with every update accounted for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos.chaos_cases import check, descendants, nursery, story

from thinwire.cli.chaos_net import check_allowed
from thinwire.cli.chaos_plan import DEADLINE, Event
from thinwire.errors import ConfigError

SPREAD = 0.016
"""Calm runs of sixteen seeds lie 1.7 to 2.5 percent apart, as their form may be."""
CHAOS = [sys.executable, "-m", "thinwire.cli", "chaos"]


@pytest.mark.network
def test_one_of_four_dies_in_a_round_and_the_others_go_on_within_the_deadline() -> None:
    with nursery() as play:
        for form in ("gather", "server", "ring"):
            for what, seconds in (("exit", 0.0), ("kill", 0.0), ("stop", DEADLINE + 2)):
                result = play(story("elastic", form, Event(what, 2, 20, 2, seconds)))
                print(f"{form}, {what}: held up {result['slowest_step']} s, deadline {DEADLINE} s")
                check(result, SPREAD)
                assert result["slowest_step"] < DEADLINE + 2


@pytest.mark.network
@pytest.mark.parametrize("kind", ["sync", "ring", "gossip"])
def test_a_gang_that_is_restarted_ends_in_the_bits_of_the_calm_run(kind: str) -> None:
    forms = {"sync": "server", "ring": "two-phase", "gossip": "gossip"}
    harm = (Event("kill", 1, 9, 1), Event("flip", 2, 21, 3), Event("term", 0, 30, 2))
    with nursery() as play:
        result = play(story(kind, forms[kind], *harm, Event("full", 3, 36, 0)))
    check(result, 0.0)
    assert result["same_bits_as_calm"]
    assert result["starts"] == 4 * 4


@pytest.mark.network
def test_a_worker_that_returns_takes_its_residual_up_again() -> None:
    with nursery() as play:
        result = play(story("elastic", "gather", Event("kill", 2, 20, 1, 0.3)))
    check(result, SPREAD)
    assert result["starts"] == 5


@pytest.mark.network
def test_the_command_writes_what_it_says_it_does(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [*CHAOS, "--stories", "4", "--seed", "0", "--json", str(out)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())["results"]
    assert [result["story"] for result in results] == [0, 1, 2, 3]
    for result in results:
        check(result, SPREAD)
        assert {"story", "seed", "ended", "seconds", "accuracy", "calm_accuracy"} <= set(result)


@pytest.mark.network
def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    before = descendants()
    process = subprocess.Popen(
        [*CHAOS, "--stories", "50"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stderr is not None
    assert "starting" in process.stderr.readline()
    for _ in range(600):
        if len(descendants() - before) >= 3:
            break
        time.sleep(0.05)
    assert len(descendants() - before) >= 3
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in said
    for _ in range(100):
        if descendants() <= before:
            break
        time.sleep(0.05)
    assert descendants() <= before


@pytest.mark.network
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_host_whose_cable_is_pulled_comes_back(tmp_path: Path) -> None:
    try:
        check_allowed()
    except ConfigError as error:
        pytest.skip(str(error))
    out = tmp_path / "out.json"
    subprocess.run(
        [*CHAOS, "--namespaces", "--stories", "2", "--kind", "elastic", "--json", str(out)],
        cwd=tmp_path, capture_output=True, timeout=300, check=True,
    )  # fmt: skip
    for result in json.loads(out.read_text())["results"]:
        check(result, SPREAD)


def test_a_kind_that_is_none_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [*CHAOS, "--kind", "ringg"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "choose from sync, elastic, ring, gossip" in done.stderr
