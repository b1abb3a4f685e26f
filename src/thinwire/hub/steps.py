"""Updates that came together: read and applied in one go, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Codes, Compressor
from thinwire.exchange.anchors import changed
from thinwire.exchange.hub import is_plain, largest, subtract
from thinwire.flat import Spans
from thinwire.hub.reach import Reach
from thinwire.kernels import BodyShape, Marked
from thinwire.outer import Outer, OuterState
from thinwire.wire.frame import HEADER

_LARGEST = 1 << 31


class Steps:
    """Applies frames of one operator together, if it is one whose bodies are read so.

    Those name the entries that they say, each by a code of fixed width. Frames of other operators
    are left to be read one by one, and so is any that is not as it should be.

    Args:
        compressor: of the frames.
        spans: the tensors.
        plain: whether the hub's step is x - said / divisor.
    """

    def __init__(self, compressor: Compressor, spans: Spans, plain: bool) -> None:
        self._at, self._quantizer = compressor.layout(spans), compressor.quantizer
        cut = self._at.counts, self._at.groups, self._at.domains, self._at.index_bytes
        codes = self._quantizer.scales * self._at.n_blocks, self._quantizer.width
        self._shape: BodyShape | None = None
        if plain and self._has_steps(compressor) and spans.d < _LARGEST:
            self._shape = BodyShape(*cut, *codes, self._quantizer.top, self._at.blocks)

    def _has_steps(self, C: Compressor) -> bool:
        at, q = self._at, self._quantizer
        if not (C.sparsifier.says_index and q.scales and q.coding == "fixed"):
            return False
        none = Codes(host.empty(0, torch.uint8), 0, q.width, torch.ones(at.n_blocks, q.scales))
        return q.steps(none, at) is not None

    @property
    def covers(self) -> bool:
        """Whether bodies of the operator are read together."""
        return self._shape is not None

    def take(
        self,
        x: Tensor | Marked,
        frames: Sequence[bytes],
        divisors: Sequence[float],
        room: float,
        touched: Tensor | None,
        version: int,
    ) -> list[float]:
        """Takes what frames say, divided, away from x in place, up to the first that is not fine.

        Of a frame's header nothing is looked at.

        Args:
            x: (d,) float32; marked where it has marks.
            frames: of the operator, which is covered.
            divisors: what each is divided by.
            room: to what the largest magnitudes may add up.
            touched: (d,) int64, is told when an entry last changed; or None.
            version: that the first of them leads to.

        Returns:
            The largest magnitude of each that was taken.
        """
        q, table, shape, F = self._quantizer, kernels.active(), self._shape, len(frames)
        assert shape is not None
        bodies = [memoryview(frame)[HEADER:] for frame in frames]
        # Something must be there for torch to look at.
        data = torch.frombuffer(bytearray().join((*bodies, b"\0")), dtype=torch.uint8)[:-1]
        ends = torch.from_numpy(np.cumsum([len(body) for body in bodies], dtype=np.int64))
        said = table.read_scales(data, ends, shape)
        codes = Codes(host.empty(0, torch.uint8), 0, q.width, said.view(-1, q.scales))
        steps = q.steps(codes, self._at)
        assert steps is not None
        lows, widths = steps.lows.view(F, -1), steps.steps.view(F, -1)
        by = torch.from_numpy(np.array(divisors, np.float32))
        given = data, ends, shape, lows, widths, by, room, touched, version
        sizes: list[float] = table.subtract_bodies(x, *given).tolist()
        return sizes


def stepped(
    x: Tensor,
    index: Tensor | None,
    step: Tensor,
    outer: Outer,
    state: OuterState,
    reach: Reach,
) -> tuple[Tensor | None, OuterState] | None:
    """Moves x in place by one update that is read alone.

    Args:
        x: (d,) float32.
        index: (n,) int64, which entries it says, or None for all.
        step: (n,) float32, what it says, divided.
        outer: the hub's step.
        state: what that remembers.
        reach: of the model; a plain step has been counted there.

    Returns:
        Which entries may have changed, None for all, and the outer state; or None, and nothing has
        changed, where an entry would come to more than the reach may be.
    """
    if is_plain(outer):
        subtract(x, index, step)
        return index, state
    direction = host.zeros(len(x))
    subtract(direction, index, -step)
    # An outer step adds to what it is given, so what is owed can stand in the model's place.
    after, state = outer.step(x, direction, state)
    if not reach.comes_to(largest(after)):
        return None
    news = changed(x, after)
    x.copy_(after)
    return news, state
