"""A lab as its own process, scripts for its hosts, and what either has left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "netlab"
LAB = BENCH / "lab.py"
NOTHING = {"namespaces": 0, "processes": 0, "qdiscs": 0, "links": 0}
SLEEPER = """import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(__file__ + os.environ["RANK"]).touch()
time.sleep(600)
"""
"""A job's script that says where it has started, and then stays, though it is asked to end."""


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


def popen(*command, **options):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def lab(*arguments, **options):
    return popen(LAB, *arguments, **options)


def program(text: str, *arguments, **options):
    """A program that finds the modules of bench/netlab."""
    path = f"{BENCH}:{os.environ.get('PYTHONPATH', '')}"
    return popen("-c", text, *arguments, env={**os.environ, "PYTHONPATH": path}, **options)


def script_of(folder: Path, text: str = SLEEPER) -> Path:
    script = folder / f"job-{os.getpid()}-{time.monotonic_ns()}.py"
    script.write_text(text)
    return script


def await_start(script: Path, N: int, process) -> None:
    """Waits until the sleepers of all ranks run."""
    deadline = time.monotonic() + 60
    while not all(Path(f"{script}{rank}").exists() for rank in range(N)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lines(*command: str) -> list[str]:
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return said.splitlines()


def running(script: Path) -> int:
    """How many processes of this machine name that script, in whatever session or namespace."""
    found = 0
    for entry in Path("/proc").iterdir():
        try:
            found += str(script).encode() in (entry / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
    return found


def left_behind(pid: int, script: Path) -> dict[str, int]:
    """What there is of a process's lab: namespaces, buckets in them, processes, links outside."""
    spaces = [line.split()[0] for line in lines("ip", "netns", "list")]
    own = [name for name in spaces if name.startswith(f"twlab-{pid}-")]
    shaped = [line for name in own for line in lines("tc", "-n", name, "qdisc", "show")]
    # By the names a lab gives: other programs of this machine may have links of their own.
    ours = re.compile(r"\b(port\d+|switch)\b")
    return {
        "namespaces": len(own),
        "processes": running(script),
        "qdiscs": sum("qdisc tbf" in line for line in shaped),
        "links": sum(ours.match(line) is not None for line in lines("ip", "-brief", "link")),
    }
