"""A hub from its folder to its port and back: recover, listen, watch, drain."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from torch import Tensor

from thinwire import flat
from thinwire.errors import ConfigError, ThinwireError
from thinwire.exchange.base import Here
from thinwire.exchange.feedback import said_bound
from thinwire.hub import rpc
from thinwire.hub.commits import Commits
from thinwire.hub.core import Core
from thinwire.hub.entry import Entry
from thinwire.hub.journal import Journal
from thinwire.hub.scrape import serve_metrics
from thinwire.hub.service import LOG, Service
from thinwire.hub.settings import Description, HubSettings, spans_of
from thinwire.hub.snapshot import about_of, check_same_run, decode, encode
from thinwire.hub.state import first_state
from thinwire.hub.turns import Turns
from thinwire.keys import Key
from thinwire.memory import keep_freed, set_aside
from thinwire.parameters import described
from thinwire.runs.machine import cores
from thinwire.value import in_range, whole

SWITCH = 5e-4
"""Seconds that a thread of a hub's process may hold the interpreter while another waits."""

FEW, LARGE = 2, 1 << 25
"""On so few cores the core's turns are taken on the loop, where they are brief; a model of more
entries than that holds up beats there with each join."""


@dataclass(frozen=True)
class Limits:
    """What a hub takes and how it keeps house.

    Args:
        workers: that may be live at once.
        rate: updates a worker may send in a second; None for any number.
        timeout: seconds without a word or a beat after which a worker is lost.
        linger: seconds an answer may wait for others before the disk is synced: 0 syncs as soon
            as the last sync is done.
        snapshot: bytes of journal after which a snapshot replaces it.
    """

    workers: int = 1024
    rate: float | None = None
    timeout: float = 60.0
    linger: float = 0.0
    snapshot: int = 1 << 30

    def __post_init__(self) -> None:
        whole(self, "workers", self.workers, 1, 65535)
        in_range(self, "timeout", self.timeout, 0.1, 1e6)
        in_range(self, "linger", self.linger, 0.0, 10.0)
        whole(self, "snapshot", self.snapshot, 1, 1 << 50)
        if self.rate is not None:
            in_range(self, "rate", self.rate, 1e-3, 1e9)


