"""Gather: every worker hears every other; no server, the same mean to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from torch import Tensor

from thinwire.compress import Compressor
from thinwire.exchange.base import Exchange, Here, Memory, Talk
from thinwire.exchange.feedback import (
    Feedback,
    NoFeedback,
    check_feedback,
    first_residual,
    keep,
    said_bound,
    say,
)
from thinwire.exchange.hear import Folding, all_say
from thinwire.flat import Spans, Vector
from thinwire.host import Bytes
from thinwire.transport.base import Answer, Ask
from thinwire.value import of_kind


@dataclass(frozen=True, repr=False)
class Gather(Exchange):
    """All-gathers the compressed messages; each worker takes the mean itself.

    u = delta + m; say C(u) to all; m = u - said; direction = (sum of said in rank order) / N.

    Price: 1 step, of long frames N - 1; each rank sends and receives (N - 1) |C| bytes, |C| one
    frame. Memory: the residual, one d-vector.

    Args:
        feedback: `Feedback()` or `NoFeedback()`.

    Source: the mean of Qsparse-local-SGD (arXiv 1906.02367), Algorithm 1, without its master.
    """

    sits_out: ClassVar[bool] = True
    feedback: Feedback | NoFeedback = field(default_factory=Feedback)

    def __post_init__(self) -> None:
        of_kind(self, "feedback", self.feedback, Feedback, NoFeedback)

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_feedback(self.feedback, compressor, spans, "Gather")

    def init(self, here: Here) -> Memory:
        return first_residual(self.feedback, here)

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        return (yield from gathered(all_say, delta, mem, here, self.feedback))


def gathered(
    say_all: Callable[..., Generator[Ask, Answer, list[Bytes]]],
    delta: Vector,
    mem: Memory,
    here: Here,
    feedback: Feedback | NoFeedback,
) -> Talk:
    """A round in which every worker hears every other; the residual and the sum are made meanwhile.

    Args:
        say_all: `all_say`, or `passed_on`.
        delta: (d,) float32.
        mem: holds "residual" where feedback is on.
        here: where this worker stands.
        feedback: whether and how the residual is kept.
    """
    saying, folding = say(delta, mem, here, feedback), Folding(here)
    residual = cache(lambda: saying.residual(here))

    def meanwhile(frames: dict[int, Bytes]) -> None:
        residual()
        folding.go_on(frames)

    frames = yield from say_all(saying.frame, here.rank, here.N, said_bound(here), meanwhile)
    return folding.mean(frames), keep(mem, residual())
