"""What strikes a worker from inside its own process, at a message and a round foreseen."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from thinwire.cli.chaos_plan import LINK, Event
from thinwire.errors import PeerLost
from thinwire.host import Bytes
from thinwire.stats import kind_of
from thinwire.transport.base import Transport, Turn
from thinwire.wire.frame import Kind

LASTS = 4
"""Rounds that a slow link stays slow."""
FULL = 20_000
"""Bytes after which a file no longer grows on a disk that is full."""


class Strikes:
    """One worker's events, each of which happens once in a story, however often it restarts.

    Args:
        events: of this worker.
        folder: where those that have happened are noted.
        round_of: tells the worker's round; below 0 before there is any.
        hosts: whether links are slowed and cut outside, where the note is seen.
    """

    def __init__(
        self, events: list[Event], folder: Path, round_of: Callable[[], int], hosts: bool = False
    ) -> None:
        self._events, self._folder, self._round_of = events, folder, round_of
        self._hosts = hosts
        self._seen, self._turns = -1, 0
        self._slow: tuple[int, float] = (-1, 0.0)
        self._lose = False
        self._full = False

    def message(self) -> None:
        """Lets happen what is due at this message; may not return.

        Raises:
            PeerLost: a connection is cut.
        """
        round = self._round_of()
        self._turns = 0 if round != self._seen else self._turns + 1
        self._seen = round
        last, seconds = self._slow
        if round <= last:
            time.sleep(seconds)
        for event in self._events:
            if (event.round, event.turn) <= (round, self._turns) and self._first(event):
                self._strike(event, round)

    def lost(self) -> bool:
        """Returns whether a message that has come is to be lost; says so once."""
        lose, self._lose = self._lose, False
        return lose

    @contextmanager
    def disk(self) -> Iterator[None]:
        """Has the disk be full for what is written in the body, if that is due."""
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self._full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))
        yield
        if not self._full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def mend(self) -> None:
        """Makes room on the disk."""
        self._full = False
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def _first(self, event: Event) -> bool:
        note = self._folder / f"struck-{event.who}-{event.round}"
        if note.exists():
            return False
        note.touch()
        return True

    def _strike(self, event: Event, round: int) -> None:
        if event.what in LINK and self._hosts:
            return
        if event.what in ("kill", "flip", "short"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif event.what == "exit":
            os._exit(1)
        elif event.what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif event.what == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif event.what == "slow":
            self._slow = round + LASTS, event.seconds
        elif event.what == "full":
            self._full = True
        elif event.what == "lose":
            self._lose = True
        elif event.what == "cut":
            raise PeerLost(event.who, "its connections are cut")


class Struck:
    """A transport on which strikes fall.

    Args:
        transport: the true one.
        strikes: of this worker.
    """

    def __init__(self, transport: Transport, strikes: Strikes) -> None:
        self._transport, self._strikes = transport, strikes
        self.rank, self.size = transport.rank, transport.size

    def turn(self, turn: Turn) -> list[Bytes]:
        """Answers as the true one, unless something happens."""
        self._strikes.message()
        frames = self._transport.turn(turn)
        sources = [take.source for take in turn.takes]
        for at, (source, frame) in enumerate(zip(sources, frames, strict=True)):
            # A gossip that hears nothing asks again; whatever else is said must be heard.
            spoken = source != self.rank and kind_of(frame) == Kind.SAID.name
            if spoken and self._strikes.lost():
                frames[at] = b""
        return frames

    def reduce(self, vector: Tensor) -> Tensor:
        """Answers as the true one, unless something happens."""
        self._strikes.message()
        return self._transport.reduce(vector)

    def flush(self) -> None:
        """Waits until every post has left."""
        self._transport.flush()
