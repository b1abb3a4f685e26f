"""Spoken: what a run in virtual time came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spoken:
    """What a run came to; see `VirtualTime`.

    Args:
        now: virtual seconds.
        sent: bytes that left each rank.
        received: bytes that came to each rank.
        busy: seconds each rank computed.
        frames: in all.
        lost: of them, those that never came.
    """

    now: float
    sent: list[int]
    received: list[int]
    busy: list[float]
    frames: int
    lost: int = 0
