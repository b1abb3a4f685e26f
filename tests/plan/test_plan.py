"""A plan's terms add up, its H is the fewest, and its memory is what exchanges keep."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

import thinwire as tw
from thinwire.cli import main
from thinwire.cli.plan_table import figures, show
from thinwire.link import Link
from thinwire.plan import MOST_H, Coding, Job, advice, cost, costs, options
from thinwire.virtual import Sizes
from thinwire.wire.frame import HEADER

JOB = Job(10_000_000, 0.5, 8, Link(1e8, 0.01))
WIDE = Coding(2.5e-9, 3.1e-10)
BY_NAME = {option.name: option for option in options()}


def test_an_all_reduce_is_a_ring_at_line_rate() -> None:
    found = cost(BY_NAME["vanilla, all-reduce"], JOB)
    payload = 2 * 7 / 8 * 4e7
    assert found.sent == found.heard == payload
    assert found.talk == pytest.approx(payload * 8 / 1e8 * 1.0456 + 14 * 0.01, rel=0.002)


def test_a_master_hears_all_and_answers_all() -> None:
    found = cost(BY_NAME["SignTopK 1 %, server"], JOB)
    C = tw.TopK(density=0.01) >> tw.Sign()
    assert found.heard <= 7 * (HEADER + C.nbytes(10_000_000))
    # The answers share the master's line, and so all come with the last.
    line = (found.sent + 7 * Sizes(C, 10_000_000).whole) * 8 / 1e8 * 1.0456
    assert found.talk == pytest.approx(line + 0.02, rel=0.01)


def test_the_needed_H_is_the_fewest_that_reaches_the_utilisation() -> None:
    for found in costs(JOB):
        assert found.utilisation(found.H_needed, JOB.step) >= JOB.utilisation
        if found.H_needed > 1:
            assert found.utilisation(found.H_needed - 1, JOB.step) < JOB.utilisation


def test_coding_and_software_are_terms_of_their_own() -> None:
    name = "SignTopK 1 %, gather"
    plain = cost(BY_NAME[name], JOB)
    coded = cost(BY_NAME[name], replace(JOB, coding={name: Coding(1e-9, 2e-10)}))
    assert (plain.code, coded.talk) == (0, plain.talk)
    assert coded.code == pytest.approx(1e7 * (1e-9 + 7 * 2e-10))
    assert cost(BY_NAME[name], replace(JOB, message=0.1)).talk == pytest.approx(plain.talk + 0.1)


def test_workers_that_share_cores_wait_for_each_others_coding() -> None:
    name = "SignTopK 1 %, gather"
    coding = {name: Coding(1e-9, 2e-10)}
    own, more, shared = (
        cost(BY_NAME[name], replace(JOB, coding=coding, cores=cores)).code for cores in (8, 16, 2)
    )
    assert own == more == pytest.approx(1e7 * (1e-9 + 7 * 2e-10))
    assert shared == pytest.approx(4 * own)


def test_no_cores_are_no_machine() -> None:
    with pytest.raises(tw.ConfigError, match="cores is 0; it must be a whole number in"):
        replace(JOB, cores=0)


@pytest.mark.parametrize("cores", [1, 2, 4, 8])
@pytest.mark.parametrize("rate", [1e6, 1e8, 1e10])
def test_on_shared_cores_nothing_takes_less_than_no_time(cores, rate) -> None:
    job = Job(100_000, 0.01, 8, Link(rate, 0.001), coding=dict.fromkeys(BY_NAME, WIDE), cores=cores)
    for found in costs(job):
        assert found.talk >= -1e-9
        assert found.code >= -1e-9
        assert found.utilisation(found.H, job.step) <= 1 + 1e-9


def test_memory_is_the_anchor_and_what_the_exchange_keeps() -> None:
    kept = {found.option.name: found.kept / 4e7 for found in costs(JOB)}
    assert kept["vanilla, all-reduce"] == 1
    assert kept["SignTopK 1 %, gather"] == 2
    assert kept["8-bit ring"] == 1
    assert kept["8-bit gossip, ring"] == 2
    assert kept["CHOCO TopK 10 %"] == 3


def test_advice_takes_few_steps_and_few_bytes_and_says_when_nothing_helps() -> None:
    best, H, reason = advice(JOB, costs(JOB))
    assert best.H_needed == H <= MOST_H
    assert "reaches 90%" in reason
    fast = replace(JOB, link=Link(1e12, 1e-6), step=10.0)
    assert advice(fast, costs(fast))[:2] == (costs(fast)[0], 1)
    slow = replace(JOB, link=Link(1e3, 1.0), step=0.01)
    best, H, reason = advice(slow, costs(slow))
    assert H == MOST_H
    assert "no method reaches" in reason


CODED = {name: Coding(3e-8, 5e-9) for name in BY_NAME if "all-reduce" not in name}
"""Of a machine so slow that over a fast line an all-reduce takes the least time."""
LAN = [
    Job(10_000_000, 0.05, workers, Link(rate, 5e-5), coding=coding)
    for workers in (2, 4, 16)
    for rate in (1e9, 1e10, 1e11)
    for coding in ({}, CODED)
]


def made_by(line: str) -> dict:
    return eval(f"dict({line})" if line.startswith("H=") else line, {"tw": tw})


@pytest.mark.parametrize("job", LAN, ids=lambda j: f"{j.workers}, {j.link.say()}, {len(j.coding)}")
def test_the_code_to_paste_has_the_H_that_is_recommended(job) -> None:
    best, H, _ = advice(job, costs(job))
    assert made_by(best.option.code.format(H=H))["H"] == H


def test_a_method_of_one_step_a_round_is_never_recommended_with_more() -> None:
    job = Job(10_000_000, 0.05, 2, Link(1e10, 5e-5), coding=CODED)
    found = {c.option.name: c for c in costs(job)}
    vanilla, local = found["vanilla, all-reduce"], found["local SGD, all-reduce"]
    assert vanilla.H_needed == local.H_needed > 1
    assert (vanilla.possible, local.possible) == (False, True)
    best, H, reason = advice(job, list(found.values()))
    assert (best, H) == (local, local.H_needed)
    assert "plain averaging has" in reason
    assert "would need" not in reason


@pytest.mark.parametrize("job", [JOB, *LAN[::5]])
def test_what_is_recommended_sends_least_of_those_that_it_is_compared_with(job) -> None:
    found = costs(job)
    best, H, reason = advice(job, found)
    bound = re.search(r"sends least of those that do with H up to (\d+)", reason)
    if bound is None:
        assert "no method reaches" in reason or "no bottleneck" in reason
        return
    able = [c for c in found if c.possible and c.H_needed <= int(bound[1])]
    assert best in able
    assert all(max(best.sent, best.heard) <= max(c.sent, c.heard) for c in able)
    assert math.ceil(4 / 3 * min(c.H_needed for c in able)) >= H


def test_every_options_code_makes_its_preset() -> None:
    for option in options():
        made = made_by(option.code.format(H=5))
        assert made["exchange"] == option.preset["exchange"]
        assert made.get("compressor", tw.Identity()) == option.preset["compressor"]
        assert made["H"] == (5 if option.chooses_H else 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--params", "1e6"], "needs --step-time, such as --step-time 0.8s"),
        (["--params", "lots"], "write 1.1e9, 350M or 70B"),
        (["--params", "1e6", "--step-time", "1", "--workers", "4", "--bandwidth", "0", "--latency",
          "1ms"], "write one such as 100mbit"),
        (["--params", "1e6", "--step-time", "1", "--workers", "1", "--bandwidth", "1e8",
          "--latency", "1ms"], "2 to 1024 workers"),
        (["--params", "1e6", "--step-time", "1", "--workers", "4", "--bandwidth", "1e8",
          "--latency", "1ms", "--utilisation", "1"], "write 0.9"),
        (["--params", "1e6", "--step-time", "1", "--workers", "8", "--bandwidth", "1e8",
          "--latency", "1ms", "--cores", "6"], "write --cores 4"),
        (["--params", "1e6", "--measure", "--step-time", "1"], "write torchrun"),
        (["--params", "1e6", "--measure", "--workers", "4"], "--workers 4 goes without --measure"),
        (["--params", "1e6", "--measure", "--bandwidth", "1mbit"], "--bandwidth 1mbit goes"),
        (["--params", "1e6", "--measure", "--latency", "1ms"], "leave one of the two out"),
        (["--params", "1e6", "--measure", "--step-time", "1", "--step-from", "a:b"],
         "--step-time 1 and --step-from a:b both say how long"),
        (["--params", "1e6", "--step-from", "a:b"], "timed with --measure"),
        (["--params", "1e6", "--cores", "2", "--no-coding"], "--cores 2 has workers wait"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_with_a_right_one(arguments, said, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_command_prints_a_table_a_reason_and_code_within_80_columns(
    capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    job = "--params 1e7 --step-time 0.5 --workers 8 --bandwidth 100mbit --latency 10ms"
    file = tmp_path / "plan.json"
    with pytest.raises(SystemExit) as stop:
        main(["plan", *job.split(), "--no-coding", "--json", str(file)])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert all(option.name in out for option in options())
    assert "Take " in out
    *lines, code = [line for line in out.splitlines() if line.strip()]
    assert max(len(line) for line in lines) <= 80
    assert code.strip().startswith("optimizer = tw.LocalSGD(model, optimizer,")
    assert "…" not in out
    told = {r["method"]: r for r in json.loads(file.read_text())["results"]}
    assert told["vanilla, all-reduce"]["H_needed"] is None
    assert told["local SGD, all-reduce"]["H_needed"] > 1


WIDEST = [
    JOB,
    LAN[-1],
    Job(7_000_000_000, 123.4, 8, Link(1e9, 0.05)),
    Job(7850, 1e-4, 3, Link(56e3, 0.3)),
]


@pytest.mark.parametrize("job", WIDEST, ids=lambda j: f"{j.params}")
def test_the_table_has_seconds_of_a_round_and_is_whole_in_80_columns(
    job, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    job = replace(job, coding=dict.fromkeys(BY_NAME, WIDE))
    found = costs(job)
    show(job, found, *advice(job, found), coding="measured in rounds of this job")
    *lines, _ = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert max(len(line) for line in lines) <= 80
    assert "…" not in "".join(lines)
    for c in found:
        (row,) = (line for line in lines if line.strip().startswith(f"{c.option.name} "))
        cells = row.split()
        # H and the round's seconds come before busy, which alone ends in %.
        (busy,) = (n for n, cell in enumerate(cells) if cell.endswith("%") and n > 4)
        assert cells[busy - 2 : busy] == [f"{c.H}", figures(c.seconds(c.H, job.step))]
        assert cells[busy + 1] == (f"{c.H_needed}" if c.possible else "never")
