"""The three methods of the hub on gRPC, and how frames are cut to go through them."""

from __future__ import annotations

from collections.abc import Iterator

from thinwire.host import Bytes

PROTOCOL = 1
"""Both sides must speak this version of hub.proto."""
SETTINGS = "/thinwire.hub.v1.Hub/Settings"
TRAIN = "/thinwire.hub.v1.Hub/Train"
STATUS = "/thinwire.hub.v1.Hub/Status"
PIECE_BYTES = 1 << 18
"""A frame longer than this goes in several messages."""
LEAST_BYTES = 1 << 12
"""No piece is shorter but the last: each takes memory beside its bytes while a frame gathers."""
MESSAGE_BYTES = PIECE_BYTES + (1 << 22)
"""The longest message; a description of many tensors is the longest there is."""

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    # A peer that is gone without a word is noticed within half a minute.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # A hub that comes back must be found at once, and two hubs never share a port.
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.so_reuseport", 0),
)


def pieces(*parts: Bytes) -> Iterator[tuple[bytes, bool]]:
    """Yields (data, whether it is the last) of a frame that is given in parts."""
    left, held, room = sum(len(part) for part in parts), [], PIECE_BYTES
    if 0 < left <= PIECE_BYTES:
        yield b"".join(parts), True  # Most frames, without a copy of one that is whole.
        return
    for part in parts:
        view = memoryview(part)
        while len(view) >= room:
            held.append(view[:room])
            view = view[room:]
            left -= PIECE_BYTES
            yield b"".join(held), left <= 0
            held, room = [], PIECE_BYTES
        if view:
            held.append(view)
            room -= len(view)
    if held:
        yield b"".join(held), True
