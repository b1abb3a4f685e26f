"""What a hub answers: its model for one worker, in the fewest bytes that are exact."""

from __future__ import annotations

from isal.isal_zlib import crc32

from thinwire import kernels
from thinwire.exchange.anchors import HEAD, Form, Head, encode_values
from thinwire.exchange.hub import HUB, Hub, is_plain
from thinwire.exchange.hub_rules import Exact
from thinwire.hub.state import HubState, Stretch
from thinwire.wire.body import as_bytes
from thinwire.wire.frame import Address, Kind, checked_head, seal


class Replies:
    """Makes the ANCHOR frames of one hub.

    Args:
        run: its fingerprint.
        exchange: the rules.
    """

    def __init__(self, run: int, exchange: Hub) -> None:
        self._run, self._exact = run, isinstance(exchange.downlink, Exact)
        self._repeats = not self._exact or is_plain(exchange.outer)
        self._join = kernels.active().join_crc
        self._known: tuple[tuple[int, int, bool], bytes, Stretch] | None = None

    def whole(self, s: HubState) -> bytes:
        """Returns the frame that says all of the model that workers are told."""
        head = Head(s.version, s.version, True, Form.WHOLE)
        return seal(Kind.ANCHOR, Address(self._run, 0, HUB), head.pack(), as_bytes(s.anchor))

    def reply(self, s: HubState, sequence: int, base: int, taken: bool) -> tuple[bytes, ...]:
        """Returns the frame for a worker that holds version `base`, in parts.

        Args:
            s: the hub's state.
            sequence: of the update that is answered.
            base: a version the hub was at.
            taken: whether that update was applied.
        """
        asked = base, s.version, taken
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
