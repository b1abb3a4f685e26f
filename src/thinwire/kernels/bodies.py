"""What bodies of one layout hold; checked once, for all that are read by it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thinwire.kernels import checks
from thinwire.kernels.marked import Marked


@dataclass(frozen=True, eq=False)
class BodyShape:
    """An index section, scales, and packed codes: one for each index.

    Args:
        counts: (G,) int64.
        starts: (G + 1,) int64, at most 2**31.
        domains: (S + 1,) int64, as in `encode_index`.
        index_bytes: the most bytes of an index section, as `index_bytes_bound` says.
        units: (c, 2) float64: c scales a block, times this, are the value of its code 0 and the
            distance between its codes.
        width: bits per code, 1..16.
        top: the largest code there may be.
        blocks: (B + 1,) int64, where blocks of codes start.

    Raises:
        ValueError: they do not fit together.
    """

    counts: Tensor
    starts: Tensor
    domains: Tensor
    index_bytes: int
    units: Tensor
    width: int
    top: int
    blocks: Tensor

    def __post_init__(self) -> None:
        checks.check_counts(self.counts, self.starts)
        checks.check_domains(self.domains, self.starts)
        checks.check_width(self.width)
        checks.check_starts(self.blocks, self.n)
        c = self.units.shape[0] if self.units.dim() == 2 else 0
        if self.units.dtype != torch.float64 or c < 1 or self.units.shape != (c, 2):
            raise ValueError("units must be float64, a low and a step for each scale of a block")
        if self.d > 2**31:
            raise ValueError(f"indices into {self.d} entries are no int32")

    @cached_property
    def arrays(self) -> tuple[np.ndarray[Any, Any], ...]:
        """Counts, starts, domains, units and blocks, as NumPy sees them."""
        tensors = self.counts, self.starts, self.domains, self.units, self.blocks
        return tuple(t.contiguous().numpy() for t in tensors)

    @cached_property
    def d(self) -> int:
        """Entries of the vector."""
        return int(self.starts.numpy()[-1])

    @cached_property
    def n(self) -> int:
        """Entries that a body says."""
        return int(self.counts.sum())

    @cached_property
    def scale_bytes(self) -> int:
        """Bytes of the scales."""
        return 4 * len(self.units) * (self.blocks.numel() - 1)

    @cached_property
    def code_bytes(self) -> int:
        """Bytes of the packed codes."""
        return checks.packed_bytes(self.n, self.width)


def check_bodies(data: Tensor, ends: Tensor) -> None:
    """Raises ValueError unless bodies fill the data.

    Args:
        data: uint8.
        ends: (F,) int64, where each body ends.
    """
    checks.check_typed(data, torch.uint8)
    checks.check_typed(ends, torch.int64)
    places, last = [0, *ends.tolist()], data.numel()
    if places[-1] != last or any(low > high for low, high in pairwise(places)):
        raise ValueError(f"ends must ascend to {last}")


def check_steps(
    marked: Tensor | Marked, shape: BodyShape, divisors: Tensor, F: int, touched: Tensor | None
) -> None:
    """Raises ValueError unless F bodies of that shape can be taken away from x."""
    x = marked.x if isinstance(marked, Marked) else marked
    if isinstance(marked, Marked):
        check_marked(marked, marked.starts)
        if touched is not None:
            raise ValueError("a vector is marked, or told when an entry changed")
    if x.dtype != torch.float32 or not x.is_contiguous() or x.shape != (shape.d,):
        raise ValueError(f"bodies step through {shape.d} contiguous float32, not through this x")
    if touched is not None and not (
        touched.dtype == torch.int64 and touched.shape == x.shape and touched.is_contiguous()
    ):
        raise ValueError("touched must hold an int64 for each entry of x, contiguous")
    if divisors.dtype != torch.float32 or divisors.shape != (F,):
        raise ValueError(f"divisors must be float32, one for each of {F} bodies")


def check_marked(marked: Marked, starts: Tensor) -> None:
    """Raises ValueError unless this is a vector with marks for these groups."""
    checks.check_vector(marked.x, starts)
    if starts is not marked.starts and not np.array_equal(marked.starts.numpy(), starts.numpy()):
        raise ValueError("the marks are of other groups")
    words = (len(marked) + 63) // 64
    if marked.limits.numel() != starts.numel() - 1 or marked.marks.numel() != 8 * words:
        raise ValueError("the marks are those of another vector")
