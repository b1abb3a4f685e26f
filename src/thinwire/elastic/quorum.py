"""Elastic rounds over torchft: its lighthouse says who is there, its process groups reconnect."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from thinwire.elastic.lighthouse import check_installed
from thinwire.elastic.member import Mean
from thinwire.elastic.regroup import Answer, Ask, Place, Regroup, Talk
from thinwire.elastic.rounds import Elastic
from thinwire.errors import FrameError, TransportError
from thinwire.exchange.driver import Observer
from thinwire.shell import LocalSGD
from thinwire.transport import DistributedTransport
from thinwire.transport.base import Turn
from thinwire.value import in_range
from thinwire.wire.frame import HEADER, length

LOG = logging.getLogger("thinwire")
R = TypeVar("R")
PAUSE = 0.2
"""Seconds until a worker that can do nothing alone looks again who is there."""
PATIENCE = timedelta(minutes=10)
"""How long one call for a quorum may wait, for the slowest local steps, before it is made anew."""


class Quorum(Elastic):
    """A group over torchft whose workers may die, stop, return and join: `LocalSGD(group=...)`.

    Args:
        lighthouse: its address, "http://host:port".
        N: the most workers there are, as configured.
        name: of this worker; its own among all, and the same when it returns.
        min_replicas: the fewest that run a round, more than half of N; by default the least such.
        mean: over those that took part in a round ("quorum"), or over N ("configured").
        deadline: seconds after which a worker that is silent in a round is given up.
        host: the name or address by which the other workers reach this one; by default its own
            host name.

    Raises:
        ConfigError: a split could go on in two halves, or torchft is not installed.

    Example:
        >>> import thinwire as tw
        >>> from thinwire.elastic import Quorum
        >>> optimizer = tw.LocalSGD(  # doctest: +SKIP
        ...     model, inner, group=Quorum("http://lighthouse:29510", N=4, name="worker-2"),
        ...     **tw.qsparse_local_sgd(exchange=tw.Gather()),
        ... )
    """

    def __init__(
        self,
        lighthouse: str,
        N: int,
        name: str,
        min_replicas: int | None = None,
        mean: Mean = "quorum",
        deadline: float = 60.0,
        host: str | None = None,
    ) -> None:
        super().__init__(N, name, min_replicas, mean)
        check_installed()
        in_range(self, "deadline", deadline, 0.1, 86400.0)
        self._lighthouse, self._deadline = lighthouse, timedelta(seconds=deadline)
        self._host = socket.gethostname() if host is None else host
        self._manager: Any = None
        self._group: Any = None
        self._store: Any = None
        self._transport: DistributedTransport | None = None
        self._parent: Any = None
        self._rounds = 0

    def join(self, worker: LocalSGD) -> None:
        """Waits for a quorum and takes this worker in."""
        self.drive(self.joining(worker), worker)

    def sync(self, worker: LocalSGD, called: bool) -> None:
        """Has this worker's round done."""
        self.drive(self.rounds(worker, called), worker)

    def leave(self, worker: LocalSGD) -> None:
        """Ends a run: meets the others once more, for as long as a deadline, and goes."""
        try:
            self.drive(self.leaving(worker), worker)
        finally:
            self.close()

    def close(self) -> None:
        """Goes without a word; the others go on without this worker at their next round."""
        self._drop()
        if self._manager is not None:
            self._manager.shutdown(wait=False)
            self._manager = self._group = self._store = None

    def drive(self, talk: Talk[R], worker: LocalSGD) -> R:
        """Runs one of this worker's talks; what breaks on the way is told to the talk."""
        observer: Observer = worker.stats
        try:
            ask = next(talk)
            while True:
                try:
                    answer = self.answer(ask, worker, observer)
                except (TransportError, FrameError) as error:
                    ask = talk.throw(error)
                else:
                    ask = talk.send(answer)
        except StopIteration as stop:
            self._flush()
            result: R = stop.value
            return result
        except BaseException:
            self._flush()
            raise
        finally:
            talk.close()

    def answer(self, ask: Ask, worker: LocalSGD, observer: Observer) -> Answer:
        """Returns what an ask of this worker's talk is answered; raises what broke on the way."""
        if isinstance(ask, Regroup):
            return self._regroup(ask, worker)
        transport = self._transport
        if transport is None:
            raise TransportError("there is no group; the last one broke")
        observer.asked(ask, transport.rank)
        answer = transport.turn(ask) if isinstance(ask, Turn) else transport.reduce(ask.vector)
        observer.answered(ask, answer, transport.rank)
        return answer

    def _flush(self) -> None:
        try:
            if self._transport is not None:
                self._transport.flush()
        except TransportError as error:
            # What this worker had to say is said where it counts; the next quorum is a new one.
            self.broken = error

    def _regroup(self, ask: Regroup, worker: LocalSGD) -> Place:
        if ask.waiting:
            time.sleep(PAUSE)
        while True:
            try:
                place = self._next_quorum(ask, worker)
            except (TransportError, RuntimeError, TimeoutError) as error:
                if ask.leaving:
                    return Place(0, 0, False)
                LOG.warning("%s: no quorum: %s; calling again", self.name, error)
                self.close()
                time.sleep(PAUSE)
                continue
            if place is not None:
                return place
            ask = replace(ask, failed=TransportError("its connections could not be made"))

    def _next_quorum(self, ask: Regroup, worker: LocalSGD) -> Place | None:
        manager = self._manager or self._managed()
        if ask.failed is not None:
            # Its frames hold the old group, and with it connections that others wait on.
            ask.failed.__traceback__ = ask.failed.__cause__ = ask.failed.__context__ = None
            self._drop()
            manager.report_error(ask.failed)
        if ask.failed is not None or worker.round > manager.current_step():
            # The vote of a group of one: whether its last try stands.
            manager.should_commit()
        manager.load_state_dict({"step": worker.round, "batches_committed": 0})
        with self._said_to_wait():
            manager.start_quorum(
                allow_heal=False, timeout=self._deadline if ask.leaving else PATIENCE
            )
        if manager.errored() is not None:
            return None
        fresh = self._parent is not self._group.parent
        if fresh:
            self._parent = self._group.parent
            self._transport = DistributedTransport(self._parent, HEADER, length)
        assert self._transport is not None
        return Place(self._transport.rank, self._transport.size, fresh)

    def _managed(self) -> Any:
        from torchft.manager import Manager
        from torchft.process_group import ProcessGroupGloo

        store = TCPStore(
            self._host, 0, is_master=True, wait_for_workers=False, timeout=self._deadline
        )
        self._store = store
        self._group = ProcessGroupGloo(timeout=self._deadline)
        self._manager = Manager(
            pg=self._group,
            load_state_dict=None,
            state_dict=None,
            min_replica_size=1,  # how many it takes, the talk decides
            use_async_quorum=False,
            init_sync=False,
            timeout=self._deadline,
            quorum_timeout=PATIENCE,
            connect_timeout=self._deadline,
            rank=0,
            world_size=1,
            store_addr=self._host,
            store_port=store.port,
            lighthouse_addr=self._lighthouse,
            replica_id=self.name,
            hostname=self._host,
            checkpoint_transport=_NoCheckpoints(),
        )
        # Its own executor's thread would keep a process that is told to end until the call for a
        # quorum returns, which without one is never.
        self._manager._executor = _Daemons()
        return self._manager

    def _drop(self) -> None:
        # The others see at once that this worker has left, and need not wait for their deadline.
        self._transport = self._parent = None
        if self._manager is not None:
            self._group.abort()

    @contextlib.contextmanager
    def _said_to_wait(self) -> Iterator[None]:
        def say() -> None:
            LOG.warning("%s: no quorum of %d yet; waiting", self.name, self.min_replicas)

        timer = threading.Timer(self._deadline.total_seconds(), say)
        timer.daemon = True
        timer.start()
        try:
            yield
        except BaseException:
            # A call that hangs in another thread would keep this process from ending.
            self.close()
            raise
        finally:
            timer.cancel()


class _Daemons:
    """Runs what it is handed in threads that no process waits for when it ends."""

    def submit(self, work: Callable[..., None], **arguments: Any) -> Future[None]:
        future: Future[None] = Future()

        def run() -> None:
            try:
                work(**arguments)
                future.set_result(None)
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="thinwire-quorum", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True) -> None:
        """Waits for nobody."""


class _NoCheckpoints:
    """torchft's own way to tell who returns is pickles over HTTP; ours is a frame like any."""

    def metadata(self) -> str:
        return ""

    def disallow_checkpoint(self) -> None:
        """There is none."""

    def shutdown(self, wait: bool = True) -> None:
        """Nothing runs."""
