"""What workers hold, as far as memory reaches; and the answers that make up for the rest."""

from __future__ import annotations

from torch import Tensor

from thinwire import kernels
from thinwire.exchange.hub import reply_key
from thinwire.exchange.hub_rules import PerWorker
from thinwire.flat import Spans
from thinwire.wire.body import pack


class Replicas:
    """Vectors y, one a worker: with x the model, x - y is owed.

    They are no part of the state. What is not held here is told whole, so that nothing depends on
    what a crash or the bound of memory has taken. Who is held stays so until it leaves: were the
    least recently answered dropped for others, workers in turn would all be dropped before their
    turn comes.

    Args:
        downlink: the rules.
        spans: the tensors.
        seed: of the run.
    """

    def __init__(self, downlink: PerWorker, spans: Spans, seed: int) -> None:
        self._C, self._spans, self._seed = downlink.compressor, spans, seed
        self.room = downlink.memory // (4 * spans.d)
        self._held: dict[int, tuple[int, Tensor]] = {}
        self._unheard: set[int] = set()

    def hold(self, number: int, version: int, x: Tensor) -> None:
        """Notes that a worker is told all of x, at that version."""
        if number in self._held:
            self._held[number] = version, self._held[number][1].copy_(x)
        elif len(self._held) < self.room:
            self._held[number] = version, x.clone()
        else:
            return
        self._unheard.add(number)

    def forget(self, number: int) -> None:
        """Notes that nobody knows what a worker holds; its place is free."""
        self._held.pop(number, None)
        self._unheard.discard(number)

    def back(self, number: int) -> None:
        """Notes that a worker comes back with a model of its own.

        One that has said nothing since it was told all may not be who was told then, but
        another process of its name.
        """
        if number in self._unheard:
            self.forget(number)

    def make_up(
        self, number: int, sequence: int, base: int, version: int, x: Tensor
    ) -> bytes | None:
        """Says C(x - y), by which y moves; None where the worker has to be told all of x.

        Args:
            number: of the worker.
            sequence: of its update that is answered.
            base: the version that it holds.
            version: of x.
            x: (d,) float32, the model.
        """
        held = self._held.get(number)
        if held is None or held[0] != base:
            return None
        C, y = self._C, held[1]
        payload = C.compress(x - y, reply_key(self._seed, sequence, number), self._spans)
        body = pack(payload, C)
        if len(body) >= 4 * len(x):
            return None
        C.accumulate(y, payload)
        if kernels.active().first_nonfinite(y, self._spans.starts) >= 0:
            return None
        self._held[number] = version, y
        self._unheard.discard(number)
        return body
