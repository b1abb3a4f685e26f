"""The lighthouse: who says which workers are there."""

from __future__ import annotations

import importlib.util

from thinwire.errors import ConfigError

HEARTBEAT = 1.0
"""Seconds without a heartbeat after which a worker counts as gone."""


class Lighthouse:
    """torchft's lighthouse: the one arbiter that says which workers are a quorum.

    It runs in this process, which should be one that outlives the workers. It hands out one
    quorum after another, never two at once; `thinwire.elastic` asks besides that each holds more
    than half of the workers, so that a lighthouse started anew splits nothing either.

    Args:
        min_replicas: the fewest that are a quorum.
        wait: seconds for which the first to call waits for others that are alive but slow.
        bind: address and port; port 0 for any that is free.

    Raises:
        ConfigError: torchft is not installed.

    Example:
        >>> with Lighthouse(min_replicas=3) as lighthouse:  # doctest: +SKIP
        ...     print(lighthouse.address)
        http://worker-1:43241
    """

    def __init__(self, min_replicas: int, wait: float = 10.0, bind: str = "[::]:0") -> None:
        check_installed()
        from torchft.coordination import LighthouseServer

        self._server = LighthouseServer(
            bind=bind,
            min_replicas=min_replicas,
            join_timeout_ms=int(1000 * wait),
            quorum_tick_ms=50,
            heartbeat_timeout_ms=int(1000 * HEARTBEAT),
        )
        self.address: str = self._server.address()

    def close(self) -> None:
        """Ends it; workers then wait until there is one again."""
        self._server.shutdown()

    def __enter__(self) -> Lighthouse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_installed() -> None:
    """Raises a ConfigError where torchft is not installed."""
    if importlib.util.find_spec("torchft") is None:
        raise ConfigError(
            "thinwire.elastic runs over torchft, which is not installed; "
            "pip install 'thinwire[elastic]'"
        )
