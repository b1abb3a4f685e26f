"""The consensus step gamma: chosen, or measured once by all workers together."""

from __future__ import annotations

import math
import struct
from collections.abc import Generator

from torch import Tensor

from thinwire import host
from thinwire.errors import FrameError, NonFiniteError
from thinwire.exchange.base import Here, Memory
from thinwire.exchange.refusal import REFUSAL_BODY, encode_refusal, refusal
from thinwire.host import Bytes
from thinwire.transport.base import Answer, Ask, Post, Take, turn
from thinwire.wire.frame import HEADER, Kind, unseal

SAFETY = 0.7
"""Of the measured contraction: near the largest stable step over many operators and graphs."""
ROOT = 0
Refused = NonFiniteError | FrameError


def known_step(gamma: float | None, mem: Memory) -> Memory | None:
    """Returns the consensus step as memory keeps it, or None where it is yet to be measured."""
    if gamma is not None:
        return {"gamma": host.float_(gamma)}
    return {"gamma": mem["gamma"]} if "gamma" in mem else None


def agreed_step(u: Tensor, said: Tensor, here: Here) -> Generator[Ask, Answer, Memory]:
    """Returns min(1, 0.7 c), c the mean over workers of 1 - ||u - said||^2 / ||u||^2.

    It must be the same on all workers, or their mean would move: each tells rank 0 its own, once,
    and hears the mean. Where nobody has anything to say yet, it is measured in the next round.

    Args:
        u: (d,) float32, what there was to say.
        said: (d,) float32, what was said of it.
        here: where this worker stands.
    """
    square = float(u.double().square().sum())
    left = float((u.double() - said.double()).square().sum())
    own = 1 - left / square if square > 0 else float("nan")
    mean = yield from agreed_mean(own, here)
    return {} if math.isnan(mean) else {"gamma": host.float_(min(1.0, max(1e-6, SAFETY * mean)))}


def agreed_mean(own: float | Refused, here: Here) -> Generator[Ask, Answer, float]:
    """Returns the mean over workers of a number, NaN left out, the same bits on all of them.

    Price: 2 steps, 34 bytes each way between every worker and rank 0.

    Args:
        own: this worker's number, or why it has none.
        here: where this worker stands.

    Raises:
        NonFiniteError, FrameError: some worker has no number, or its frame is broken; on all.
    """
    bound = HEADER + REFUSAL_BODY
    if here.rank != ROOT:
        yield from turn((Post(ROOT, _frame(own, here), bound),))
        (frame,) = yield from turn(takes=(Take(ROOT, bound),))
        answer = _number(frame, ROOT, here)
    else:
        others = range(1, here.N)
        frames = yield from turn(takes=tuple(Take(rank, bound) for rank in others))
        told = [own, *(_number(f, rank, here) for f, rank in zip(frames, others, strict=True))]
        refused = [c for c in told if not isinstance(c, float)]
        numbers = [c for c in told if isinstance(c, float) and not math.isnan(c)]
        mean = sum(numbers) / len(numbers) if numbers else math.nan
        answer = refused[0] if refused else mean
        frame = _frame(answer, here)
        yield from turn(tuple(Post(rank, frame, bound) for rank in others))
    if not isinstance(answer, float):
        raise answer
    return answer


def _frame(own: float | Refused, here: Here) -> Bytes:
    if isinstance(own, float):
        return here.seal(Kind.NUMBER, struct.pack("<d", own))
    return here.seal(Kind.REFUSAL, encode_refusal(own))


def _number(frame: Bytes, rank: int, here: Here) -> float | Refused:
    try:
        kind, body = unseal(frame, here.address(rank), Kind.NUMBER, Kind.REFUSAL)
        reader = here.reader(body, rank)
        if kind is Kind.REFUSAL:
            return refusal(reader, here)
        (number,) = struct.unpack("<d", reader.take(8, "number"))
        reader.end()
        return float(number)
    except FrameError as error:
        return error
