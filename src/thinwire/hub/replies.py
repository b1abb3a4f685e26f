"""What a hub answers: its model for one worker, in the fewest bytes that are exact."""

from __future__ import annotations

from dataclasses import replace

from thinwire.exchange.anchors import Form, Head, encode_values
from thinwire.exchange.hub import Hub, is_plain
from thinwire.exchange.hub_rules import Exact
from thinwire.hub.state import HubState
from thinwire.wire.body import as_bytes


def whole_body(s: HubState) -> bytes:
    """Returns the ANCHOR body that says all of the model that workers are told."""
    return Head(s.version, s.version, True, Form.WHOLE).pack() + as_bytes(s.anchor)


def reply_body(s: HubState, exchange: Hub, base: int, taken: bool) -> bytes:
    """Returns the ANCHOR body for a worker that holds version `base`.

    Args:
        s: the hub's state.
        exchange: the rules.
        base: a version the hub was at.
        taken: whether the worker's own update was applied.
    """
    whole = 4 * len(s.anchor)
    head = Head(base, s.version, taken, Form.WHOLE)
    exact = isinstance(exchange.downlink, Exact)
    entries = s.ring.since(base, whole)
    if entries is None or (exact and not is_plain(exchange.outer)):
        return _values(s, base, head)
    form = Form.UPDATES if exact else Form.STREAM
    body = b"".join((replace(head, form=form).pack(), *entries))
    # A few messages are shorter than any other way to say them; many need not be.
    if not exact or 8 * len(body) < whole:
        return body
    return min(body, _values(s, base, head), key=len)


def _values(s: HubState, base: int, head: Head) -> bytes:
    if s.touched is None:
        return head.pack() + as_bytes(s.anchor)
    touched = (s.touched > base).nonzero().view(-1)
    return encode_values(s.anchor, touched, head)
