"""Ctrl-C and SIGTERM, one way out for both."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

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
