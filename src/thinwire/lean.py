"""Rounds with fewer steps than `one_round`, where nothing is lost by it.

In place, the same to the last bit without a vector of its own. Where workers gather each other's
largest entries and average, a round needs no more than the anchor and the residual: u is formed
block by block wherever it is read, the message is a few entries, and the sum of all messages is
taken where the parameters lie, which are overwritten anyway. Until every frame has been read and
found sound nothing is written, so a round that is refused leaves everything as it was.

By the mean of the parameters, where the engine sums in an order of its own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from thinwire import flat, host, kernels
from thinwire.compress import Compressor, Payload, TopK
from thinwire.exchange import AllReduce, Exchange, Feedback, Gather, Here
from thinwire.exchange.feedback import first_broken, said_bound, say_owed
from thinwire.exchange.hear import all_say, hear, mean
from thinwire.kernels import Owed
from thinwire.outer import Average, Outer
from thinwire.round import RoundState
from thinwire.transport.base import Answer, Ask
from thinwire.wire.body import unpack


def fits(compressor: Compressor, exchange: Exchange, outer: Outer, params: list[Tensor]) -> bool:
    """Returns whether rounds of these settings can run in place."""
    known = (torch.float32, torch.bfloat16, torch.float16)
    return (
        isinstance(exchange, Gather)
        and isinstance(outer, Average)
        and isinstance(compressor.sparsifier, TopK)
        and all(p.device.type == "cpu" and p.dtype in known for p in params)
    )


def lean_round(
    state: RoundState, params: list[Tensor], exchange: Exchange, outer: Outer, here: Here
) -> Generator[Ask, Answer, RoundState]:
    """Runs one round in place and returns its new state; the params are then the new anchor.

    Args:
        state: what the last round returned; its anchor and residual are written over at the end.
        params: the worker's parameters after its local steps.
        exchange: a `Gather`.
        outer: an `Average`.
        here: rank, N, round, key and a compressor that begins with `TopK`; see `fits`.

    Raises:
        NonFiniteError, FrameError: the round is refused, and nothing has been written.
    """
    assert isinstance(exchange, Gather)
    assert isinstance(outer, Average)
    C, anchor = here.compressor, state.anchor
    feedback, residual = exchange.feedback, state.mem.get("residual")
    decay = feedback.decay if isinstance(feedback, Feedback) else 1.0
    owed = Owed(anchor, tuple(p.detach() for p in params), residual, decay)
    saying, bound = say_owed(owed, here), said_bound(here)
    frames = yield from all_say(saying.frame, here.rank, here.N, bound)
    bodies = hear(frames, here)
    payload = saying.payload
    assert payload is not None
    in_place = all(p.dtype == torch.float32 and p.is_contiguous() for p in params)
    direction = None
    if not in_place or _may_overflow(bodies, payload, here):
        readers = [here.reader(body, rank) for rank, body in enumerate(bodies)]
        direction = mean(readers, here)

    # From here on nothing can fail.
    table = kernels.active()
    if residual is not None and payload.index is not None:
        table.settle(owed, payload.index, C.values(payload))
    if direction is None:
        sums = tuple(p.detach() for p in params)
        for total in sums:
            total.zero_()
        for rank, body in enumerate(bodies):
            heard = _read(body, rank, payload, here)
            assert heard.index is not None
            table.scatter(sums, heard.index, C.values(heard))
            del heard
        table.land(anchor, sums, here.N, outer.lr)
    else:
        anchor.copy_(outer.step(anchor, direction, {})[0])
        flat.write(anchor, params)
    return replace(state, round=state.round + 1)


def mean_round(
    state: RoundState, params: list[Tensor], exchange: AllReduce, here: Here
) -> Generator[Ask, Answer, RoundState]:
    """Runs one round of plain averages and returns its new state: anchor = mean of params.

    That is anchor - mean of (anchor - params). The engine's sum has no bits to keep, so neither
    the difference nor the step is made.

    Args:
        state: what the last round returned.
        params: the worker's parameters after its local steps, float32; only read.
        exchange: whose outer step is `Average()`.
        here: rank, N and round.

    Raises:
        NonFiniteError: the round is refused, and nothing has been written.
    """

    def read() -> Tensor:
        return flat.read(params, device=here.device)

    anchor = yield from exchange.mean(read(), here, lambda: first_broken(None, read(), here))
    return replace(state, anchor=anchor, round=state.round + 1)


def _may_overflow(bodies: list[memoryview], own: Payload, here: Here) -> bool:
    """Returns whether the sum of these messages may leave float32; reads each of them whole."""
    C, most = here.compressor, 0.0
    for rank, body in enumerate(bodies):
        values = C.values(_read(body, rank, own, here))
        most += float(kernels.active().norms(values, host.ints([0, len(values)]), "max"))
        # Let go before the next is read: two side by side would be some hundredths of a vector.
        del values
    return not most < host.LARGEST


def _read(body: memoryview, rank: int, own: Payload, here: Here) -> Payload:
    if rank == here.rank:
        # What this worker said, its hearers decode to the same bits.
        return own
    reader = here.reader(body, rank)
    payload = unpack(reader, here.compressor, here.spans, here.key_of(rank))
    reader.end()
    return payload
