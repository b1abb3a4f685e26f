"""A table of the host for vectors elsewhere: they are brought, and the answer is sent back.

Slow, and there to compare with: `with use("reference"):` on a device checks the definition itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from thinwire import host
from thinwire.kernels.owed import Owed

CHANGES = {
    "divide": 1,
    "accumulate": 1,
    "accumulate_codes": 1,
    "settle": 1,
    "scatter": 1,
    "land": 2,
}
"""How many of its first arguments an operation changes."""
ANSWERS_ON_THE_HOST = {"first_nonfinite", "norms", "extrema", "fit", "largest_code"}
HOST_ONLY = {
    "encode_index", "decode_index", "encode_codes", "decode_codes",
    "subtract_bodies", "pick_marked", "join_crc",
}  # fmt: skip
"""What only a hub and the wire call, on bytes and on the host."""


def wrapped(operation: str, call: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Returns an operation of the host for vectors on another device.

    Args:
        operation: its name in the table.
        call: the operation itself.
        device: where vectors are, and where what is as long as one is answered.
    """
    if operation in HOST_ONLY:
        return call

    def answer(*given: Any) -> Any:
        result = call(*(_near(x) for x in given))
        if operation in ANSWERS_ON_THE_HOST:
            return result
        if operation == "two_levels":
            return host.send(result[0], device), result[1]
        if isinstance(result, tuple):
            return tuple(host.send(part, device) for part in result)
        return host.send(result, device)

    def change(*given: Any) -> Any:
        near = [_near(x) for x in given]
        result = call(*near)
        for there, here in zip(given[: CHANGES[operation]], near, strict=False):
            _write_back(there, here)
        return result

    return change if operation in CHANGES else answer


def _near(given: Any) -> Any:
    if isinstance(given, Owed):
        residual = None if given.residual is None else host.bring(given.residual)
        return Owed(host.bring(given.anchor), _near(given.params), residual, given.decay)
    if isinstance(given, tuple) and given and isinstance(given[0], torch.Tensor):
        return tuple(host.bring(part) for part in given)
    return host.bring(given) if isinstance(given, torch.Tensor) else given


def _write_back(there: Any, here: Any) -> None:
    if isinstance(there, Owed):
        _write_back(there.residual, here.residual)
    elif isinstance(there, tuple):
        for a, b in zip(there, here, strict=True):
            _write_back(a, b)
    elif there is not None:
        there.copy_(here)
