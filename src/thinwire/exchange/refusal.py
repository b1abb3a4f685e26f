"""Refusing a round: why, in words that every rank can raise again."""

from __future__ import annotations

import json

from thinwire.errors import FrameError, NonFiniteError
from thinwire.exchange.base import Here
from thinwire.wire.body import Reader

REFUSAL_BODY = 4096


def encode_refusal(error: NonFiniteError | FrameError) -> bytes:
    """Returns the body, at most 4096 bytes, that tells every rank why the round is refused."""
    if isinstance(error, FrameError):
        return _json({"frame": _short(str(error), 500)})
    found = [[rank, _short(name, 120)] for rank, name in error.found]
    while len(_json({"nonfinite": found, "round": error.round})) > REFUSAL_BODY:
        found = found[: len(found) * 3 // 4]
    return _json({"nonfinite": found, "round": error.round})


def refusal(reader: Reader, here: Here) -> NonFiniteError | FrameError:
    """Returns the error a refusal names."""
    try:
        reason = json.loads(bytes(reader.take(len(reader), "reason")))
        if "nonfinite" in reason:
            found = [(int(rank), str(name)) for rank, name in reason["nonfinite"]]
            return NonFiniteError(found, int(reason["round"]))
        return FrameError(f"round {here.round} is refused: {reason['frame']}")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return FrameError(f"{reader.where}: the round is refused, for no readable reason")


def _json(reason: dict[str, object]) -> bytes:
    return json.dumps(reason, ensure_ascii=False).encode("utf-8", "replace")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