@dataclass
class HubServer:
    """One hub process.

    Args:
        settings: what its workers adopt.
        model: (name, tensor) pairs, the first model; a state that is there already goes before.
        folder: where its state lives.
        entry: who may enter.
        limits: what it takes.

    Raises:
        ConfigError: the folder is in use, damaged, of another run, or cannot be written.
    """

    settings: HubSettings
    model: Sequence[tuple[str, Tensor]]
    folder: Path
    entry: Entry = field(default_factory=Entry)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        tensors = described(self.model, "parameter")
        self.description: Description = {"settings": self.settings.as_dict(), "tensors": tensors}
        self.spans = spans_of(tensors)
        self.settings.exchange.check(self.settings.compressor, self.spans)
        self.journal = Journal(self.folder)
        try:
            self.core = self._recover()
        except OSError as error:
            self.journal.close()
            raise ConfigError(
                f"the state in {self.folder} cannot be read and written: {error}. See to the disk, "
                "and start the hub again"
            ) from error
        except BaseException:
            self.journal.close()
            raise
        self.failure: ThinwireError | None = None
        self._stop = asyncio.Event()
        self._snapshot: asyncio.Task[None] | None = None

    def _recover(self) -> Core:
        exchange, limits = self.settings.exchange, self.limits
        snapshot, records = self.journal.recover()
        if snapshot is None:
            run = int.from_bytes(os.urandom(4), "little") or 1
            state = first_state(exchange, flat.read([t for _, t in self.model]))
        else:
            about = about_of(snapshot)
            check_same_run(about, self._as_json(0), self.folder)
            run, state = about["run"], decode(snapshot, exchange.downlink.repeats)
        core = Core(
            exchange, self.settings.compressor, self.spans, self.settings.seed, run, state,
            limits.timeout, limits.workers,
        )  # fmt: skip
        count = 0
        for record in records:
            core.replay(record)
            count += 1
        generation = self.journal.generation
        if snapshot is None or count:
            # Begin from a snapshot of what was recovered: the next start is quick, and what is
            # still to be repeated to workers is in it.
            self.journal.begin(generation + 1)
            self.journal.snapshot(generation + 1, encode(core.state, self._as_json(run)))
        else:
            self.journal.begin(generation)
        if snapshot is not None:
            LOG.info(
                "recovered run %#010x: %d updates applied, %d records after the snapshot",
                run, core.state.applied, count,
            )  # fmt: skip
        return core

    def _as_json(self, run: int) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(self.description))
        return {**plain, "run": run}

    async def start(self, listen: str, metrics: str | None = None) -> int:
        """Listens, and returns the port.

        Raises:
            ConfigError: anybody could enter, or the port cannot be had or secured.
        """
        note = self.entry.check_address(listen)
        credentials = self.entry.credentials()
        core, limits = self.core, self.limits
        key = Key(self.settings.seed)
        here = Here(0, 0, 0, key, self.settings.compressor, self.spans, core.run)
        self.commits = Commits(self.journal, limits.linger, self._fail)
        aside = cores() > FEW or self.spans.d > LARGE or not core.is_brief
        self.turns = Turns(core, self.commits, aside)
        self.service = Service(
            self.turns, self.entry, self.description, said_bound(here), limits.rate
        )
        self.service.meter.heard = core.heard
        # The journal's thread must get the interpreter's lock back quickly after each sync.
        sys.setswitchinterval(SWITCH)
        keep_freed()
        set_aside()
        self.server = grpc.aio.server(options=rpc.OPTIONS)
        self.server.add_generic_rpc_handlers((self.service.handlers(),))
        try:
            port: int
            if credentials is None:
                port = self.server.add_insecure_port(listen)
            else:
                port = self.server.add_secure_port(listen, credentials)
        except RuntimeError:
            port = 0
        if not port:
            self.entry.check_files()
            raise ConfigError(f"{listen} cannot be listened on; is another hub there?")
        await self.server.start()
        where = f"{listen.rpartition(':')[0]}:{port}"
        LOG.info("run %#010x listens on %s, d = %d", core.run, where, self.spans.d)
        if note is not None:
            LOG.warning("%s", note)
        self._house = asyncio.create_task(self._keep_house())
        self._metrics: asyncio.Server | None = None
        if metrics is not None:
            self._metrics = await serve_metrics(metrics, self.service.figures)
        return port

    async def serve(self, grace: float = 10.0) -> None:
        """Runs until `stop` is called, then drains: answers are sent, the state is on the disk.

        Raises:
            ThinwireError: the disk failed, or the hub met an error of its own; what was
                acknowledged before is safe.
        """
        await self._stop.wait()
        LOG.info("draining: no new updates; answering those that came")
        self.service.close_streams()
        if self._metrics is not None:
            self._metrics.close()
        self._house.cancel()
        await self.server.stop(grace)
        await asyncio.gather(self._house, return_exceptions=True)
        if self._snapshot is not None:
            await self._snapshot
        await self.turns.close()
        try:
            if self.failure is None:
                self._write_state()
        except Exception as error:
            self._fail(error)
        finally:
            self.journal.close()
        gc.unfreeze()
        if self.failure is not None:
            raise self.failure
        state = self.core.state
        LOG.info("down: %d updates applied, staleness %s", state.applied, state.histogram)

    def _write_state(self) -> None:
        parts = encode(self.core.state, self._as_json(self.core.run))
        generation = self.journal.generation + 1
        self.journal.begin(generation)
        self.journal.snapshot(generation, parts)

    def stop(self) -> None:
        """Ends `serve`; may be called from a signal handler of the loop."""
        self._stop.set()

    def _fail(self, error: BaseException) -> None:
        own = None if isinstance(error, OSError) else error
        what = f"the disk failed: {error}"
        if own is not None:
            what = f"the hub met an error of its own: {own!r}"
        self.failure = ThinwireError(
            f"{what}. Nothing more is acknowledged; all that was is safe in {self.folder}. "
            "See to it, and start the hub again"
        )
        self.failure.__cause__ = error
        LOG.error("%s", self.failure, exc_info=own)
        self._stop.set()

    async def _keep_house(self) -> None:
        """Marks the silent as gone, takes snapshots, and says once a minute how it stands."""
        said = time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, self.limits.timeout / 4))
            for name in await self.turns.do(lambda: self.service.lost(time.monotonic())):
                LOG.info("worker %r was silent for %g s: lost", name, self.limits.timeout)
            if self.journal.size > self.limits.snapshot and self._snapshot is None:
                self._snapshot = asyncio.create_task(self._take_snapshot())
            if time.monotonic() - said >= 60.0:
                said, state = time.monotonic(), self.core.state
                LOG.info(
                    "%d live, %d applied, version %d, staleness %s",
                    self.core.live, state.applied, state.version, state.histogram,
                )  # fmt: skip

    async def _take_snapshot(self) -> None:
        generation = self.journal.generation + 1
        about = self._as_json(self.core.run)
        try:
            parts = await self.turns.do(
                lambda: (encode(self.core.state, about), [generation]), changes=False
            )
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self.journal.snapshot, generation, parts)
            LOG.info("snapshot %d: the journal before it is gone", generation)
        except Exception as error:
            # A disk or a memory that is full now may have room at the next try.
            if self.failure is None:
                LOG.error("no snapshot %d: %r; the journal goes on", generation, error)
        finally:
            self._snapshot = None
