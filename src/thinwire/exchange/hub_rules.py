"""What a hub counts by, how late it lets a message be, and how it says its model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from thinwire.compress import Compressor, Sign, TopK
from thinwire.errors import ConfigError
from thinwire.value import Value, in_range, of_kind, one_of, whole


class Counting(Value, ABC):
    """What an update is divided by: x = outer(x, said / divisor)."""

    @abstractmethod
    def divisor(self, weight: float, live: int, live_weight: float) -> float:
        """Returns the divisor of one update.

        Args:
            weight: of the worker that said it.
            live: workers that are live, it among them.
            live_weight: the sum of their weights.
        """


@dataclass(frozen=True, repr=False)
class FixedN(Counting):
    """Divides every update by N, whoever is there: Algorithm 2 as written.

    Args:
        N: workers in all.
    """

    N: int = 1

    def __post_init__(self) -> None:
        whole(self, "N", self.N, 1, 65535)

    def divisor(self, weight: float, live: int, live_weight: float) -> float:
        return float(self.N)


@dataclass(frozen=True, repr=False)
class LiveCount(Counting):
    """Divides by how many workers are live when the update comes."""

    def divisor(self, weight: float, live: int, live_weight: float) -> float:
        return float(max(1, live))


@dataclass(frozen=True, repr=False)
class ByWeight(Counting):
    """Counts a worker by its share of the live workers' weights, such as its images."""

    def divisor(self, weight: float, live: int, live_weight: float) -> float:
        return live_weight / weight


@dataclass(frozen=True, repr=False)
class Staleness(Value):
    """What is done with an update that was computed from an old model.

    An update's staleness is how many others were applied since the model it began from.

    Args:
        most: up to this staleness an update counts in full; None for any.
        policy: beyond it: "accept" in full; "scale" it by (1 + most) / (1 + staleness); "refuse",
            and then the worker keeps all of it in its residual and says it later.
    """

    most: int | None = None
    policy: Literal["accept", "scale", "refuse"] = "accept"

    def __post_init__(self) -> None:
        one_of(self, "policy", self.policy, ("accept", "scale", "refuse"))
        if self.most is not None:
            whole(self, "most", self.most, 0, 1 << 40)
        if (self.most is None) != (self.policy == "accept"):
            raise ConfigError(f"{self!r}: a bound needs a policy, and a policy needs a bound")

    def factor(self, staleness: int) -> float:
        """Returns what an update of that staleness counts; 0 where it is refused."""
        if self.most is None or staleness <= self.most:
            return 1.0
        return (1 + self.most) / (1 + staleness) if self.policy == "scale" else 0.0


@dataclass(frozen=True, repr=False)
class Exact(Value):
    """A worker ends with the hub's own bits: what others said, in order, or new values.

    The smallest of: the messages applied since, as they came (with the plain outer step); the new
    values of the entries that changed; the whole model. With N workers in turn a reply is N
    messages long.

    Args:
        memory: bytes of past messages that the hub keeps to repeat them.
    """

    memory: int = 1 << 26

    def __post_init__(self) -> None:
        whole(self, "memory", self.memory, 0, 1 << 44)

    @property
    def repeats(self) -> int:
        """Bytes of past messages that a hub keeps."""
        return self.memory


@dataclass(frozen=True, repr=False)
class Stream(Value):
    """One compressed stream that all workers share, with the hub's own residual.

    All workers at one version of the stream hold the same bits. One frame leaves the hub for
    every `every` updates, so a worker that speaks as often as the others hears one frame a round,
    however many they are.

    Args:
        compressor: of the stream's frames, with feedback.
        every: updates from one frame to the next; None for as many as there are live workers.
            With `Staleness(most, "refuse")` a frame leaves after most + 1 of them at the latest.
        memory: bytes of past frames that the hub keeps to repeat them; who missed more hears the
            whole model.
    """

    compressor: Compressor = field(default_factory=lambda: TopK(density=0.01) >> Sign())
    every: int | None = None
    memory: int = 1 << 26

    def __post_init__(self) -> None:
        of_kind(self, "compressor", self.compressor, Compressor)
        whole(self, "memory", self.memory, 0, 1 << 44)
        if self.every is not None:
            whole(self, "every", self.every, 1, 1 << 20)

    @property
    def repeats(self) -> int:
        """Bytes of past messages that a hub keeps."""
        return self.memory


@dataclass(frozen=True, repr=False)
class PerWorker(Value):
    """One compressed message a reply, with a residual for each worker.

    The hub keeps what each worker holds, y; a reply says C(x - y), x the hub's model, and y moves
    by it. So a reply makes up for all that a worker missed, in one message, however long it was
    away, where a `Stream` has it hear every frame. The price: d floats a worker, and a pass over
    d entries a reply.

    Args:
        compressor: of the replies, with feedback.
        memory: bytes of what workers hold. Who comes when they are taken hears the whole model
            each time, until another leaves. A restarted hub knows of none at first.
    """

    compressor: Compressor = field(default_factory=lambda: TopK(density=0.01) >> Sign())
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        of_kind(self, "compressor", self.compressor, Compressor)
        whole(self, "memory", self.memory, 0, 1 << 44)

    @property
    def repeats(self) -> int:
        """Bytes of past messages that a hub keeps."""
        return 0


Downlink = Exact | Stream | PerWorker
"""How a hub says its model to the workers."""


def check_weight(owner: object, weight: float) -> None:
    """Raises a ConfigError unless a worker may have that weight."""
    in_range(owner, "weight", weight, 1e-6, 1e12)
