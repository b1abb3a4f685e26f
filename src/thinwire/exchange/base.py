"""The contract of every exchange: who says what to whom, and what each then still owes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from thinwire import kernels
from thinwire.compress import Compressor
from thinwire.errors import ConfigError, NonFiniteError
from thinwire.flat import Spans
from thinwire.keys import Key
from thinwire.transport.base import Answer, Ask, Post, Take
from thinwire.value import Value, in_range, one_of
from thinwire.wire.body import Reader, pack, unpack
from thinwire.wire.frame import HEADER, Address, Kind, seal, unseal

Memory = dict[str, Tensor]
"""What an exchange must remember between rounds, by name."""

Talk = Generator[Ask, Answer, tuple[Tensor, Memory]]
"""A round's conversation: yields what it asks, returns (direction, memory)."""

ALARM_BODY = 4
ALL_RANKS = -1
"""The rank that a NonFiniteError names when only the sum over ranks is not finite."""


@dataclass(frozen=True)
class Here:
    """Where this worker stands in this round.

    Args:
        rank: this worker.
        N: workers in all.
        round: the round number.
        key: this worker's key of this round.
        compressor: the agreed operator C.
        spans: the agreed tensors.
        run: the agreed fingerprint of the run.
        part: which conversation of the round this is.
    """

    rank: int
    N: int
    round: int
    key: Key
    compressor: Compressor
    spans: Spans
    run: int
    part: int = 0

    def address(self, rank: int) -> Address:
        """Returns where a frame of that rank belongs."""
        return Address(self.run, self.round, rank, self.part)

    def seal(self, kind: Kind, body: bytes) -> bytes:
        """Returns this worker's frame of that body."""
        return seal(kind, self.address(self.rank), body)

    def key_of(self, rank: int) -> Key:
        """Returns the key under which that rank compressed its message."""
        return replace(self.key, rank=rank)

    def reader(self, body: memoryview, rank: int) -> Reader:
        """Returns a reader whose errors name that rank and this round."""
        return Reader(body, f"frame from rank {rank}, round {self.round}")


class Exchange(Value, ABC):
    """Turns each worker's pseudo-gradient into one direction, by posts and takes."""

    @abstractmethod
    def init(self, here: Here) -> Memory:
        """Returns the memory before the first round."""

    @abstractmethod
    def round(self, anchor: Tensor, delta: Tensor, mem: Memory, here: Here) -> Talk:
        """Says delta and returns the direction that all agree on, and the new memory.

        Args:
            anchor: (d,) float32, the parameters all hold since the last round.
            delta: (d,) float32, anchor - params.
            mem: what `init` or the last round returned.
            here: where this worker stands.

        Raises:
            NonFiniteError: some rank's message would hold a NaN or an infinity.
            FrameError: a frame was truncated, altered, foreign or stale.
        """

    @abstractmethod
    def check(self, compressor: Compressor, spans: Spans) -> None:
        """Raises a ConfigError unless this exchange can carry that operator over those tensors."""


@dataclass(frozen=True)
class Saying:
    """One worker's message of one round, said but not yet answered.

    Args:
        frame: the bytes: a SAID, or an ALARM where u is not finite.
        residual: u - said, what is still owed; None where feedback is off.
    """

    frame: bytes
    residual: Tensor | None


@dataclass(frozen=True, repr=False)
class Feedback(Value):
    """Error feedback: what was not said is remembered and said later.

    u = delta + decay m; m' = u - C(u). It needs a contraction; without feedback the operator must
    be unbiased, since nothing makes up for what it leaves out.

    Args:
        decay: what is kept of the residual from one round to the next; the rest is forgotten.
        permit: "any" lets the operator be no contraction: feedback may then diverge.

    Source: Qsparse-local-SGD (arXiv 1906.02367), Algorithm 1, lines 8 to 10.
    Differs: decay (SparseLoCo, arXiv 2508.15706); the paper's is 1.
    """

    decay: float = 1.0
    permit: Literal["contraction", "any"] = "contraction"

    def __post_init__(self) -> None:
        in_range(self, "decay", self.decay, 0.0, 1.0)
        one_of(self, "permit", self.permit, ("contraction", "any"))


@dataclass(frozen=True, repr=False)
class NoFeedback(Value):
    """No memory: what was not said is lost, so the operator must be unbiased.

    Args:
        permit: "biased" lets it be biased, as experiments on error feedback need.
    """

    permit: Literal["unbiased", "biased"] = "unbiased"

    def __post_init__(self) -> None:
        one_of(self, "permit", self.permit, ("unbiased", "biased"))


