"""A lab of namespaces keeps its rate, reconciles its bytes, and leaves nothing behind."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
from pathlib import Path

import pytest
from netlab_hosts import (
    BENCH,
    NOTHING,
    SLEEPER,
    await_start,
    lab,
    left_behind,
    needs_root,
    program,
    running,
    script_of,
)

from thinwire.errors import ThinwireError
from thinwire.link import Link

ROUNDS = BENCH / "rounds.py"
FORMS = pytest.mark.parametrize("form", [(), ("--plain",)], ids=["torchrun", "plain"])


@needs_root
@pytest.mark.network
@FORMS
def test_a_job_runs_at_the_rate_and_its_bytes_are_reconciled(tmp_path: Path, form) -> None:
    out = tmp_path / "r.json"
    with lab("run", "--hosts", 2, "--rate", "20mbit", *form, "--", ROUNDS, "--params", 500_000,
             "--rounds", 2, "--out", out) as process:  # fmt: skip
        said, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    pairs = re.findall(r"host \d: ([\d,]+) bytes sent, .*; ([\d,]+) framed", said)
    assert len(pairs) == 2
    for pair in pairs:
        sent, framed = (int(n.replace(",", "")) for n in pair)
        # 66 of 1514 bytes a packet are headers; acknowledgements, rendezvous and Gloo are the rest.
        assert 1.02 < sent / framed < 1.10
    (found,) = json.loads(out.read_text())
    seconds = found["times"]["1"]["sync"]
    assert seconds > 0.9 * Link(2e7).seconds(500_000)
    assert left_behind(process.pid, out) == NOTHING


@needs_root
@pytest.mark.network
@FORMS
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_no_namespace_process_or_qdisc(tmp_path: Path, number, code, form) -> None:
    script = script_of(tmp_path)
    with lab("run", "--hosts", 3, *form, "--", script, start_new_session=True) as process:
        await_start(script, 3, process)
        there = left_behind(process.pid, script)
        assert there["namespaces"] == 4
        # Both ends of each host's link.
        assert there["qdiscs"] == 6
        # The lab itself, the ranks, and where torchrun starts them one of it a host.
        assert there["processes"] == (4 if form else 7)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "all hosts are removed" in err
    assert left_behind(process.pid, script) == NOTHING


LIMITED = """
import sys
import time
import types
from pathlib import Path

import jobs
import lab

script, torchrun = sys.argv[1:]
# The limit is over when all have started, and not before.
clock = lambda: float(all(Path(f"{script}{rank}").exists() for rank in range(2)))
jobs.time = types.SimpleNamespace(monotonic=clock, sleep=time.sleep)
with lab.Lab(2, None) as hosts:
    try:
        hosts.job([script], {}, torchrun=torchrun == "torchrun", limit=0.5)
    except jobs.JobFailed as error:
        print(error)
    print([lab._ip("netns", "pids", name) for name in hosts.names])
