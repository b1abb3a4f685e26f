"""The contract of every exchange: who says what to whom, and what each then still owes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire import host
from thinwire.compress import Compressor
from thinwire.flat import Spans, Vector
from thinwire.host import Bytes
from thinwire.keys import Key
from thinwire.schedule import HSchedule
from thinwire.transport.base import Answer, Ask
from thinwire.value import Value
from thinwire.wire.body import Reader
from thinwire.wire.frame import Address, Kind, laid_out

Memory = dict[str, Tensor]
"""What an exchange must remember between rounds, by name."""

Talk = Generator[Ask, Answer, tuple[Tensor, Memory]]
"""A round's conversation: yields what it asks, returns (direction, memory)."""


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
        H: the agreed local steps of a round.
        called: whether all ranks were called together, whatever their local steps.
        device: where this worker's vectors live.
    """

    rank: int
    N: int
    round: int
    key: Key
    compressor: Compressor
    spans: Spans
    run: int
    part: int = 0
    H: HSchedule = 1
    called: bool = False
    device: torch.device = host.CPU

    def zeros(self) -> Tensor:
        """Returns (d,) float32 zeros where this worker's vectors live."""
        return host.zeros(self.spans.d, self.device)

    def address(self, rank: int, part: int | None = None) -> Address:
        """Returns where a frame of that rank belongs, in this conversation or another part."""
        return Address(self.run, self.round, rank, self.part if part is None else part)

    def seal(self, kind: Kind, *body: Bytes) -> Bytes:
        """Returns this worker's frame of that body, which may come in pieces."""
        return laid_out(kind, self.address(self.rank), *body)

    def key_of(self, rank: int) -> Key:
        """Returns the key under which that rank compressed its message."""
        return replace(self.key, rank=rank)

    def reader(self, body: Bytes, rank: int) -> Reader:
        """Returns a reader whose errors name that rank and this round."""
        return Reader(body, f"frame from rank {rank}, round {self.round}")


class Exchange(Value, ABC):
    """Turns each worker's pseudo-gradient into one direction, by posts and takes.

    Attributes:
        replicates: whether all workers hold the same anchor after every round, to the last bit.
        on_device: whether its vectors may live on a CUDA device; else they live on the host.
        pace: when a rank speaks: "common", all in the same step; "own", each at gaps of its own
            that the others can compute; "free", whenever it likes.
        hands_anchor: whether what a round returns is the new anchor itself, since the outer step
            is made elsewhere.
        sits_out: whether a round can be held without some workers; see `Without`.
    """

    replicates: ClassVar[bool] = True
    on_device: ClassVar[bool] = True
    pace: ClassVar[Literal["common", "own", "free"]] = "common"
    hands_anchor: ClassVar[bool] = False
    sits_out: ClassVar[bool] = False

    @abstractmethod
    def init(self, here: Here) -> Memory:
        """Returns the memory before the first round."""

    @abstractmethod
    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        """Says delta and returns the direction that all agree on, and the new memory.

        Args:
            anchor: (d,) float32, the parameters all hold since the last round.
            delta: (d,) float32, anchor - params, formed where it is sliced; slices of it are the
                talk's own.
            mem: what `init` or the last round returned.
            here: where this worker stands.

        Raises:
            NonFiniteError: some rank's message would hold a NaN or an infinity.
            FrameError: a frame was truncated, altered, foreign or stale.
        """

    def attend(self, anchor: Tensor, mem: Memory, here: Here) -> Generator[Ask, Answer, Memory]:
        """Does what this rank owes the others after a local step at which it does not speak.

        Only ranks that speak at gaps of their own owe anything then; others are not asked.
        """
        yield from ()
        return mem

    def agreed(self, anchor: Tensor, mem: Memory) -> Tensor:
        """Returns the model that a rank answers for: a master's own, elsewhere the anchor."""
        return anchor

    def alike(self, anchor: Tensor, mem: Memory, here: Here) -> Memory:
        """Returns what other ranks must hold to the same bits after a round, by name."""
        return {"anchor": anchor} if self.replicates else {}

    def told(self, compressor: Compressor, spans: Spans, N: int, part: int) -> Spans | None:
        """Returns which tensors a frame of that part is a payload of; None where it is of bits."""
        return spans

    def notes(self, compressor: Compressor) -> list[str]:
        """Returns what this exchange decided by itself and a user should know."""
        return []

    @abstractmethod
    def check(self, compressor: Compressor, spans: Spans) -> None:
        """Raises a ConfigError unless this exchange can carry that operator over those tensors."""


def tensor_name(here: Here, tensor: int) -> str:
    """Returns that tensor's name, or its number where there is no such tensor."""
    names = here.spans.names
    return names[tensor] if tensor < len(names) else f"number {tensor}"
