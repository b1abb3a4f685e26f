"""Link: one worker's line to the others, as a value; what it makes of a frame.

Held to it by a clock that waits it is `transport.Paced`; in virtual time, `virtual`; both count
the same bytes at the same rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from thinwire import units
from thinwire.errors import ConfigError
from thinwire.keys import Key
from thinwire.value import Value, in_range

SEGMENT = 1448
"""Bytes of a frame that one full Ethernet packet carries over TCP: 1500 - 20 (IP) - 32 (TCP)."""
PACKET = 66
"""Bytes of headers of each packet, as `tc` counts: 14 (Ethernet) + 20 (IP) + 32 (TCP)."""
MESSAGE = 48
"""Bytes that Gloo puts before each message: six numbers of its TCP pairs, 8 bytes each."""
_FULL = 1 << 32


@dataclass(frozen=True, repr=False)
class Link(Value):
    """A worker's line: how fast it is each way, how long the way is, and what goes wrong on it.

    A frame of n bytes takes `wire_bytes(n)` of the sender's uplink, then `latency`, then as much of
    the receiver's downlink; links of different workers cross one switch that is never the
    bottleneck. Both directions are used at once.

    Args:
        bandwidth: bits per second, headers included, each way; None for unlimited.
        latency: seconds from one worker to another, one way.
        down: bits per second of the downlink, where it differs; None for the same.
        jitter: seconds; each frame comes later by up to so much, drawn uniformly.
        loss: of a packet; it is sent again, and its frame comes a round trip later.
        drop: of a frame, which then never comes; Gossip, Choco, DeepSqueeze and DPSGD go on without
            a message, any other exchange stops with an error. An AllReduce, which has no frames of
            its own, loses none and is late by none.
        patience: seconds a receiver waits for a frame that never comes.

    Example:
        >>> Link.parse("100mbit,20ms")
        Link(bandwidth=100000000.0, latency=0.02)
        >>> round(Link.parse("100mbit,20ms").seconds(125_000), 4)
        0.0105
    """

    bandwidth: float | None = None
    latency: float = 0.0
    down: float | None = None
    jitter: float = 0.0
    loss: float = 0.0
    drop: float = 0.0
    patience: float = 1.0

    def __post_init__(self) -> None:
        for name in ("bandwidth", "down"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(
                    f"Link: {name} is {value!r} bit/s, which carries nothing; give one such as 1e8"
                )
        for name in ("latency", "jitter", "patience"):
            in_range(self, name, getattr(self, name), 0.0, 3600.0)
        in_range(self, "loss", self.loss, 0.0, 0.5)
        in_range(self, "drop", self.drop, 0.0, 0.9)

    @staticmethod
    def parse(text: str) -> Link:
        """Returns the link that a text such as "100mbit,20ms,jitter=5ms,loss=1%" says.

        Raises:
            ConfigError: it says none; with an example of one that does.
        """
        said: dict[str, float | None] = {}
        names = [field.name for field in fields(Link)]
        for place, part in enumerate(text.split(",")):
            name, equals, value = part.strip().partition("=")
            if not equals:
                name, value = ("bandwidth", "latency", "")[min(place, 2)], name
            if name not in names:
                raise ConfigError(
                    f"{part!r} is no part of a link; write 100mbit,20ms and then any of "
                    f"{', '.join(f'{n}=' for n in names)}"
                )
            if name in said:
                raise ConfigError(f"{text!r} gives {name} twice; write 100mbit,20ms")
            unlimited = (name, value) == ("bandwidth", "unlimited")
            said[name] = None if unlimited else _READ[name](value)
        return Link(**said)  # type: ignore[arg-type]

    def wire_bytes(self, n: int) -> int:
        """Returns the bytes that n bytes of a frame are on the wire, headers of all layers in."""
        return n + MESSAGE + PACKET * _packets(n)

    def seconds(self, n: int, downwards: bool = False) -> float:
        """Returns how long a frame of n bytes keeps the uplink, or the downlink, busy."""
        bandwidth = self.down if downwards and self.down is not None else self.bandwidth
        return 0.0 if bandwidth is None else 8 * self.wire_bytes(n) / bandwidth

    def luck(self, n: int, key: Key) -> Luck:
        """Returns what befalls one frame of n bytes; the key is the frame's own.

        Args:
            n: bytes.
            key: its round counts the frames of its rank.
        """
        if not (self.jitter or self.loss or self.drop):
            return FINE
        lost = self.drop > 0 and _uniform(key.draw(0)) < self.drop
        late = self.jitter * _uniform(key.draw(1)) if self.jitter else 0.0
        packets, again, trips = _packets(n), 0, 0
        while self.loss and packets and trips < 7:
            packets = _binomial(packets, self.loss, _uniform(key.of_part(8 + trips)))
            again += packets
            trips += packets > 0
        return Luck(lost, late + 2 * self.latency * trips, again / _packets(n))

    def all_reduce(self, n: int, N: int) -> float:
        """Returns how long a ring takes to all-reduce n dense bytes among N such links.

        Its 2 (N - 1) steps each move one N-th, and nobody is ahead of its neighbours.
        """
        piece = (n + N - 1) // N
        return 2 * (N - 1) * (self.seconds(piece) + self.latency)

    def say(self) -> str:
        """Returns the link as a person reads it.

        Example:
            >>> Link(1e8, 0.02, loss=0.01).say()
            '100 Mbit/s, 20 ms, loss 1%'
        """
        rate = "unlimited" if self.bandwidth is None else units.say_rate(self.bandwidth)
        said = [rate, units.say_seconds(self.latency)]
        said += [f"down {units.say_rate(self.down)}"] if self.down is not None else []
        said += [f"jitter {units.say_seconds(self.jitter)}"] if self.jitter else []
        said += [
            f"{name} {v:.3g}%" for name in ("loss", "drop") if (v := 100 * getattr(self, name))
        ]
        return ", ".join(said)


@dataclass(frozen=True)
class Luck:
    """What befalls one frame.

    Args:
        lost: whether it never comes.
        late: seconds it comes later than the link's latency.
        again: the part of it that is sent once more.
    """

    lost: bool = False
    late: float = 0.0
    again: float = 0.0


FINE = Luck()


class Port:
    """One direction of a worker's line: who comes first is served first, who come at once share it.

    Attributes:
        free: the time at which all it was given so far has passed.
    """

    __slots__ = ("free",)

    def __init__(self) -> None:
        self.free = 0.0

    def serve(self, at: float, seconds: float) -> float:
        """Returns when what comes at that time, and keeps it busy so long, has passed."""
        self.free = (self.free if self.free > at else at) + seconds
        return self.free

    def share(self, at: float, seconds: Sequence[float]) -> tuple[float, list[float]]:
        """Returns when what comes at once begins to pass, and when each of it has.

        All have the same part of the line, as TCP streams have, until the shortest is through.

        Args:
            at: when they come.
            seconds: that each would keep the line busy by itself.

        Example:
            >>> Port().share(1.0, [3.0, 1.0])
            (1.0, [5.0, 3.0])
        """
        began = self.free if self.free > at else at
        ends, passed, before, left = [began] * len(seconds), 0.0, 0.0, len(seconds)
        for which in sorted(range(len(seconds)), key=seconds.__getitem__):
            passed += (seconds[which] - before) * left
            before, left, ends[which] = seconds[which], left - 1, began + passed
        self.free = began + passed
        return began, ends


_READ = {
    "bandwidth": units.rate,
    "down": units.rate,
    "latency": units.seconds,
    "jitter": units.seconds,
    "patience": units.seconds,
    "loss": units.share,
    "drop": units.share,
}


def _packets(n: int) -> int:
    return (n + MESSAGE + SEGMENT - 1) // SEGMENT


def _uniform(key: Key) -> float:
    return key.words[0] / _FULL


def _binomial(n: int, p: float, u: float) -> int:
    # The normal curve's place where there are many; else the sum of chances up to u.
    mean = n * p
    if mean > 30:
        from statistics import NormalDist

        draw = NormalDist(mean, math.sqrt(mean * (1 - p))).inv_cdf(min(max(u, 1e-9), 1 - 1e-9))
        return min(n, max(0, round(draw)))
    chance = total = (1 - p) ** n
    k = 0
    while total < u and k < n:
        chance *= (n - k) / (k + 1) * p / (1 - p)
        total += chance
        k += 1
    return k
