"""The first word of a stream: who it is, and whether it can be a worker of this hub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from thinwire.hub import rpc
from thinwire.hub.hub_pb2 import Hello, Up
from thinwire.hub.refused import Refused, Why
from thinwire.hub.settings import Description, difference, read_description
from thinwire.version import __version__

FIRST_WORD = 20.0
"""Seconds in which a new stream must say who it is."""
LONGEST_NAME = 128


async def first_word(words: AsyncIterator[Up]) -> Hello:
    """Returns a stream's hello.

    Raises:
        Refused: none comes, or it is of another version.
    """
    try:
        first = await asyncio.wait_for(anext(words), FIRST_WORD)
    except (asyncio.TimeoutError, StopAsyncIteration):
        raise Refused(Why.ORDER, "a stream begins with a hello; none came") from None
    if first.WhichOneof("said") != "hello":
        raise Refused(Why.ORDER, "a stream begins with a hello; this began otherwise")
    check_protocol(first.hello.protocol)
    return first.hello


def check_protocol(spoken: int) -> None:
    """Raises a Refused unless the caller speaks this version."""
    if spoken != rpc.PROTOCOL:
        older = "an older" if spoken < rpc.PROTOCOL else "a newer"
        raise Refused(
            Why.VERSION,
            f"the caller speaks {older} protocol version, {spoken}; this hub speaks {rpc.PROTOCOL} "
            f"(thinwire {__version__}). Install the same version on both sides",
        )


def check_hello(hello: Hello, description: Description) -> None:
    """Raises a Refused unless name and weight are possible, and what it describes is the hub's.

    Args:
        hello: the worker's.
        description: the hub's settings and tensors.
    """
    name = hello.worker
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise Refused(Why.ORDER, f"a worker has a printable name of 1 to {LONGEST_NAME} letters")
    if not 1e-6 <= hello.weight <= 1e12:
        raise Refused(Why.SETTINGS, f"a weight lies in [1e-6, 1e12]; this is {hello.weight}")
    if not hello.description:
        return
    try:
        found = difference(description, read_description(hello.description))
    except (ValueError, RecursionError) as error:
        raise Refused(
            Why.SETTINGS, f"worker {name!r} describes itself unreadably: {error}"
        ) from None
    if found is not None:
        why = Why.SETTINGS if found[0] == "settings" else Why.MODEL
        raise Refused(why, f"worker {name!r} differs from the hub: {found[1]}")
