"""Ring: no server; each rank owns one segment of the mean, and every segment is coded anew.

ring        z = incoming + u[g]; v = C(z); e[g] = z - v; pass v on; the owner's last v is N times
the direction, and its codes travel on unchanged
two-phase   say C(u[g]) straight to g's owner; e[g] = u[g] - said; the owner: t = u[g] + sum of
said, w = C(t / N), e[g] = t - N w, says w to all; direction[g] = w
gather      whole messages travel round, unchanged; all fold them in rank order
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import ClassVar, Literal

import torch
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
)
from thinwire.exchange.gather import gathered
from thinwire.exchange.hear import divisor, goes_round, passed_on
from thinwire.exchange.segments import Piece, Takes, Trouble, cut, place, relayed
from thinwire.flat import Spans, Vector
from thinwire.host import Bytes
from thinwire.transport.base import Answer, Ask, Post, Take
from thinwire.value import of_kind, one_of
from thinwire.value import whole as whole_number

Summed = Generator[Ask, Answer, Tensor]
"""A talk that returns the direction, and puts into e what each entry still owes."""
Owes = Callable[..., Tensor]
"""u(at): the entries of u in that slice, all without one; formed anew each time."""
Form = Literal["ring", "two-phase", "gather", "auto"]
UNHEARD = 1 << 21
"""Bytes: in pieces so small that more than two hold no more, a rank says as many unheard."""


@dataclass(frozen=True, repr=False)
class Ring(Exchange):
    """All-reduces in segments, quantized on the way: no rank hears or holds more than another.

    Price, per rank and per round, |C_g| one segment's frame:
      ring: 2 (N - 1) steps, sends 2 (N - 1) |C_g|, to its right neighbour alone;
      two-phase: 2 steps, of long segments 2 (N - 1), sends 2 (N - 1) |C_g|;
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

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        form, _ = self.choose(here.compressor)
        if form == "gather":
            return (yield from gathered(passed_on, delta, mem, here, self.feedback))
        u = partial(self.feedback.owed, delta, mem)
        e = host.like(anchor) if isinstance(self.feedback, Feedback) else None
        talk = self._ring if form == "ring" else self._two_phase
        return (yield from talk(u, e, here)), keep(mem, e)

    def _ring(self, u: Owes, e: Tensor | None, here: Here) -> Summed:
        N, r = here.N, here.rank
        right, left = (r + 1) % N, (r - 1) % N
        direction = host.empty(here.spans.d, device=here.device)
        pieces, takes = relayed(here, self.pipeline)
        trouble = Trouble(here, u)
        for hop in range(N):
            for piece in pieces[(r - hop) % N]:
                at = slice(piece.low, piece.high)
                z, v = u(at), direction[at]
                if hop:
                    (frame,) = yield from takes.turn(1)
                    own, z = z, host.like(v)
                    trouble.hear(frame, piece, left, z, first=True)
                    z += own
                last = hop == N - 1
                said = trouble.speak(z, piece, v if last or e is not None else None)
                if e is not None:
                    e[at] = z - v
                if last:
                    v /= divisor(N, v)
                if N > 1:
                    yield from takes.turn(0, (Post(right, said, piece.bound),))
        for hop in range(N - 1):
            segment = (r - hop) % N
            for piece in pieces[segment]:
                (frame,) = yield from takes.turn(1)
                v = direction[piece.low : piece.high]
                # The owner of a segment is the last to sum it, one left of where it started.
                trouble.hear(frame, piece, (segment - 1) % N, v, first=True)
                v /= divisor(N, v)
                if hop < N - 2:
                    yield from takes.turn(0, (Post(right, frame, piece.bound),))
        trouble.end()
        return direction

    def _two_phase(self, u: Owes, e: Tensor | None, here: Here) -> Summed:
        N, r = here.N, here.rank
        direction, trouble = host.empty(here.spans.d, device=here.device), Trouble(here, u)
        pieces = [list(cut(here, segment, self.pipeline)) for segment in range(N)]
        # Each speaks to the right and hears from the left, (owner, rank) as far away on each side.
        hops = [((r + hop) % N, (r - hop) % N) for hop in range(1, N)]
        says = [(owner, piece) for owner, _ in hops for piece in pieces[owner]]
        hears = [(rank, piece) for _, rank in hops for piece in pieces[r]]
        means = [(owner, piece) for _, owner in hops for piece in pieces[owner]]
        long = goes_round(max(sum(piece.bound for piece in segment) for segment in pieces))
        tellers = hops[:1] if long else hops  # The means of long ones go round.
        ahead = unheard([p.bound for p in pieces[r]], here.spans.d // N) if long else len(says)
        held_back = ahead < len(pieces[r])
        told: dict[tuple[int, int], Bytes] = {}
        right, left = hops[0] if hops else (r, r)

        def mean_from(owner: int, piece: Piece) -> Take:
            if not long:
                return Take(owner, piece.bound)
            return Take(left, piece.bound, right if owner != right else None, held_back)

        takes = Takes(
            (
                *(Take(rank, piece.bound, held_back=held_back) for rank, piece in hears),
                *(mean_from(owner, piece) for owner, piece in means),
            )
        )

        def to_owner(owner: int, piece: Piece) -> Post:
            at = slice(piece.low, piece.high)
            own = u(at)
            said = trouble.speak(own, piece, None if e is None else e[at])
            if e is not None:
                torch.sub(own, e[at], out=e[at])
            return Post(owner, said, piece.bound)

        def mean(piece: Piece) -> Bytes:
            at = slice(piece.low, piece.high)
            w = direction[at]
            t = host.like(w).zero_() if r == 0 else host.like(w)
            for rank in range(N):
                if rank == r:
                    t += u(at)
                else:
                    said = told.pop((rank, piece.low))
                    trouble.hear(said, piece, rank, t, first=rank == 0)
            said = trouble.speak(t / divisor(N, t), piece, w)
            if e is not None:
                e[at] = t - N * w
            return said

        yield from takes.turn(0)
        for owner, piece in says[:ahead]:
            yield from takes.turn(0, (to_owner(owner, piece),))
        for (rank, piece), after in zip_longest(hears, says[ahead:]):
            (told[rank, piece.low],) = yield from takes.turn(1)
            if after is not None:
                yield from takes.turn(0, (to_owner(*after),))
            if rank == hops[-1][1]:
                said = mean(piece)
                yield from takes.turn(0, tuple(Post(to, said, piece.bound) for to, _ in tellers))
        if N == 1:
            for piece in pieces[r]:
                mean(piece)
        for owner, piece in means:
            (frame,) = yield from takes.turn(1)
            w = direction[piece.low : piece.high]
            trouble.hear(frame, piece, owner, w, first=True)
            if long and owner != right:
                yield from takes.turn(0, (Post(right, frame, piece.bound, relayed=True),))
        trouble.end()
        return direction


def unheard(segment: Sequence[int], entries: int) -> int:
    """Returns how many pieces of long segments a rank says before it hears the first.

    Then each leaves when one has come: of long coded pieces two, so that a hop's have nearly all
    been heard before the next hop's are said. A rank that is ahead of others would else be spoken
    to by one that a later rank waits for, which falls back further at every hop. Plain float32 goes
    over fast lines, where to wait costs more than that: of it, all of a hop.

    Args:
        segment: the most bytes of each piece.
        entries: of the segment.
    """
    coded = sum(segment) < 4 * entries
    return max(2, min(len(segment), UNHEARD // max(segment)) if coded else len(segment))


def _rescales(compressor: Compressor) -> bool:
    sparsifier = compressor.sparsifier
    return sparsifier.drops and not sparsifier.drops_biased
