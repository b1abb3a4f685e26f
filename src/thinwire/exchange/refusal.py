"""Refusing a round: why, in words that every rank can raise again."""

from __future__ import annotations

import json

from thinwire.errors import FrameError, NonFiniteError
from thinwire.exchange.base import Here
from thinwire.wire.body import Reader

REFUSAL_BODY = 4096


def encode_refusal(error: NonFiniteError | FrameError) -> bytes:
    """Returns the body that tells every worker why the round is refused."""
    if isinstance(error, NonFiniteError):
        reason: dict[str, object] = {"nonfinite": error.found}
    else:
        reason = {"frame": str(error)}
    body = json.dumps(reason).encode()
    if len(body) <= REFUSAL_BODY:
        return body
    return json.dumps({"frame": f"{str(error)[:500]} ..."}).encode()


def refusal(reader: Reader, here: Here) -> NonFiniteError | FrameError:
    """Returns the error a refusal names."""
    try:
        reason = json.loads(bytes(reader.take(len(reader), "reason")))
        if "nonfinite" in reason:
            found = [(int(rank), str(name)) for rank, name in reason["nonfinite"]]
            return NonFiniteError(found, here.round)
        return FrameError(f"the master refused round {here.round}: {reason['frame']}")
    except (ValueError, KeyError, TypeError):
        return FrameError(f"{reader.where}: the round is refused, for no readable reason")
