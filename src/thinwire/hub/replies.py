"""What a hub answers: its model for one worker, in the fewest bytes that are exact."""

from __future__ import annotations

from thinwire.exchange.anchors import HEAD, Form, Head, encode_values
from thinwire.exchange.hub import Hub, is_plain
from thinwire.exchange.hub_rules import Exact
from thinwire.hub.state import HubState, Stretch
from thinwire.wire.body import as_bytes


def whole_body(s: HubState) -> bytes:
    """Returns the ANCHOR body that says all of the model that workers are told."""
    return Head(s.version, s.version, True, Form.WHOLE).pack() + as_bytes(s.anchor)


def said_since(s: HubState, exchange: Hub, base: int) -> tuple[Stretch | None, bool]:
    """Returns what was said since a version, if it can be said again, and whether that is least.

    Args:
        s: the hub's state.
        exchange: the rules.
        base: a version the hub was at.
    """
    whole = 4 * len(s.anchor)
    exact = isinstance(exchange.downlink, Exact)
    stretch = s.ring.since(base, whole)
    if stretch is None or (exact and not is_plain(exchange.outer)):
        return None, False
    # A few messages are shorter than any other way to say them; many need not be.
    return stretch, not exact or 8 * (HEAD + stretch.size) < whole


def values_body(s: HubState, head: Head) -> bytes:
    """Returns the ANCHOR body that says the entries that changed, or all.

    Args:
        s: the hub's state.
        head: of a reply whose form is decided here.
    """
    if s.touched is None:
        return head.pack() + as_bytes(s.anchor)
    touched = (s.touched > head.since).nonzero().view(-1)
    return encode_values(s.anchor, touched, head)
