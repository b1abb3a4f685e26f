"""AllReduce: plain dense averaging by the engine's own all-reduce, for vanilla training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thinwire import kernels
from thinwire.compress import Compressor, Identity
from thinwire.errors import ConfigError, NonFiniteError
from thinwire.exchange.base import Exchange, Here, Memory, Talk, tensor_name
from thinwire.exchange.feedback import ALARM_BODY
from thinwire.exchange.hear import ALL_RANKS, divisor, heard_from_all
from thinwire.flat import Spans
from thinwire.host import Bytes
from thinwire.transport.base import Reduce
from thinwire.wire.frame import HEADER, Kind, unseal

FINE = (1 << 32) - 1


@dataclass(frozen=True, repr=False)
class AllReduce(Exchange):
    """Delegates the uncompressed mean to the engine's all-reduce, whose order is its own.

    direction = (sum over ranks of delta) / N. Replicas agree with each other, but not to the last
    bit with another engine: the order of summation is the engine's. No frame is made, so its
    bytes are reported apart, as the dense bytes handed over.

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

    def round(self, anchor: Tensor, delta: Tensor, mem: Memory, here: Here) -> Talk:
        first_nonfinite = kernels.active(here.device).first_nonfinite
        own = first_nonfinite(delta, here.spans.starts)
        total = yield Reduce(delta)
        assert isinstance(total, Tensor)
        if first_nonfinite(total, here.spans.starts) >= 0:
            # All ranks see it in the sum, so all come here and tell each other whose it is.
            body = (own if own >= 0 else FINE).to_bytes(ALARM_BODY, "little")
            alarm, bound = here.seal(Kind.ALARM, body), HEADER + ALARM_BODY
            frames = yield from heard_from_all(alarm, here, bound)
            raise NonFiniteError(self._found(frames, total, here), here.round)
        total /= divisor(here.N, total)
        return total, mem

    def _found(self, frames: list[Bytes], total: Tensor, here: Here) -> list[tuple[int, str]]:
        found = []
        for rank, frame in enumerate(frames):
            _, body = unseal(frame, here.address(rank), Kind.ALARM)
            reader = here.reader(body, rank)
            tensor = int.from_bytes(reader.take(ALARM_BODY, "tensor number"), "little")
            reader.end()
            if tensor != FINE:
                found.append((rank, tensor_name(here, tensor)))
        overflow = kernels.active(here.device).first_nonfinite(total, here.spans.starts)
        return found or [(ALL_RANKS, tensor_name(here, overflow))]
