"""Ctrl-C and SIGTERM, one way out for both."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from thinwire.errors import ThinwireError

STOPS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupted(BaseException):
    """The user or the system asked the program to stop; every `with` on the way out tidies up.

    No KeyboardInterrupt, because what typer makes of that differs between its versions.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        self.code = 128 + number
        self.notes = [STOPS[signal.Signals(number)]]
        super().__init__(number)


@contextmanager
def heeded() -> Iterator[None]:
    """Raises `Interrupted` where either signal arrives, for the body of a `with` statement."""
    before = {number: signal.signal(number, _stop) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ended(name: str, work: Callable[[], None], kept: str = "") -> int:
    """Does a program's work and returns its exit code; what stopped it is said in one sentence.

    Args:
        name: of the program.
        work: what it does.
        kept: what is to be said where it was interrupted.
    """
    try:
        with heeded():
            work()
    except Interrupted as stop:
        print(f"{name}: {'; '.join([*stop.notes, kept] if kept else stop.notes)}", file=sys.stderr)
        return stop.code
    except ThinwireError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def held() -> Iterator[None]:
    """Lets both signals wait until the body of a `with` statement is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(number: int, frame: object) -> None:
    del frame
    raise Interrupted(number)
