"""One round without some workers: they say nothing, and the mean is over the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire.compress import Compressor
from thinwire.exchange.base import Exchange, Here, Memory, Talk
from thinwire.flat import Spans, Vector


@dataclass(frozen=True, repr=False)
class Without(Exchange):
    """Another exchange's round in which some workers have nothing to say.

    u = 0 for those left out, so that C(u) = 0, and what they owed they owe still;
    direction = s v, with v the other exchange's direction and s = N / (N - left out), so that the
    mean is over those that spoke. A master's own residual is in units of the mean: down / s goes
    into the round, and s times what is left of it stays.

    Price: the other exchange's.

    Args:
        exchange: whose rounds they are; its `sits_out` is True.
        left_out: ranks.
    """

    sits_out: ClassVar[bool] = True
    exchange: Exchange
    left_out: tuple[int, ...]

    def init(self, here: Here) -> Memory:
        return self.exchange.init(here)

    def check(self, compressor: Compressor, spans: Spans) -> None:
        self.exchange.check(compressor, spans)

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        delta = delta[:]
        s = here.N / (here.N - len(self.left_out))
        out = here.rank in self.left_out
        given = {k: v / s if k == "down" else v for k, v in mem.items()}
        if out:
            delta = torch.zeros_like(delta)
            given |= {k: torch.zeros_like(v) for k, v in mem.items() if k == "residual"}
        v, after = yield from self.exchange.round(anchor, delta, given, here)
        after = {k: x * s if k == "down" else x for k, x in after.items()}
        if out and "residual" in mem:
            # In a ring the owner of a segment also keeps what the sum of it lost.
            after["residual"] = mem["residual"] + after["residual"]
        return v * s, after
