"""The hub's own stream: what it owes all its workers, and the next frame of it."""

from __future__ import annotations

from math import inf

from torch import Tensor

from thinwire.exchange.hub import PIECE, Hub, largest, stream_key
from thinwire.exchange.hub_rules import Stream
from thinwire.flat import Spans
from thinwire.hub.reach import Reach
from thinwire.hub.state import HubState
from thinwire.kernels import Marked
from thinwire.wire.body import pack


class Speaker:
    """Says what is owed, in frames that every worker hears.

    Args:
        exchange: the rules, whose downlink is a stream.
        spans: the tensors.
        seed: of the run.
        owed: (d,) float32, what has not been said; changed in place.
        by_entries: whether updates name the entries that they change, which then are marked.
        reach: of the model, which frames move too.
    """

    def __init__(
        self, exchange: Hub, spans: Spans, seed: int, owed: Tensor, by_entries: bool, reach: Reach
    ) -> None:
        stream, stale = exchange.downlink, exchange.staleness
        assert isinstance(stream, Stream)
        self._C, self._spans, self._seed, self._x = stream.compressor, spans, seed, owed
        self._every, self._most, self._reach = stream.every, inf, reach
        if stale.policy == "refuse" and stale.most is not None:
            # What is unsaid counts as missed even by a worker at the newest version. Were it more
            # than may be missed, all would be refused, and no update would ever bring a frame.
            self._most = stale.most + 1
        self.owed: Tensor | Marked = owed
        if by_entries and self._C.sparsifier.by_marks:
            self.owed = Marked.over(owed, self._C.layout(spans).groups)

    def forget(self) -> None:
        """Is told that what is owed may have changed anywhere."""
        if isinstance(self.owed, Marked):
            self.owed.forget()

    def is_due(self, unsaid: int, live: int) -> bool:
        """Whether a frame leaves, with so many updates unsaid and so many live workers."""
        return unsaid >= min(self._every or live, self._most)

    def left(self, unsaid: int, live: int) -> int:
        """Returns after how many more updates a frame leaves, at least one."""
        return int(max(1, min(self._every or live, self._most) - unsaid))

    def say(self, s: HubState) -> None:
        """Says the next frame, which leads to the next version: C(owed) moves from owed to x.

        A frame that would make x infinite is not said: all of it is still owed then.
        """
        C, key = self._C, stream_key(self._seed, s.version)
        payload = C.payload_of(C.keep(self.owed, key, self._spans))
        if not self._reach.says(largest(C.values(payload))):
            return
        body = pack(payload, C)
        C.accumulate(s.anchor, payload)
        C.remove(self._x, payload)
        s.version, s.unsaid = s.version + 1, 0
        s.ring.push(s.applied, PIECE.pack(len(body)) + body)
