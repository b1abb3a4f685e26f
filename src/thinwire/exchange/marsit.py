"""Marsit: a one-bit ring; each hop keeps the passing bit or puts its own in its place."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Compressor, Identity, Sign
from thinwire.errors import ConfigError
from thinwire.exchange.base import Exchange, Here, Memory, Talk
from thinwire.exchange.consensus import agreed_mean
from thinwire.exchange.feedback import NoFeedback
from thinwire.exchange.ring import Ring
from thinwire.exchange.segments import Trouble, relayed
from thinwire.flat import Spans, Vector
from thinwire.transport.base import Answer, Ask, Post
from thinwire.value import whole

COIN = 3
"""The draw that decides whose bit goes on."""
PIECE = 1 << 23
"""Entries of a piece of a segment, at most."""


@dataclass(frozen=True, repr=False)
class Marsit(Exchange):
    """Sends one bit an entry at every hop: an unbiased sample of the mean sign.

    u = delta + c. At hop m the bit v that comes in meets the own bit b of u:
    v <- (v and b) or ((v xor b) and r), r true with probability 1/m where b is 1, (m - 1)/m where
    it is 0: b takes v's place with probability 1/m. The last v of each segment travels on
    unchanged; direction = scale (2v - 1), scale = the mean over workers of ||u||_1 / d;
    c = u - direction. Every K rounds the exact mean is taken instead and c starts anew: without
    that, c grows without bound where workers' data differ.

    Price: 2 (N - 1) steps of one bit an entry of a segment, and 2 steps of 34 bytes for the scale;
    a full round, one two-phase ring of float32. Memory: c, one d-vector.

    Args:
        K: every K-th round is in full precision, the first among them.

    Source: Marsit (arXiv 2204.06787): its one-bit merge and its full-precision rounds.
    Differs: the scale is agreed in each round; the paper fixes a step size.
    """

    K: int = 50

    def __post_init__(self) -> None:
        whole(self, "K", self.K, 1, 1 << 30)

    def check(self, compressor: Compressor, spans: Spans) -> None:
        if compressor != Sign():
            raise ConfigError(f"Marsit sends signs: write compressor=Sign(), not {compressor!r}")

    def told(self, compressor: Compressor, spans: Spans, N: int, part: int) -> Spans | None:
        return None

    def init(self, here: Here) -> Memory:
        return {"residual": here.zeros()}

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        u = delta[:] + mem["residual"]
        if here.round % self.K == 0:
            exact = Ring("two-phase", NoFeedback())
            dense = replace(here, compressor=Identity())
            direction, _ = yield from exact.round(anchor, u, {}, dense)
            return direction, {"residual": here.zeros()}
        trouble = Trouble(here, lambda: u)
        trouble.look()
        own = float(u.double().abs().sum()) / max(1, here.spans.d)
        scale = yield from agreed_mean(own, here)
        bits = yield from self._sample(u, here, trouble)
        trouble.end()
        direction = (bits * 2 - 1).float() * scale
        return direction, {"residual": u - direction}

    def _sample(self, u: Tensor, here: Here, trouble: Trouble) -> Generator[Ask, Answer, Tensor]:
        N, r, table = here.N, here.rank, kernels.active(u.device)
        right, left = (r + 1) % N, (r - 1) % N
        bits = torch.zeros(len(u), dtype=torch.int32, device=u.device)
        pieces, takes = relayed(here, PIECE)
        for hop in range(N):
            for piece in pieces[(r - hop) % N]:
                own = u[piece.low : piece.high]
                packed, _ = table.signs(own, host.ints([0, len(own)]))
                b = table.unpack(packed, len(own), 1)
                if hop:
                    (frame,) = yield from takes.turn(1)
                    v = trouble.hear_bits(frame, piece, left)
                    coins = table.words(len(b), piece.here.key.draw(COIN).words)
                    b = torch.where(coins * (hop + 1) < 1 << 32, b, v)
                bits[piece.low : piece.high] = b
                if N > 1:
                    frame = trouble.speak_bits(b, piece)
                    yield from takes.turn(0, (Post(right, frame, piece.bound),))
        for hop in range(N - 1):
            segment = (r - hop) % N
            for piece in pieces[segment]:
                (frame,) = yield from takes.turn(1)
                owner = (segment - 1) % N
                bits[piece.low : piece.high] = trouble.hear_bits(frame, piece, owner)
                if hop < N - 2:
                    yield from takes.turn(0, (Post(right, frame, piece.bound),))
        return bits
