"""AllReduce: plain dense averaging by the engine's own all-reduce, for vanilla training."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thinwire import kernels
from thinwire.compress import Compressor, Identity
from thinwire.errors import ConfigError, NonFiniteError
from thinwire.exchange.base import Exchange, Here, Memory, Talk, tensor_name
from thinwire.exchange.feedback import ALARM_BODY, first_broken
from thinwire.exchange.hear import ALL_RANKS, all_say
from thinwire.flat import Spans, Vector
from thinwire.host import Bytes
from thinwire.transport.base import Answer, Ask, Reduce
from thinwire.wire.frame import HEADER, Kind, unseal

FINE = (1 << 32) - 1


@dataclass(frozen=True, repr=False)
class AllReduce(Exchange):
    """Delegates the uncompressed mean to the engine's all-reduce, whose order is its own.

    direction = (sum over ranks of delta) / N. Replicas agree with each other, but not to the last
    bit with another engine: the order of summation is the engine's. No frame is made, so its
    bytes are reported apart, as the dense bytes handed over. With `Average()`, and float32
    parameters, what is averaged is the parameters themselves, which comes to the same but for
    rounding: see `lean.mean_round`.

    Price: what the engine's all-reduce costs; a ring sends 2 (N - 1)/N 4d bytes a rank.
    """

    sits_out: ClassVar[bool] = True

    def check(self, compressor: Compressor, spans: Spans) -> None:
        if compressor != Identity():
            raise ConfigError(
                f"AllReduce sums dense float32 and cannot carry {compressor!r}; "
                "use Server() or Gather(), or Identity()"
            )

    def init(self, here: Here) -> Memory:
        return {}

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        delta = delta[:]
        own = first_broken(None, delta, here)
        return (yield from self.mean(delta, here, lambda: own)), mem

    def mean(
        self, vector: Tensor, here: Here, own: Callable[[], int]
    ) -> Generator[Ask, Answer, Tensor]:
        """As a talk, returns (sum over ranks of vector) / N, in the vector's place.

        Args:
            vector: (d,) float32.
            here: where this worker stands.
            own: where the sum is not finite, returns this worker's first tensor that is not, or -1.

        Raises:
            NonFiniteError: the sum is not finite; on every rank.
        """
        total = yield Reduce(vector)
        assert isinstance(total, Tensor)
        starts = here.spans.starts
        if (overflow := kernels.active(here.device).divide(total, here.N, starts)) >= 0:
            # All ranks see it in the sum, so all come here and tell each other whose it is.
            broken = own()
            body = (broken if broken >= 0 else FINE).to_bytes(ALARM_BODY, "little")
            alarm, bound = here.seal(Kind.ALARM, body), HEADER + ALARM_BODY
            frames = yield from all_say(alarm, here.rank, here.N, bound)
            found = self._found(frames, here) or [(ALL_RANKS, tensor_name(here, overflow))]
            raise NonFiniteError(found, here.round)
        return total

    def _found(self, frames: list[Bytes], here: Here) -> list[tuple[int, str]]:
        found = []
        for rank, frame in enumerate(frames):
            _, body = unseal(frame, here.address(rank), Kind.ALARM)
            reader = here.reader(body, rank)
            tensor = int.from_bytes(reader.take(ALARM_BODY, "tensor number"), "little")
            reader.end()
            if tensor != FINE:
                found.append((rank, tensor_name(here, tensor)))
        return found
