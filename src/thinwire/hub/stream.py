"""The hub's own stream: what it owes all its workers, and the next frame of it."""

from __future__ import annotations

from torch import Tensor

from thinwire.compress import Compressor
from thinwire.exchange.hub import PIECE, stream_key
from thinwire.flat import Spans
from thinwire.hub.state import HubState
from thinwire.kernels import Marked
from thinwire.wire.body import pack


class Speaker:
    """Says what is owed, in frames that every worker hears.

    Args:
        compressor: of the stream.
        spans: the tensors.
        seed: of the run.
        owed: (d,) float32, what has not been said; changed in place.
        by_entries: whether updates name the entries that they change, which then are marked.
    """

    def __init__(
        self, compressor: Compressor, spans: Spans, seed: int, owed: Tensor, by_entries: bool
    ) -> None:
        self._C, self._spans, self._seed, self._x = compressor, spans, seed, owed
        self.owed: Tensor | Marked = owed
        if by_entries and compressor.sparsifier.by_marks:
            self.owed = Marked.over(owed, compressor.layout(spans).groups)

    def forget(self) -> None:
        """Is told that what is owed may have changed anywhere."""
        if isinstance(self.owed, Marked):
            self.owed.forget()

    def say(self, s: HubState) -> None:
        """Says the next frame, which leads to the next version: C(owed) moves from owed to x."""
        C, key = self._C, stream_key(self._seed, s.version)
        payload = C.payload_of(C.keep(self.owed, key, self._spans))
        body = pack(payload, C)
        C.accumulate(s.anchor, payload)
        C.remove(self._x, payload)
        s.version, s.unsaid = s.version + 1, 0
        s.ring.push(s.applied, PIECE.pack(len(body)) + body)
