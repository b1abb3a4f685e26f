"""What a hub answers: its model for one worker, in the fewest bytes that are exact."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from isal.isal_zlib import crc32

from thinwire import kernels
from thinwire.exchange.anchors import HEAD, Form, Head, encode_values
from thinwire.exchange.hub import HUB, Hub, is_plain
from thinwire.exchange.hub_rules import Exact, PerWorker, Stream
from thinwire.flat import Spans
from thinwire.hub.replicas import Replicas
from thinwire.hub.state import HubState, Member, Stretch
from thinwire.wire.body import as_bytes
from thinwire.wire.frame import Address, Kind, checked_head, seal


class Replies:
    """Makes the ANCHOR frames of one hub.

    Args:
        run: its fingerprint.
        exchange: the rules.
        spans: the tensors.
        seed: of the run.
    """

    def __init__(self, run: int, exchange: Hub, spans: Spans, seed: int) -> None:
        downlink = exchange.downlink
        self._run, self._exact = run, isinstance(downlink, Exact)
        self._replicas: Replicas | None = None
        if isinstance(downlink, PerWorker):
            self._replicas = Replicas(downlink, spans, seed)
        self._repeats = isinstance(downlink, Stream) or (self._exact and is_plain(exchange.outer))
        self._join = kernels.active().join_crc
        self._known: tuple[tuple[int, int, bool], bytes, Stretch] | None = None

    def whole(self, s: HubState, number: int) -> bytes:
        """Returns the frame that tells a worker all of the model that workers are told."""
        head = Head(s.version, s.version, True, Form.WHOLE)
        if self._replicas is not None:
            self._replicas.hold(number, s.version, s.anchor)
        return seal(Kind.ANCHOR, Address(self._run, 0, HUB), head.pack(), as_bytes(s.anchor))

    @property
    def room(self) -> float:
        """How many workers' residuals there is memory for; infinite where none are kept."""
        return inf if self._replicas is None else self._replicas.room

    def forget(self, number: int) -> None:
        """Is told that a worker may not hold what it was told last."""
        if self._replicas is not None:
            self._replicas.forget(number)

    def back(self, number: int) -> None:
        """Is told that a worker comes back with a model of its own."""
        if self._replicas is not None:
            self._replicas.back(number)

    def reply(self, s: HubState, member: Member, sequence: int, base: int) -> tuple[bytes, ...]:
        """Returns the frame for a worker that holds version `base`, in parts.

        Args:
            s: the hub's state.
            member: who is answered.
            sequence: of its update that is answered, its last.
            base: a version the hub was at.
        """
        asked = base, s.version, member.taken
        if self._replicas is not None:
            return (self._made_up(s, member.number, sequence, Head(*asked, Form.RESIDUAL)),)
        if self._known is not None and self._known[0] == asked:
            return self._repeated(sequence, *self._known[1:])
        stretch = s.ring.since(base, 4 * s.anchor.numel()) if self._repeats else None
        if stretch is None or not self._is_short(s, stretch.size):
            values = _values(s, Head(*asked, Form.WHOLE))
            if stretch is None or len(values) < HEAD + stretch.size:
                return (seal(Kind.ANCHOR, Address(self._run, sequence, HUB), values),)
        start = Head(*asked, Form.UPDATES if self._exact else Form.STREAM).pack()
        self._known = asked, start, stretch
        return self._repeated(sequence, start, stretch)

    def _made_up(self, s: HubState, number: int, sequence: int, head: Head) -> bytes:
        assert self._replicas is not None
        at, given = Address(self._run, sequence, HUB), (head.since, head.version, s.anchor)
        body = self._replicas.make_up(number, sequence, *given)
        if body is not None:
            return seal(Kind.ANCHOR, at, head.pack(), body)
        self._replicas.hold(number, s.version, s.anchor)
        return seal(Kind.ANCHOR, at, replace(head, form=Form.WHOLE).pack(), as_bytes(s.anchor))

    def repeats(self, s: HubState, base: int, more: int) -> bool:
        """Whether a worker at version `base` is told entries, once so many bytes more are there."""
        known = s.ring.bytes_since(base) if self._repeats else None
        if known is None or known + more > s.ring.bound:
            return False
        return self._is_short(s, known + more)

    def _is_short(self, s: HubState, size: int) -> bool:
        # A few messages are shorter than any other way to say them; many need not be.
        return not self._exact or 8 * (HEAD + size) < 4 * s.anchor.numel()

    def _repeated(self, sequence: int, start: bytes, stretch: Stretch) -> tuple[bytes, ...]:
        n = len(start) + stretch.size
        head = checked_head(Kind.ANCHOR, self._run, sequence, HUB, 0, n)
        check = self._join(crc32(start, crc32(head)), stretch.check, stretch.size)
        return head + check.to_bytes(4, "little") + start, *stretch.entries


def _values(s: HubState, head: Head) -> bytes:
    if s.touched is None:
        return head.pack() + as_bytes(s.anchor)
    touched = (s.touched > head.since).nonzero().view(-1)
    return encode_values(s.anchor, touched, head)
