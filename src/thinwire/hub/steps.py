"""Updates that came together: read and applied in one go, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Codes, Compressor, Layout, Quantizer
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
        at, q = compressor.layout(spans), compressor.quantizer
        self._shape: BodyShape | None = None
        fixed = compressor.sparsifier.says_index and q.scales and q.coding == "fixed"
        if plain and fixed and spans.d < _LARGEST and (units := _units(q, at)) is not None:
            cut = at.counts, at.groups, at.domains, at.index_bytes
            self._shape = BodyShape(*cut, units, q.width, q.top, at.blocks)

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
        assert self._shape is not None
        bodies = [memoryview(frame)[HEADER:] for frame in frames]
        # Something must be there for torch to look at.
        data = torch.frombuffer(bytearray().join((*bodies, b"\0")), dtype=torch.uint8)[:-1]
        ends = torch.from_numpy(np.array([*accumulate(map(len, bodies))], np.int64))
        by = torch.from_numpy(np.array(divisors, np.float32))
        given = data, ends, self._shape, by, room, touched, version
        sizes: list[float] = kernels.active().subtract_bodies(x, *given).tolist()
        return sizes


def _units(q: Quantizer, at: Layout) -> Tensor | None:
    """Returns (c, 2) float64: what each scale of a block adds to its low and to its step."""
    none, rows = host.empty(0, torch.uint8), []
    for scale in torch.eye(q.scales):
        steps = q.steps(Codes(none, 0, q.width, scale.repeat(max(1, at.n_blocks), 1)), at)
        if steps is None:
            return None
        rows.append(torch.stack((steps.lows[0], steps.steps[0])))
    return torch.stack(rows)


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
