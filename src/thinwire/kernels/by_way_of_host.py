"""A table of the host for vectors elsewhere: they are brought, and the answer is sent back.

Slow, and there to compare with: `with use("reference"):` on a device checks the definition itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from thinwire import host

CHANGES_ITS_FIRST = {"accumulate", "accumulate_codes"}
ANSWERS_ON_THE_HOST = {"first_nonfinite", "norms", "extrema", "fit", "largest_code"}
HOST_ONLY = {"encode_index", "decode_index"}


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
        return result if operation in ANSWERS_ON_THE_HOST else host.send(result, device)

    def change(first: torch.Tensor, *given: Any) -> None:
        near = host.bring(first)
        call(near, *(_near(x) for x in given))
        first.copy_(near)

    return change if operation in CHANGES_ITS_FIRST else answer


def _near(given: Any) -> Any:
    return host.bring(given) if isinstance(given, torch.Tensor) else given
