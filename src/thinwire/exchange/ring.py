"""Ring: no server; each rank owns one segment of the mean, and every segment is coded anew.

ring        z = incoming + u[g]; v = C(z); e[g] = z - v; pass v on; the owner's last v is N times
the direction, and its codes travel on unchanged
two-phase   say C(u[g]) straight to g's owner; e[g] = u[g] - said; the owner: t = u[g] + sum of
said, w = C(t / N), e[g] = t - N w, says w to all; direction[g] = w
gather      whole messages travel round, unchanged; all fold them in rank order
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from thinwire import host
from thinwire.compress import Compressor
from thinwire.errors import ConfigError
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
from thinwire.exchange.hear import divisor, hear, heard
from thinwire.exchange.segments import Takes, Trouble, cut, place, relayed
from thinwire.flat import Spans
from thinwire.transport.base import Answer, Ask, Post, Take, turn
from thinwire.value import of_kind, one_of
from thinwire.value import whole as whole_number

Summed = Generator[Ask, Answer, tuple[Tensor, Tensor]]
"""A talk that returns (direction, e), e what each entry still owes."""
Form = Literal["ring", "two-phase", "gather", "auto"]


@dataclass(frozen=True, repr=False)
class Ring(Exchange):
    """All-reduces in segments, quantized on the way: no rank hears or holds more than another.

    Price, per rank and per round, |C_g| one segment's frame:
      ring: 2 (N - 1) steps, sends 2 (N - 1) |C_g|, to its right neighbour alone;
      two-phase: 2 steps, sends 2 (N - 1) |C_g|, N - 1 frames at a time;
      gather: N - 1 steps, sends (N - 1) |C|, to its right neighbour alone.
    Memory: with feedback the residual, one d-vector: each rank quantizes each segment once.

    Args:
        form: "ring", "two-phase", "gather" (for sparse messages), or "auto": `choose` says which.
        feedback: `NoFeedback()`, as the paper has it, or `Feedback()`, which telescopes.
        links: "switched" where any rank reaches any other as fast as its neighbour, or
            "neighbours" where only neighbours do, or many senders to one overrun it.
        pipeline: segments go in pieces of about so many entries, so that one is coded while
            another is on the wire.

    Source: QPRSGD (arXiv 2004.09125), quantized ring all-reduce.
    Differs: two-phase, feedback and the sparse form are ours. As in every exact implementation the
        owner, too, takes the decoded value: else replicas part.
    """

    sits_out: ClassVar[bool] = True
    form: Form = "auto"
    feedback: Feedback | NoFeedback = field(default_factory=NoFeedback)
    links: Literal["switched", "neighbours"] = "switched"
    pipeline: int = 1 << 20

    def __post_init__(self) -> None:
        of_kind(self, "feedback", self.feedback, Feedback, NoFeedback)
        one_of(self, "form", self.form, ("ring", "two-phase", "gather", "auto"))
        one_of(self, "links", self.links, ("switched", "neighbours"))
        whole_number(self, "pipeline", self.pipeline, 1, 1 << 30)

    def choose(self, compressor: Compressor) -> tuple[str, str]:
        """Returns the form this exchange takes with that operator, and why.

        Example:
            >>> from thinwire import QSGD, Sign, TopK, host
            >>> Ring().choose(QSGD(bits=8, scale="none"))[0]
            'two-phase'
            >>> Ring().choose(TopK(density=0.01) >> Sign())[0]
            'gather'
        """
        if self.form != "auto":
            return self.form, "it was asked for"
        if _rescales(compressor):
            return "gather", "a sparsifier that rescales would do so again at every hop"
        if compressor.sparsifier.says_index:
            return "gather", (
                "sparse messages do not add: cutting and coding them again at every hop loses "
                "more than passing them on whole"
            )
        if self.links == "neighbours":
            return "ring", "only neighbours are well linked, or many senders overrun one receiver"
        return "two-phase", (
            "any rank reaches any other, and one requantization is never less exact at equal "
            "bytes than one at every hop"
        )

    def check(self, compressor: Compressor, spans: Spans) -> None:
        check_feedback(self.feedback, compressor, spans, "Ring")
        form, _ = self.choose(compressor)
        if form != "gather" and _rescales(compressor):
            raise ConfigError(
                f"Ring({form!r}): {compressor!r} draws one support for all ranks and rescales what "
                "it keeps; done again at every hop that is no longer unbiased. Use form='gather', "
                "or an operator that keeps every entry, such as QSGD(bits=8, scale='none')"
            )

    def init(self, here: Here) -> Memory:
        return first_residual(self.feedback, here)

    def told(self, compressor: Compressor, spans: Spans, N: int, part: int) -> Spans | None:
        if self.choose(compressor)[0] == "gather":
            return spans
        return spans.piece(*place(spans.d, N, part, self.pipeline))

    def notes(self, compressor: Compressor) -> list[str]:
        form, why = self.choose(compressor)
        return [f"Ring takes the form {form!r}: {why}"]

    def round(self, anchor: Tensor, delta: Tensor, mem: Memory, here: Here) -> Talk:
        form, _ = self.choose(here.compressor)
        if form == "gather":
            return (yield from self._gather(delta, mem, here))
        u = self.feedback.owed(delta, mem)
        talk = self._ring if form == "ring" else self._two_phase
        direction, e = yield from talk(u, here)
        return direction, {"residual": e} if isinstance(self.feedback, Feedback) else mem

    def _ring(self, u: Tensor, here: Here) -> Summed:
        N, r = here.N, here.rank
        right, left = (r + 1) % N, (r - 1) % N
        e, direction = (host.empty(len(u), device=u.device) for _ in range(2))
        pieces, takes = relayed(here, self.pipeline)
        trouble = Trouble(here)
        trouble.own(u)
        for hop in range(N):
            for piece in pieces[(r - hop) % N]:
                z = u[piece.low : piece.high]
                if hop:
                    (frame,) = yield from takes.turn(1)
                    z = trouble.hear(frame, piece, left) + z
                frame, v = trouble.speak(z, piece)
                e[piece.low : piece.high] = z - v
                if hop == N - 1:
                    direction[piece.low : piece.high] = v / divisor(N, v)
                if N > 1:
                    yield from takes.turn(0, (Post(right, frame, piece.bound),))
        for hop in range(N - 1):
            segment = (r - hop) % N
            for piece in pieces[segment]:
                (frame,) = yield from takes.turn(1)
                # The owner of a segment is the last to sum it, one left of where it started.
                v = trouble.hear(frame, piece, (segment - 1) % N)
                direction[piece.low : piece.high] = v / divisor(N, v)
                if hop < N - 2:
                    yield from takes.turn(0, (Post(right, frame, piece.bound),))
        trouble.end()
        return direction, e

    def _two_phase(self, u: Tensor, here: Here) -> Summed:
        N, r = here.N, here.rank
        e, direction = (host.empty(len(u), device=u.device) for _ in range(2))
        trouble = Trouble(here)
        trouble.own(u)
        others = [(r + hop) % N for hop in range(1, N)]
        pieces = [list(cut(here, segment, self.pipeline)) for segment in range(N)]
        summed = [Take(rank, p.bound) for p in pieces[r] for rank in range(N) if rank != r]
        takes = Takes([*summed, *(Take(g, p.bound) for g in others for p in pieces[g])])
        for owner in others:
            for piece in pieces[owner]:
                z = u[piece.low : piece.high]
                frame, said = trouble.speak(z, piece)
                e[piece.low : piece.high] = z - said
                yield from takes.turn(0, (Post(owner, frame, piece.bound),))
        for piece in pieces[r]:
            frames = yield from takes.turn(N - 1)
            told = dict(zip((rank for rank in range(N) if rank != r), frames, strict=True))
            t = piece.here.zeros()
            for rank in range(N):
                own = u[piece.low : piece.high]
                t += own if rank == r else trouble.hear(told[rank], piece, rank)
            frame, w = trouble.speak(t / divisor(N, t), piece)
            e[piece.low : piece.high] = t - N * w
            direction[piece.low : piece.high] = w
            yield from takes.turn(0, tuple(Post(rank, frame, piece.bound) for rank in others))
        for owner in others:
            for piece in pieces[owner]:
                (frame,) = yield from takes.turn(1)
                direction[piece.low : piece.high] = trouble.hear(frame, piece, owner)
        trouble.end()
        return direction, e

    def _gather(self, delta: Tensor, mem: Memory, here: Here) -> Talk:
        N, r = here.N, here.rank
        saying, bound = say(delta, mem, here, self.feedback), said_bound(here)
        frames = {r: saying.frame}
        for hop in range(1, N):
            yield from turn((Post((r + 1) % N, frames[(r - hop + 1) % N], bound),))
            (frames[(r - hop) % N],) = yield from turn(takes=(Take((r - 1) % N, bound),))
        bodies = hear([frames[rank] for rank in range(N)], here)
        return heard(bodies, here), keep(mem, saying.residual)


def _rescales(compressor: Compressor) -> bool:
    sparsifier = compressor.sparsifier
    return sparsifier.drops and not sparsifier.drops_biased
