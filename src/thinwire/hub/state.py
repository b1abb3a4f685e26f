"""What a hub holds: its model, its members, and what it can still repeat."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from isal.isal_zlib import crc32
from torch import Tensor

from thinwire import host, kernels
from thinwire.exchange.hub import Hub
from thinwire.exchange.hub_rules import Exact, Stream
from thinwire.outer import OuterState

BUCKETS = 24
"""Staleness is counted in buckets 0, 1, 2-3, 4-7, ...: bucket b > 0 begins at 2**(b - 1)."""


@dataclass
class Member:
    """A worker the hub knows, live or not.

    Args:
        number: its rank in frames, from 1.
        weight: what it counts by.
        sequence: how many of its updates were answered; its next one has this number.
        applied: how many of those were applied.
        stamp: updates applied to the model it last received.
        check: CRC-32 of its last update, so that the same one sent again is known.
        taken: whether that was applied.
        live: whether it is here.
    """

    number: int
    weight: float = 1.0
    sequence: int = 0
    applied: int = 0
    stamp: int = 0
    check: int = 0
    taken: bool = True
    live: bool = True


@dataclass(frozen=True)
class Stretch:
    """What the ring holds from one version to the last.

    Args:
        entries: in their order.
        size: their bytes.
        check: CRC-32 of them, end to end.
    """

    entries: list[bytes]
    size: int
    check: int


class Ring:
    """The last entries of a row of versions, within a bound of bytes.

    Args:
        bound: bytes.
        last: the version after the last entry.
    """

    def __init__(self, bound: int, last: int = 0) -> None:
        self.bound, self.last = bound, last
        self.entries: deque[tuple[int, bytes]] = deque()
        # Before each entry, and after the last: the bytes pushed so far, and their CRC-32.
        self._marks = deque([(0, 0)])

    @property
    def first(self) -> int:
        """The least version that an entry starts from."""
        return self.last - len(self.entries)

    @property
    def size(self) -> int:
        """Bytes of the entries."""
        return self._marks[-1][0] - self._marks[0][0]

    def push(self, stamp: int, start: bytes, rest: tuple[bytes, int] = (b"", 0)) -> None:
        """Adds the entry that leads from `last` to `last + 1`; drops the oldest above the bound.

        Args:
            stamp: updates applied to the model that it leads to.
            start: its bytes.
            rest: more of them behind those, and their CRC-32, which is known already.
        """
        more, check = rest
        join, (size, before) = kernels.active().join_crc, self._marks[-1]
        both = join(crc32(start, before), check, len(more))
        self._marks.append((size + len(start) + len(more), both))
        self.entries.append((stamp, start + more))
        self.last += 1
        while self.size > self.bound:
            self.entries.popleft()
            self._marks.popleft()

    def bytes_since(self, version: int) -> int | None:
        """Returns the bytes of what leads from `version` to the last, or None where gone."""
        if not self.first <= version <= self.last:
            return None
        return self._marks[-1][0] - self._marks[version - self.last - 1][0]

    def since(self, version: int, most: int) -> Stretch | None:
        """Returns what leads from `version` to the last; None where gone, or above `most` bytes."""
        size = self.bytes_since(version)
        if size is None or size > most:
            return None
        entries = [self.entries[at][1] for at in range(version - self.last, 0)]
        first, both = self._marks[version - self.last - 1][1], self._marks[-1][1]
        return Stretch(entries, size, kernels.active().join_crc(first, both, size))

    def stamp(self, version: int) -> int | None:
        """Returns the stamp of the entry that led to `version`, or None where it is gone."""
        at = version - self.first - 1
        return self.entries[at][0] if 0 <= at < len(self.entries) else None


@dataclass
class HubState:
    """Everything a hub must not lose; `Core` changes it in place.

    Args:
        anchor: (d,) float32: the model at `version`, as workers are told of it.
        owed: (d,) float32: with a stream, what it has not said yet: the model is anchor + owed.
        touched: (d,) int64: without one, the version at which an entry last changed.
        outer: what the outer step remembers.
        ring: entries that lead from version to version.
        version: of what workers are told.
        applied: updates applied.
        unsaid: of those, how many since the stream's last frame.
        refused: updates refused as too stale.
        staleness: the sum of all updates'.
        members: by name.
        histogram: updates by staleness, see `BUCKETS`.
    """

    anchor: Tensor
    owed: Tensor | None
    touched: Tensor | None
    outer: OuterState
    ring: Ring
    version: int = 0
    applied: int = 0
    unsaid: int = 0
    refused: int = 0
    staleness: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    histogram: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    @property
    def model(self) -> Tensor:
        """(d,) float32, the hub's own model."""
        return self.anchor if self.owed is None else self.anchor + self.owed

    @property
    def stamp(self) -> int:
        """Updates applied to the model that workers are told now."""
        return self.applied if self.owed is None else self.applied - self.unsaid

    def stamp_of(self, member: Member, base: int) -> int:
        """Returns how many were applied to the model of version `base`, as that member holds it."""
        if self.owed is None:
            return base  # Each update leads to a version.
        if base == self.version:
            return self.stamp
        stamp = self.ring.stamp(base)
        return min(self.applied, member.stamp if stamp is None else stamp)


def bucket(staleness: int) -> int:
    """Returns the bucket of a staleness.

    Example:
        >>> [bucket(s) for s in (0, 1, 2, 3, 4, 7, 8)]
        [0, 1, 2, 2, 3, 3, 4]
    """
    return min(BUCKETS - 1, staleness.bit_length())


def first_state(exchange: Hub, model: Tensor) -> HubState:
    """Returns the state of a hub that nobody has joined.

    Args:
        exchange: the rules.
        model: (d,) float32, the first model.
    """
    exact, shared = (isinstance(exchange.downlink, kind) for kind in (Exact, Stream))
    return HubState(
        anchor=host.empty(len(model)).copy_(model),
        owed=host.zeros(len(model)) if shared else None,
        touched=host.empty(len(model), torch.int64).zero_() if exact else None,
        outer=exchange.outer.init(model),
        ring=Ring(exchange.downlink.repeats),
    )