"""


@needs_root
@pytest.mark.network
@pytest.mark.parametrize("form", ["torchrun", "plain"])
def test_a_job_that_is_given_up_ends_before_its_lab_does(tmp_path: Path, form) -> None:
    script = script_of(tmp_path)
    with program(LIMITED, script, form) as process:
        said, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert said.splitlines()[-2:] == ["the job was given up after 0 s", "['', '']"]
    assert left_behind(process.pid, script) == NOTHING


@needs_root
@pytest.mark.network
def test_a_job_that_fails_ends_the_others_and_the_lab(tmp_path: Path) -> None:
    script = script_of(
        tmp_path,
        "import os, sys, time\nsys.exit(3) if os.environ['RANK'] == '1' else time.sleep(600)",
    )
    with lab("run", "--hosts", 2, "--plain", "--", script) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.splitlines()[-1] == "netlab: rank 1 ended with 3"
    assert left_behind(process.pid, script) == NOTHING


@needs_root
@pytest.mark.network
def test_a_script_is_given_its_arguments_and_its_own_dashes(tmp_path: Path) -> None:
    script = script_of(tmp_path, "import sys; print(sys.argv[1:])")
    with lab("run", "--hosts", 1, "--plain", "--", script, "-v", "--", "a", "--", "b") as process:
        said, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert said.splitlines()[0] == "['-v', '--', 'a', '--', 'b']"


@needs_root
@pytest.mark.network
def test_what_a_killed_lab_left_is_swept(tmp_path: Path) -> None:
    script = script_of(tmp_path)
    with lab("run", "--hosts", 1, "--plain", "--", script) as process:
        await_start(script, 1, process)
        process.kill()
        process.wait(timeout=30)
        for pipe in (process.stdout, process.stderr):
            pipe.close()  # What it left holds the other end.
    assert left_behind(process.pid, script)["namespaces"] == 2
    with lab("sweep") as sweeper:
        said, _ = sweeper.communicate(timeout=60)
    assert f"removed twlab-{process.pid}-0" in said
    assert left_behind(process.pid, script) == NOTHING


@pytest.fixture
def module(monkeypatch):
    """lab.py with removals that fail, of the names in the list that comes with it."""
    monkeypatch.syspath_prepend(str(BENCH))
    found = importlib.import_module("lab")
    stuck: list[str] = []
    tried: list[str] = []

    def remove(name: str) -> None:
        tried.append(name)
        if name in stuck:
            raise ThinwireError(f"{name} is stuck")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(found.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(found, "sweep", list)
    monkeypatch.setattr(found, "remove", remove)
    monkeypatch.setattr(found.Lab, "_raise", lambda self: None)
    return found, stuck, tried


def test_closing_tries_every_removal_and_then_raises_the_first_error(module) -> None:
    found, stuck, tried = module
    hosts = found.Lab(3, None)
    stuck += hosts.names[:2]
    with pytest.raises(ThinwireError, match=f"{hosts.names[0]} is stuck"):
        hosts.close()
    assert tried == [*hosts.names, hosts.switch]


def test_what_broke_first_is_raised_and_what_is_left_said_beside_it(module, capsys) -> None:
    found, stuck, _ = module
    hosts = found.Lab(2, None)
    stuck.append(hosts.switch)
    with pytest.raises(ThinwireError, match="a rank broke"), hosts:
        raise ThinwireError("a rank broke")
    assert capsys.readouterr().err == f"netlab: not removed: {hosts.switch} is stuck\n"
    with pytest.raises(ThinwireError, match="is stuck"), hosts:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--hosts", "251"),
            "251 hosts do not fit the 250 addresses of 10.77.0.0/24; write --hosts 4",
        ),
        (("--rate", "0mbit"), "write one such as 100mbit"),
        (("--rate", "fast"), "write 100mbit"),
        (("--delay", "soon"), "write 20ms"),
    ],
)
def test_a_wrong_argument_is_refused_with_a_right_one(arguments, said) -> None:
    with lab("run", *arguments, "--", "x.py") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in err
    assert len(err.splitlines()) == 1


AS = "import os; os.geteuid = lambda: {}; import lab, sys; sys.exit(lab.main())"


def test_without_root_it_refuses_and_names_what_needs_none() -> None:
    with program(AS.format(1), "run", "--", "x.py") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "need root on Linux" in err
    assert "thinwire demo --link" in err


def test_a_tool_that_is_not_there_is_named_with_its_package() -> None:
    text = AS.format("0; os.environ['PATH'] = '/nowhere'")
    with program(text, "run", "--", "x.py") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "netlab: ip is not installed; apt-get install iproute2\n"


LOOPBACK = """
import sys
from pathlib import Path

import lines

from thinwire.cli.signals import ended

lines.ROUNDS = Path(sys.argv[1])
sys.exit(ended("lines", lambda: lines.on_loopback([])))
"""


@pytest.mark.network
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_what_runs_on_loopback(tmp_path: Path, number, code) -> None:
    script = script_of(tmp_path)
    with program(LOOPBACK, script, start_new_session=True) as process:
        await_start(script, 4, process)
        assert running(script) == 5
        os.killpg(process.pid, number)
        process.communicate(timeout=30)
    assert process.returncode == code
    assert running(script) == 0


@pytest.mark.network
def test_a_rank_that_fails_on_loopback_ends_the_others(tmp_path: Path) -> None:
    text = "import os, sys\nif os.environ['RANK'] == '2': sys.exit(3)\n"
    script = script_of(tmp_path, text + SLEEPER)
    with program(LOOPBACK, script) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.splitlines()[-1] == "lines: rank 2 ended with 3"
    assert running(script) == 0
