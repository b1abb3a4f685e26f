"""`python -m thinwire.cli.chaos_nursery`: has everything loaded, and forks a story's workers.

Started by `chaos` alone: a story on each line of standard input, its result on standard output; or
a kind and a form, and how accurate its calm runs end.
It has no thread, so that what it forks is sound, and whatever happens leaves no process behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from thinwire.cli.chaos_calm import calm, of_seeds
from thinwire.cli.chaos_plan import KINDS, Story, plan
from thinwire.cli.chaos_task import method
from thinwire.cli.demo_train import save_digits
from thinwire.errors import ThinwireError

TICK = 0.01
PR_SET_PDEATHSIG = 1


class Nursery:
    """Forks processes, and knows how each of them is.

    Attributes:
        alive: process numbers that have not ended.
        stopped: those that are stopped.
    """

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.stopped: set[int] = set()

    def fork(self, work: Callable[[], int], log: Path) -> int:
        """Starts a process that does this work and ends with what it returns.

        Args:
            work: what to do.
            log: where its output goes.
        """
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self.alive.add(pid)
            return pid
        code = 1
        try:
            _settle(parent, log)
            code = work()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def look(self) -> dict[int, int]:
        """Returns how those ended that have since the last look; notes who is stopped."""
        ended = {}
        for pid in list(self.alive):
            found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if not found:
                continue
            if os.WIFSTOPPED(status):
                self.stopped.add(pid)
                continue
            self.alive.discard(pid)
            self.stopped.discard(pid)
            ended[pid] = os.waitstatus_to_exitcode(status)
        return ended

    def wake(self, pid: int) -> None:
        """Lets a stopped process go on."""
        self.stopped.discard(pid)
        os.kill(pid, signal.SIGCONT)

    def end(self, pids: set[int], grace: float = 0.3) -> None:
        """Ends these and leaves none of them: politely first, for so many seconds."""
        for pid in pids & self.alive:
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + grace
        while pids & self.alive - self.stopped and time.monotonic() < until:
            self.look()
            time.sleep(TICK)
        for pid in pids & self.alive:
            os.kill(pid, signal.SIGKILL)
        while pids & self.alive:
            self.look()
            time.sleep(TICK)

    def left_over(self) -> int:
        """Returns how many processes of this one are left, dead or alive."""
        try:
            return 1 if os.waitpid(-1, os.WNOHANG) else 0
        except ChildProcessError:
            return 0

    def aside(self, work: Callable[[], dict[str, Any]], folder: Path) -> dict[str, Any]:
        """Returns what this work returns, done in a process of its own.

        Raises:
            ThinwireError: it could not be done.
        """
        file = folder / "aside.json"

        def write() -> int:
            file.write_text(json.dumps(work()))
            return 0

        pid = self.fork(write, folder / "aside.log")
        ended = {}
        while pid not in ended:
            ended = self.look()
            time.sleep(TICK)
        if ended[pid]:
            said = (folder / "aside.log").read_text().splitlines()
            raise ThinwireError(f"a calm run ended with {ended[pid]}: {'; '.join(said[-1:])}")
        result: dict[str, Any] = json.loads(file.read_text())
        return result


class Seeds:
    """Knows how accurate calm runs of a form end; runs them when first asked.

    Args:
        nursery: forks the process that runs them.
        data: file of the digits.
        folder: where they may write.
    """

    def __init__(self, nursery: Nursery, data: str, folder: Path) -> None:
        self._nursery, self._data, self._folder = nursery, data, folder
        self._known: dict[str, dict[str, Any]] = {}

    def of(self, kind: str, form: str) -> dict[str, Any]:
        """Returns the accuracies, one for each seed."""
        name = repr(method(kind, form))  # kinds share exchanges
        if name not in self._known:
            self._known[name] = self._nursery.aside(
                lambda: {"accuracies": of_seeds(kind, form, self._data)}, self._folder
            )
        return self._known[name]


def _settle(parent: int, log: Path) -> None:
    if sys.platform == "linux":
        # Whatever ends the nursery ends this, too.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(3)
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)


def main() -> None:
    """Plays the stories that standard input names until it ends."""
    from thinwire.cli.chaos_story import play

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    torch.set_num_threads(1)
    nursery = Nursery()
    with tempfile.TemporaryDirectory(prefix="thinwire-chaos-") as folder:
        data = str(Path(folder) / "digits.npz")
        save_digits(data, 0)
        seeds = Seeds(nursery, data, Path(folder))
        # Loaded here, the kernels are there in every worker.
        for kind, number in zip(KINDS, range(len(KINDS)), strict=True):
            calm(plan(0, number, (kind,)), data)
        print(json.dumps({"ready": True}), flush=True)
        try:
            for line in sys.stdin:
                asked = json.loads(line)
                if "seeds_of" in asked:
                    told = seeds.of(*asked["seeds_of"])
                else:
                    told = play(nursery, Story.of(asked), data, Path(folder))
                print(json.dumps(told), flush=True)
        finally:
            nursery.end(set(nursery.alive))


if __name__ == "__main__":
    main()
