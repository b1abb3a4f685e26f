"""Processes of a job: started in sessions of their own, awaited together, ended together."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from thinwire.cli.signals import held
from thinwire.errors import ThinwireError

GRACE = 1.0
"""Seconds that a process is given to end before it is killed, and to be gone after."""
QUIET = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1"}
"""Of every job: one thread each, for hosts share cores; torch's large vectors in huge pages, since
a new one costs its page faults at each use: 44 ms of 25.6 M entries, with huge pages 11."""


class JobFailed(ThinwireError):
    """A process of a job ended with an error, or the job took too long."""


def start(
    command: Sequence[str], environment: dict[str, str], log: Path | None = None
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, so that Ctrl-C reaches us alone, who `end` it.

    Args:
        command: a program and its arguments.
        environment: more of it.
        log: where what it says is appended; by default it is shown.
    """
    with contextlib.ExitStack() as stack:
        said = None if log is None else stack.enter_context(log.open("ab"))
        return subprocess.Popen(
            command,
            env={**os.environ, **QUIET, **environment},
            start_new_session=True,
            stdout=said,
            stderr=said,
        )


def variables(rank: int, N: int, address: str, port: int) -> dict[str, str]:
    """Returns what torchrun tells a rank, for a process started without it."""
    return {
        "RANK": f"{rank}", "WORLD_SIZE": f"{N}", "LOCAL_RANK": "0",
        "MASTER_ADDR": address, "MASTER_PORT": f"{port}",
    }  # fmt: skip


def wait(running: Sequence[subprocess.Popen[bytes]], limit: float | None = None) -> None:
    """Waits until all processes have ended.

    Args:
        running: them, in rank order.
        limit: seconds after which they are given up.

    Raises:
        JobFailed: one failed, or they took too long; the others still run.
    """
    left = list(running)
    until = math.inf if limit is None else time.monotonic() + limit
    while left:
        for process in list(left):
            code = process.poll()
            if code:
                raise JobFailed(f"rank {running.index(process)} ended with {code}")
            if code == 0:
                left.remove(process)
        if left and time.monotonic() > until:
            raise JobFailed(f"the job was given up after {limit:.0f} s")
        time.sleep(0.05)


@contextlib.contextmanager
def together() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yields a list for the processes of a job, and ends all that is in it, whatever comes."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        yield running
    finally:
        with held():
            for process in running:
                end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all of its session, if it has not ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
