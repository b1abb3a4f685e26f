"""A hub and workers as processes of this machine, which may be killed and started again."""

from __future__ import annotations

import multiprocessing
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from thinwire.cli.hub_worker import HubJob, WorkerJob, learn, serve
from thinwire.cli.signals import held
from thinwire.errors import ThinwireError

# A server that has imported everything forks each process in milliseconds; no thread and no
# gRPC channel is alive in it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["thinwire.cli.hub_worker"])


@dataclass
class Ledger:
    """Sequence numbers of updates, by worker: what was sent, and what is known to be applied."""

    sent: dict[str, set[int]]
    acknowledged: dict[str, set[int]]

    def counts(self) -> tuple[int, int]:
        """Returns how many were sent and how many acknowledged."""
        return (
            sum(len(numbers) for numbers in self.sent.values()),
            sum(len(numbers) for numbers in self.acknowledged.values()),
        )

    def hear(self, name: str, what: str, sequence: int) -> None:
        """Books what a worker's process says."""
        if what == "sent":
            self.sent[name].add(sequence)
        elif what == "acknowledged":
            self.acknowledged[name].add(sequence)
        elif what == "joined":
            # The hub tells a worker that returns what was applied, though its answer was lost.
            self.acknowledged[name] |= {n for n in self.sent[name] if n < sequence}


class HubGang:
    """One hub and its workers; `with` leaves none of them behind.

    Args:
        hub: of the hub; its port may be 0, and stays what it was first.
        workers: by name.
    """

    def __init__(self, hub: HubJob, workers: list[WorkerJob]) -> None:
        self.hub_job, self.jobs = hub, {job.name: job for job in workers}
        self.ledger = Ledger(defaultdict(set), defaultdict(set))
        self.hub: ForkServerProcess | None = None
        self.workers: dict[str, ForkServerProcess] = {}
        self.kills = 0
        self._pipes: dict[Connection, str] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()

    @property
    def address(self) -> str:
        """Where the hub listens."""
        return self.hub_job.listen

    def __enter__(self) -> HubGang:
        self._ears = threading.Thread(target=self._listen, daemon=True)
        self._ears.start()
        return self

    def __exit__(self, *_: object) -> None:
        with held():
            self._over.set()
            for process in (*self.workers.values(), self.hub):
                if process is not None and process.is_alive():
                    process.kill()
                    process.join()
            self._ears.join()

    def start_hub(self, patience: float = 120.0) -> None:
        """Starts the hub, or starts it again, on the same folder and port."""
        hears, says = CONTEXT.Pipe(duplex=False)
        self.hub = self._start(serve, self.hub_job, says)
        if not hears.poll(patience):
            raise ThinwireError(f"the hub did not come up in {patience:g} s")
        try:
            port = hears.recv()[1]
        except EOFError:
            log = Path(self.hub_job.log)
            raise ThinwireError(f"the hub ended at its start; see {log}") from None
        host = self.hub_job.listen.rpartition(":")[0]
        self.hub_job = replace(self.hub_job, listen=f"{host}:{port}")

    def start_worker(self, name: str) -> None:
        """Starts a worker, or starts it again under its name."""
        hears, says = CONTEXT.Pipe(duplex=False)
        with self._lock:
            self._pipes[hears] = name
        job = replace(self.jobs[name], address=self.address)
        self.workers[name] = self._start(learn, job, says)

    def kill_hub(self) -> None:
        """Ends the hub as a power cut would."""
        assert self.hub is not None
        self._kill(self.hub)

    def kill_worker(self, name: str) -> None:
        """Ends a worker as a power cut would; what it said before is heard first."""
        self._kill(self.workers[name])
        self.settled()

    def stop_workers(self, patience: float = 60.0) -> None:
        """Lets every worker finish its round and leave."""
        for process in self.workers.values():
            process.terminate()
        self.wait_workers(patience)

    def wait_workers(self, patience: float) -> None:
        """Returns when all workers have left.

        Raises:
            ThinwireError: one failed, or is still there.
        """
        for name, process in self.workers.items():
            process.join(patience)
            if process.exitcode != 0:
                raise ThinwireError(f"worker {name} did not leave: exit code {process.exitcode}")

    def stop_hub(self, patience: float = 60.0) -> None:
        """Drains the hub."""
        assert self.hub is not None
        self.hub.terminate()
        self.hub.join(patience)
        if self.hub.exitcode != 0:
            raise ThinwireError(f"the hub did not drain: exit code {self.hub.exitcode}")

    def _start(self, target: Callable[..., Any], job: object, says: Connection) -> Any:
        process = CONTEXT.Process(target=target, args=(job, says), daemon=True)
        process.start()
        says.close()
        return process

    def _kill(self, process: ForkServerProcess) -> None:
        process.kill()
        process.join()
        self.kills += 1

    def _listen(self) -> None:
        while not self._over.is_set():
            with self._lock:
                pipes = list(self._pipes)
            for pipe in wait(pipes, timeout=0.05) if pipes else [self._over.wait(0.05)]:
                if not isinstance(pipe, Connection):
                    continue
                try:
                    what, sequence = pipe.recv()
                except (EOFError, OSError):
                    with self._lock:
                        del self._pipes[pipe]
                    pipe.close()
                    continue
                self.ledger.hear(self._pipes[pipe], what, sequence)

    def settled(self) -> None:
        """Returns when all that ended processes had said is booked."""
        while True:
            with self._lock:
                open_pipes = {self._pipes[pipe] for pipe in self._pipes}
            if not any(not self.workers[name].is_alive() for name in open_pipes):
                return
            self._over.wait(0.02)
