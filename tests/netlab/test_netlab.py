"""A lab of namespaces keeps its rate, reconciles its bytes, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thinwire.link import Link

LAB = Path(__file__).parents[2] / "bench" / "netlab" / "lab.py"
ROUNDS = LAB.with_name("rounds.py")


def can_make_namespaces() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    try:
        made = subprocess.run(
            ["ip", "netns", "add", "twlabprobe"], capture_output=True, check=False
        )
        subprocess.run(["ip", "netns", "del", "twlabprobe"], capture_output=True, check=False)
        shaped = subprocess.run(["tc", "-V"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return made.returncode == 0 and shaped.returncode == 0


needs_root = pytest.mark.skipif(not can_make_namespaces(), reason="needs root, ip netns and tc")


def lab(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, str(LAB), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def left_behind(pid: int, script: str) -> dict[str, int]:
    """What a lab of that process has left: namespaces, processes, and qdiscs and links outside."""

    def lines(*command: str) -> list[str]:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )

    running = 0
    for entry in Path("/proc").iterdir():
        try:
            running += script.encode() in (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
    # By the names a lab gives: other programs of this machine may have shaped links of their own.
    ours = re.compile(r"\b(port\d+|switch)\b")
    shaped = [line for line in lines("tc", "qdisc", "show") if "tbf" in line]
    links = [line for line in lines("ip", "-brief", "link") if line]
    return {
        "namespaces": sum(f"twlab-{pid}-" in line for line in lines("ip", "netns", "list")),
        "processes": running,
        "qdiscs": sum(ours.search(line) is not None for line in shaped),
        "links": sum(ours.match(line) is not None for line in links),
    }


NOTHING = {"namespaces": 0, "processes": 0, "qdiscs": 0, "links": 0}


def script_of(folder: Path, text: str) -> Path:
    script = folder / f"job-{os.getpid()}-{time.monotonic_ns()}.py"
    script.write_text(text)
    return script


@needs_root
@pytest.mark.network
def test_a_job_runs_at_the_rate_and_its_bytes_are_reconciled(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    with lab("run", "--hosts", 2, "--rate", "20mbit", "--plain", "--", ROUNDS, "--params", 500_000,
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
    assert left_behind(process.pid, str(out)) == NOTHING


@needs_root
@pytest.mark.network
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_no_namespace_process_or_qdisc(tmp_path: Path, number, code) -> None:
    text = "import pathlib, time, os\npathlib.Path(__file__ + os.environ['RANK']).touch()\n"
    script = script_of(tmp_path, text + "time.sleep(600)\n")
    with lab("run", "--hosts", 3, "--plain", "--", script, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not all(Path(f"{script}{rank}").exists() for rank in range(3)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        there = left_behind(process.pid, str(script))
        assert there["namespaces"] == 4
        assert there["processes"] >= 4
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "all hosts are removed" in err
    assert left_behind(process.pid, str(script)) == NOTHING


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
    assert err.splitlines()[-1] == "netlab: host 1 ended with 3"
    assert left_behind(process.pid, str(script)) == NOTHING


@needs_root
@pytest.mark.network
def test_what_a_killed_lab_left_is_swept(tmp_path: Path) -> None:
    text = "import pathlib, time\npathlib.Path(__file__ + '0').touch()\ntime.sleep(600)\n"
    script = script_of(tmp_path, text)
    with lab("run", "--hosts", 1, "--plain", "--", script) as process:
        deadline = time.monotonic() + 60
        while not Path(f"{script}0").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
        process.wait(timeout=30)
        for pipe in (process.stdout, process.stderr):
            pipe.close()  # What it left holds the other end.
    assert left_behind(process.pid, str(script))["namespaces"] == 2
    with lab("sweep") as sweeper:
        said, _ = sweeper.communicate(timeout=60)
    assert f"removed twlab-{process.pid}-0" in said
    assert left_behind(process.pid, str(script)) == NOTHING


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


def test_without_root_it_refuses_and_names_what_needs_none() -> None:
    program = "import os; os.geteuid = lambda: 1; import lab, sys; sys.exit(lab.main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "--", "x.py"],
        env={**os.environ, "PYTHONPATH": f"{LAB.parent}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "need root on Linux" in done.stderr
    assert "thinwire demo --link" in done.stderr