def check_feedback(
    feedback: Feedback | NoFeedback, compressor: Compressor, spans: Spans, whose: str
) -> None:
    """Raises a ConfigError where feedback and operator would drift or diverge together."""
    if isinstance(feedback, NoFeedback):
        if compressor.biased and feedback.permit == "unbiased":
            raise ConfigError(
                f"{whose}: {compressor!r} is biased and feedback is off, so what it leaves out is "
                "lost for good. Turn feedback on (Feedback()), choose an unbiased operator "
                "(scale='none', RandK(rescale=True)), or ask for it: NoFeedback(permit='biased')"
            )
    elif compressor.contraction(spans) <= 0 and feedback.permit == "contraction":
        raise ConfigError(
            f"{whose}: {compressor!r} is no contraction over these tensors, so its residual may "
            "grow without bound. Use scale='fit' or 'beta', more levels or a smaller bucket, turn "
            "feedback off (NoFeedback()), or ask for it: Feedback(permit='any')"
        )


def said_bound(here: Here) -> int:
    """Returns the most bytes a worker's frame can have."""
    return HEADER + max(ALARM_BODY, here.compressor.nbytes(here.spans))


def say(delta: Tensor, mem: Memory, here: Here, feedback: Feedback | NoFeedback) -> Saying:
    """Returns this worker's message: u = delta + m, say C(u), m = u - said.

    Args:
        delta: (d,) float32.
        mem: holds "residual" where feedback is on.
        here: where this worker stands.
        feedback: whether and how the residual is kept.
    """
    u = delta
    if isinstance(feedback, Feedback):
        u = torch.add(delta, mem["residual"], alpha=feedback.decay)
    broken = kernels.active().first_nonfinite(u, here.spans.starts)
    if broken >= 0:
        alarm = here.seal(Kind.ALARM, broken.to_bytes(ALARM_BODY, "little"))
        return Saying(alarm, None)
    C = here.compressor
    payload = C.compress(u, here.key, here.spans)
    frame = here.seal(Kind.SAID, pack(payload, C))
    if isinstance(feedback, NoFeedback):
        return Saying(frame, None)
    C.remove(u, payload)
    return Saying(frame, residual=u)


def hear(frames: list[bytes], here: Here) -> list[memoryview]:
    """Returns the bodies of all ranks' messages, in rank order.

    Args:
        frames: one of each rank, in rank order.
        here: where this worker stands.

    Raises:
        NonFiniteError: some raised an alarm; it names them all.
    """
    bodies: list[memoryview] = []
    alarms: list[tuple[int, str]] = []
    for rank, frame in enumerate(frames):
        kind, body = unseal(frame, here.address(rank), Kind.SAID, Kind.ALARM)
        if kind is Kind.ALARM:
            reader = here.reader(body, rank)
            tensor = int.from_bytes(reader.take(ALARM_BODY, "tensor number"), "little")
            alarms.append((rank, tensor_name(here, tensor)))
        bodies.append(body)
    if alarms:
        raise NonFiniteError(alarms, here.round)
    return bodies


def mean(readers: list[Reader], here: Here) -> Tensor:
    """Returns (sum of said, in rank order) / N, (d,) float32: folded first, divided once.

    Args:
        readers: stand before each rank's body, in rank order; one reader N times for a bundle.
        here: where this worker stands.

    Raises:
        NonFiniteError: finite messages sum to an infinity.
    """
    C, total = here.compressor, torch.zeros(here.spans.d)
    for rank, reader in enumerate(readers):
        C.accumulate(total, unpack(reader, C, here.spans, here.key_of(rank)))
    total /= here.N
    total += 0.0  # A quotient that underflows to -0 becomes +0, as a sparse reply says it.
    broken = kernels.active().first_nonfinite(total, here.spans.starts)
    if broken >= 0:
        raise NonFiniteError([(ALL_RANKS, tensor_name(here, broken))], here.round)
    return total


def heard(bodies: list[memoryview], here: Here) -> Tensor:
    """Returns the mean of these whole bodies, one of each rank, in rank order."""
    readers = [here.reader(body, rank) for rank, body in enumerate(bodies)]
    direction = mean(readers, here)
    for reader in readers:
        reader.end()
    return direction


def tensor_name(here: Here, tensor: int) -> str:
    """Returns that tensor's name, or its number where there is no such tensor."""
    names = here.spans.names
    return names[tensor] if tensor < len(names) else f"number {tensor}"


def to_all(frame: bytes, N: int, bound: int) -> tuple[Post, ...]:
    """Returns posts of one frame to every rank, the speaker among them."""
    return tuple(Post(rank, frame, bound) for rank in range(N))


def from_all(N: int, bound: int) -> tuple[Take, ...]:
    """Returns takes from every rank, in rank order."""
    return tuple(Take(rank, bound) for rank in range(N))
