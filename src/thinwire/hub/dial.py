"""Dialling a hub: where it is, how to enter, how long to go on trying."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import grpc

from thinwire.errors import TransportError
from thinwire.hub import rpc
from thinwire.hub.entry import check_token
from thinwire.hub.hub_pb2 import SettingsReply, SettingsRequest, StatusReply, StatusRequest
from thinwire.hub.settings import Description

FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds between two tries to connect: doubled each time."""
AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
"""Codes after which the hub may take the same update in a moment; all others are refusals."""


class HubRefused(TransportError):
    """The hub refuses this worker or its message, and says why.

    Args:
        code: the gRPC status code's name.
        sentence: what the hub said.
    """

    def __init__(self, code: str, sentence: str) -> None:
        self.code = code
        self.sentence = sentence
        super().__init__(f"the hub refuses ({code}): {sentence}")


@dataclass(frozen=True)
class Dial:
    """Where a hub is and how to enter.

    Args:
        address: "host:port".
        token: the hub's secret.
        authority: PEM of the authority that signed the hub's certificate; TLS where given.
        certificate: PEM of one's own, for mutual TLS.
        key: of that.
        patience: seconds to go on trying while the hub cannot be reached.
    """

    address: str
    token: str | None = None
    authority: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    patience: float = 300.0

    def __post_init__(self) -> None:
        check_token(self.token)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call says of its caller."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    @property
    def hint(self) -> str:
        """What to look at when no connection comes about."""
        if self.authority is None:
            return "Is it running, and without TLS? If it has TLS, give authority="
        if self.certificate is None:
            return "Did authority= sign its certificate, for this host name? Does it ask for yours?"
        return "Did authority= sign its certificate, and the hub's authority yours?"

    def channel(self) -> grpc.Channel:
        """Returns a new channel."""
        if self.authority is None:
            return grpc.insecure_channel(self.address, options=rpc.OPTIONS)
        secured = grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)
        return grpc.secure_channel(self.address, secured, options=rpc.OPTIONS)

    def settings(self) -> Description:
        """Returns the hub's settings.

        Raises:
            HubRefused, TransportError: it refuses, or cannot be reached.
        """
        reply = self._ask(rpc.SETTINGS, SettingsRequest(protocol=rpc.PROTOCOL), SettingsReply)
        settings: Description = json.loads(reply.settings)
        return settings

    def status(self) -> dict[str, Any]:
        """Returns the hub's status."""
        status: dict[str, Any] = json.loads(
            self._ask(rpc.STATUS, StatusRequest(), StatusReply).status
        )
        return status

    def _ask(self, method: str, request: Any, reply: Any) -> Any:
        waits = Waits(self)
        with self.channel() as channel:
            call = channel.unary_unary(method, type(request).SerializeToString, reply.FromString)
            while True:
                try:
                    return call(request, metadata=self.metadata, timeout=30.0)
                except grpc.RpcError as error:
                    waits.after(error)


class Waits:
    """Bounded, growing waits between tries while a hub is away.

    Args:
        dial: where to, and with how much patience.
    """

    def __init__(self, dial: Dial) -> None:
        self.dial, self._wait = dial, FIRST_WAIT
        self._until: float | None = None

    def found(self) -> None:
        """Is told that the hub is there: patience begins anew at the next failure.

        Waits go on growing, for a hub that greets and then fails each time.
        """
        self._until = None

    def after(self, error: grpc.RpcError) -> None:
        """Waits before the next try.

        Raises:
            HubRefused: trying again would not help.
            TransportError: patience, which began at the first failure, is at its end.
        """
        code, said = error.code(), error.details() or ""
        if code not in AGAIN:
            raise HubRefused(code.name, said) from None
        now = time.monotonic()
        if self._until is None:
            self._until = now + self.dial.patience
        if now + self._wait > self._until:
            raise TransportError(
                f"the hub at {self.dial.address} cannot be reached for {self.dial.patience:g} s "
                f"({code.name}: {said}). {self.dial.hint}"
            ) from None
        time.sleep(self._wait)
        self._wait = min(LONGEST_WAIT, 2 * self._wait)
