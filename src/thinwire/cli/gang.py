"""A gang: N worker processes on this machine in one Gloo group, started and ended together.

The parent starts `python -m thinwire.cli.worker` N times, hands each its job on standard input
and reads what it says, JSON lines, from a pipe of its own. Whatever happens, no worker outlives
the gang: the parent ends them, and one whose parent is gone ends itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinwire.cli.signals import held
from thinwire.errors import ConfigError, ThinwireError

Message = dict[str, Any]

OTHERS = 0.5
"""Seconds to wait, once a worker has failed, for the others' reports: the first to be heard may
only have lost the one that broke."""
GRACE = 0.5
"""Seconds from the polite signal to the other one."""


class Gang:
    """Runs one function in N processes and yields what they say.

    The function is `module:name` and is called `(rank, N, args, say)` with the default process
    group in place, one thread, and standard output left to the parent.

    Args:
        N: workers.
        target: the function, as "package.module:name".
        args: handed to each, as JSON; large data goes by a file.
        timeout: seconds a worker waits for another that is silent.

    Raises:
        ConfigError: N is not positive.

    Example:
        >>> with Gang(2, "thinwire.cli.worker:greet", {}) as gang:  # doctest: +SKIP
        ...     sorted(message["rank"] for message in gang.messages())
        [0, 1]
    """

    def __init__(self, N: int, target: str, args: dict[str, Any], timeout: float = 60.0) -> None:
        if N < 1:
            raise ConfigError(f"a gang has at least one worker; got {N}")
        self.N, self.target, self.args, self.timeout = N, target, args, timeout
        self.processes: list[subprocess.Popen[bytes]] = []
        self._readers: list[int] = []

    @property
    def pids(self) -> list[int]:
        """The workers' process numbers, in rank order."""
        return [process.pid for process in self.processes]

    def __enter__(self) -> Gang:
        self._folder = tempfile.TemporaryDirectory(prefix="thinwire-gang-")
        try:
            for rank in range(self.N):
                self._start(rank)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def messages(self) -> Iterator[Message]:
        """Yields what the workers say, each with its "rank", until all have done their job.

        Raises:
            ThinwireError: a worker failed or died; it names the rank and the error's last line.
        """
        failures: dict[int, _Failure] = {}
        deadline = None
        with selectors.DefaultSelector() as ready:
            for rank, reader in enumerate(self._readers):
                ready.register(reader, selectors.EVENT_READ, _Lines(rank))
            while ready.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                heard = ready.select(left)
                if not heard and deadline is not None:
                    break
                for key, _ in heard:
                    lines: _Lines = key.data
                    yield from self._hear(key.fd, lines, failures)
                    if lines.ended:
                        ready.unregister(key.fd)
                if failures and deadline is None:
                    deadline = time.monotonic() + OTHERS
        if failures:
            raise ThinwireError(self._blame(failures))

    def end(self) -> None:
        """Ends every worker that still runs and leaves none behind, in about a second at most."""
        # Ctrl-C twice must not leave half a gang.
        with held():
            for process in self.processes:
                if process.poll() is None:
                    process.terminate()
            deadline = time.monotonic() + GRACE
            for process in self.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
                if process.poll() is None:
                    process.kill()
                process.wait()
                if process.stdin is not None:
                    with contextlib.suppress(OSError):
                        process.stdin.close()
            for reader in self._readers:
                os.close(reader)
            self._readers.clear()
            self._folder.cleanup()

    def _start(self, rank: int) -> None:
        reader, writer = os.pipe()
        self._readers.append(reader)
        job = {
            "rank": rank,
            "N": self.N,
            "target": self.target,
            "args": self.args,
            "group": str(Path(self._folder.name) / "group"),
            "timeout": self.timeout,
            "say": writer,
        }
        try:
            # A session of its own, so that Ctrl-C reaches the parent alone, which ends the gang.
            with self._errors(rank).open("wb") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-m", "thinwire.cli.worker"],
                    stdin=subprocess.PIPE,
                    stdout=errors,
                    stderr=errors,
                    env=environment(),
                    pass_fds=(writer,),
                    start_new_session=True,
                )
        finally:
            os.close(writer)
        self.processes.append(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: its pipe will say so
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()

    def _hear(self, reader: int, lines: _Lines, failures: dict[int, _Failure]) -> Iterator[Message]:
        for message in lines.read(reader):
            if message["event"] == "done":
                lines.finished = True
            elif message["event"] == "error":
                failures[lines.rank] = _Failure(message["error"], message["lost_another"])
            else:
                yield {**message, "rank": lines.rank}
        if lines.ended and not lines.finished and lines.rank not in failures:
            failures[lines.rank] = _Failure(self._death(lines.rank), False)

    def _death(self, rank: int) -> str:
        try:
            code = self.processes[rank].wait(GRACE)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        how = f"ended with {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        last = self._errors(rank).read_text(errors="replace").strip().splitlines()[-1:]
        return ": ".join((how, *last))

    def _blame(self, failures: dict[int, _Failure]) -> str:
        ranks = sorted(failures)
        causes = [r for r in ranks if not failures[r].lost_another]
        rank = (causes or ranks)[0]
        return f"worker {rank} of {self.N} failed: {failures[rank].error}"

    def _errors(self, rank: int) -> Path:
        return Path(self._folder.name) / f"errors-{rank}"


@dataclass(frozen=True)
class _Failure:
    error: str
    lost_another: bool


class _Lines:
    """Cuts one worker's pipe into messages."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.finished = self.ended = False
        self._rest = b""

    def read(self, reader: int) -> list[Message]:
        chunk = os.read(reader, 1 << 16)
        self.ended = not chunk
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines]


def environment() -> dict[str, str]:
    """Returns the environment of worker processes: one thread each, loopback only."""
    one = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
    )
    loopback = {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
    return {**os.environ, **one, **loopback}
