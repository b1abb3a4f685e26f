"""A hub's figures over HTTP, as Prometheus asks for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from thinwire.errors import ConfigError
from thinwire.hub.entry import host_of
from thinwire.hub.meter import prometheus


async def serve_metrics(
    listen: str, figures: Callable[[], Awaitable[dict[str, Any]]]
) -> asyncio.Server:
    """Answers GET /metrics, and returns what is to be closed.

    Args:
        listen: "host:port".
        figures: returns the hub's status.

    Raises:
        ConfigError: the port cannot be had.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), 5.0)
            known = line.split()[:2] in ([b"GET", b"/metrics"], [b"GET", b"/"])
            body = prometheus(await figures()).encode() if known else b"see /metrics\n"
            status = b"200 OK" if known else b"404 Not Found"
            head = b"HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4\r\n" % status
            writer.write(head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body))
            writer.write(body)
            await asyncio.wait_for(writer.drain(), 5.0)
        except (OSError, asyncio.TimeoutError, ValueError):
            logging.getLogger("thinwire.hub.metrics").debug("a scrape broke off")
        finally:
            writer.close()

    try:
        return await asyncio.start_server(
            answer, host_of(listen) or None, int(listen.rpartition(":")[2])
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"metrics cannot be served on {listen}: {error}") from error
