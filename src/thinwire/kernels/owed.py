"""Owed: what a worker has not yet said, formed block by block wherever it is read."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Owed:
    """u = (anchor - params) + decay residual, never stored as a vector of its own.

    Args:
        anchor: (d,) float32.
        params: d entries in all, laid end to end: float32, bfloat16 or float16. In the last two,
            params began as the anchor rounded to their dtype, and that rounding is not owed.
        residual: (d,) float32, or None where nothing is left from before.
        decay: what is kept of the residual.
    """

    anchor: Tensor
    params: tuple[Tensor, ...]
    residual: Tensor | None = None
    decay: float = 1.0

    def __len__(self) -> int:
        return len(self.anchor)
