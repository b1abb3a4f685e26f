"""Server: the papers' master. Workers speak to one rank; it answers all with the mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from thinwire.compress import Compressor
from thinwire.errors import ConfigError, FrameError, NonFiniteError, ThinwireError
from thinwire.exchange.base import Exchange, Here, Memory, Talk
from thinwire.exchange.downlink import (
    decode_reply,
    encode_compressed,
    encode_exact,
    reply_bound,
)
from thinwire.exchange.feedback import (
    Feedback,
    NoFeedback,
    check_feedback,
    first_residual,
    keep,
    said_bound,
    say,
)
from thinwire.exchange.hear import from_all, hear, heard, to_all
from thinwire.exchange.refusal import encode_refusal, refusal
from thinwire.flat import Spans, Vector
from thinwire.host import Bytes
from thinwire.transport.base import Post, Take, turn
from thinwire.value import of_kind, whole
from thinwire.wire.frame import Kind, unseal


@dataclass(frozen=True, repr=False)
class Server(Exchange):
    """One rank is also the master: it hears all, and answers with the mean.

    Worker: u = delta + m; say C(u); m = u - said; direction = the reply.
    Master: v = (sum of said in rank order) / N + down; w = C'(v); down = v - w; reply w.
    Without a downlink operator the reply is the exact mean, coded losslessly as the smallest of
    dense, sparse union, or bundle of the messages; `down` is then always 0 and not kept.

    Price: 2 steps; a worker sends |C| and receives |reply| bytes; the master receives (N - 1)|C|
    and sends (N - 1)|reply|. Memory: the residual, one d-vector; the master one more with a
    downlink operator.

    Args:
        feedback: of the workers, `Feedback()` or `NoFeedback()`.
        downlink: an operator for the reply, with the master's own residual; None for exact.
        root: the rank that is also the master.

    Source: Qsparse-local-SGD (arXiv 1906.02367), Algorithm 1.
    Differs: the paper counts the uplink only and sends the mean as it is; we frame both.
    """

    sits_out: ClassVar[bool] = True
    feedback: Feedback | NoFeedback = field(default_factory=Feedback)
    downlink: Compressor | None = None
    root: int = 0

    def __post_init__(self) -> None:
        of_kind(self, "feedback", self.feedback, Feedback, NoFeedback)
        of_kind(self, "downlink", self.downlink, Compressor, type(None))
        whole(self, "root", self.root, 0, 65535)

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_feedback(self.feedback, compressor, spans, "Server, uplink")
        if self.downlink is not None:
            check_feedback(Feedback(), self.downlink, spans, "Server, downlink")

    def init(self, here: Here) -> Memory:
        if self.root >= here.N:
            raise ConfigError(f"Server(root={self.root}): the group has ranks 0 to {here.N - 1}")
        mem = first_residual(self.feedback, here)
        if self.downlink is not None and here.rank == self.root:
            mem["down"] = here.zeros()
        return mem

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        saying = say(delta, mem, here, self.feedback)
        up, down = said_bound(here), reply_bound(self.downlink, here)
        post = Post(self.root, saying.frame, up)
        if here.rank == self.root:
            frames = yield from turn((post,), from_all(here.N, up))
            reply, answer = self._answer(frames, mem, here)
            others = tuple(p for p in to_all(reply, here.N, down) if p.to != self.root)
            yield from turn(others)
            residual = saying.residual(here)
            if isinstance(answer, ThinwireError):
                raise answer
            direction, mem = answer
        else:
            yield from turn((post,))
            residual = saying.residual(here)
            frames = yield from turn(takes=(Take(self.root, down),))
            kind, body = unseal(frames[0], here.address(self.root), Kind.REPLY, Kind.REFUSAL)
            direction = decode_reply(kind, here.reader(body, self.root), self.downlink, here)
        return direction, keep(mem, residual)

    def _answer(
        self, frames: list[Bytes], mem: Memory, here: Here
    ) -> tuple[Bytes, tuple[Tensor, Memory] | NonFiniteError | FrameError]:
        try:
            bodies = hear(frames, here)
            direction = heard(bodies, here)
            if self.downlink is None:
                body = encode_exact(direction, bodies)
            else:
                body, direction, down = encode_compressed(
                    direction, mem["down"], self.downlink, here
                )
                mem = {**mem, "down": down}
        except (NonFiniteError, FrameError) as error:
            body = encode_refusal(error)
            # The master raises what its workers will read.
            return here.seal(Kind.REFUSAL, body), refusal(here.reader(body, self.root), here)
        return here.seal(Kind.REPLY, body), (direction, mem)
