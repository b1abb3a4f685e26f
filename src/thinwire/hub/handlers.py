"""Methods as gRPC wants them, without its generated service code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError


class Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Handlers by the full names of their methods."""

    def __init__(self, methods: dict[str, grpc.RpcMethodHandler]) -> None:
        self._methods = methods

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._methods.get(details.method)


def lenient(message: Any) -> Callable[[bytes], Any]:
    """Returns a reader of that message; what is none of its kind reads as an empty one.

    An empty word is never one that is awaited, so it is refused as any other, with a reason.
    """

    def read(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError:
            return message()

    return read
