"""Updates that came together: decoded in one go, applied in one go, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

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

ALONE = -1
"""The row of a frame that is read by itself."""
_ROOM = 1 << 22
"""Entries that are decoded in one go."""
_LARGEST = 1 << 31


class Steps:
    """Decodes frames of one operator, if it is one whose bodies are read together.

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
        self.most = max(1, _ROOM // max(1, self._at.kept))
        self._tops: list[float] = []
        self._rows: list[int] = []
        self._divisors: list[float] = []

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

    @property
    def waiting(self) -> int:
        """Updates that are still to be applied."""
        return len(self._rows)

    def read(self, frames: Sequence[bytes]) -> None:
        """Decodes the bodies of at most `most` frames; nothing may be waiting.

        Of a frame's header nothing is looked at.
        """
        self._tops = [np.nan] * len(frames)
        q, table, shape, F = self._quantizer, kernels.active(), self._shape, len(frames)
        if shape is None:
            return
        bodies = [memoryview(frame)[HEADER:] for frame in frames]
        # Something must be there for torch to look at.
        data = torch.frombuffer(bytearray().join((*bodies, b"\0")), dtype=torch.uint8)[:-1]
        ends = torch.from_numpy(np.cumsum([len(body) for body in bodies], dtype=np.int64))
        fine, self._index, said, packed = table.read_bodies(data, ends, shape)
        wrong = ~fine.numpy()
        # What is not fine has scales of any kind.
        said.numpy()[wrong] = 0.0
        steps = q.steps(Codes(packed, shape.n, q.width, said.view(-1, q.scales)), self._at)
        assert steps is not None
        lows, widths = steps.lows.view(F, -1), steps.steps.view(F, -1)
        self._values, tops = table.decode_bodies(packed, shape, lows, widths)
        tops.numpy()[wrong] = np.nan
        self._tops = tops.numpy().tolist()

    def size(self, row: int) -> float | None:
        """Returns the largest magnitude that a frame says; None where it must be read alone."""
        top = inf if row == ALONE else self._tops[row]
        return top if isfinite(top) else None

    def wait(self, row: int, divisor: float) -> None:
        """Notes that what this frame says, divided, is to be taken away."""
        self._rows.append(row)
        self._divisors.append(divisor)

    def land(self, x: Tensor | Marked, touched: Tensor | None, version: int) -> None:
        """Takes away from x, in place, what waits, in order.

        Args:
            x: (d,) float32; marked where it has marks.
            touched: (d,) int64, is told when an entry last changed; or None.
            version: that the last of the steps leads to.
        """
        if self._rows:
            rows = torch.from_numpy(np.array(self._rows, np.int64))
            divisors = torch.from_numpy(np.array(self._divisors, np.float32))
            given = self._index, self._values, rows, divisors, touched
            kernels.active().subtract_bodies(x, *given, version - len(rows) + 1)
            self._rows, self._divisors = [], []


def divided(size: float, divisor: float) -> float:
    """Returns a magnitude divided as the step is: in float32."""
    return float(np.float32(size) / np.float32(divisor))


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
