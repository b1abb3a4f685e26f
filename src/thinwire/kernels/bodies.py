"""What bodies of one layout hold; checked once, for all that are read by it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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
        scales: float32 of each body.
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
    scales: int
    width: int
    top: int
    blocks: Tensor

    def __post_init__(self) -> None:
        checks.check_counts(self.counts, self.starts)
        checks.check_domains(self.domains, self.starts)
        checks.check_width(self.width)
        checks.check_starts(self.blocks, self.n)
        if (n := int(self.starts.numpy()[-1])) > 2**31:
            raise ValueError(f"indices into {n} entries are no int32")

    @cached_property
    def n(self) -> int:
        """Entries that a body says."""
        return int(self.counts.sum())

    @cached_property
    def code_bytes(self) -> int:
        """Bytes of the packed codes."""
        return checks.packed_bytes(self.n, self.width)


def check_levels_of(packed: Tensor, shape: BodyShape, lows: Tensor, steps: Tensor) -> None:
    """Raises ValueError unless these are packed codes of several bodies, with lows and steps."""
    F, levels = len(packed), (len(packed), shape.blocks.numel() - 1)
    if packed.dtype != torch.uint8 or packed.shape != (F, shape.code_bytes):
        raise ValueError(f"{F} bodies of {shape.n} codes need {shape.code_bytes} bytes each")
    if not (lows.dtype == steps.dtype == torch.float64 and lows.shape == steps.shape == levels):
        raise ValueError("lows and steps must be float64, one for each block of each body")


def check_bodies(data: Tensor, ends: Tensor) -> None:
    """Raises ValueError unless bodies fill the data.

    Args:
        data: uint8.
        ends: (F,) int64, where each body ends.
    """
    checks.check_typed(data, torch.uint8)
    checks.check_typed(ends, torch.int64)
    at, last = ends.numpy(), data.numel()
    if (len(at) and (at[0] < 0 or (at[1:] < at[:-1]).any())) or (at[-1] if len(at) else 0) != last:
        raise ValueError(f"ends must ascend to {last}")


def check_rows(
    marked: Tensor | Marked,
    index: Tensor,
    values: Tensor,
    rows: Tensor,
    divisors: Tensor,
    touched: Tensor | None,
) -> None:
    """Raises unless these rows of values can be taken away from x in place.

    Raises:
        ValueError: when shapes or types differ, or x is not contiguous.
        IndexError: when an index lies outside x, or a row is not there.
    """
    x = marked.x if isinstance(marked, Marked) else marked
    if isinstance(marked, Marked):
        check_marked(marked, marked.starts)
        if touched is not None:
            raise ValueError("a vector is marked, or told when an entry changed")
    types = [t.dtype for t in (x, index, values, rows, divisors)]
    if types != [torch.float32, torch.int32, torch.float32, torch.int64, torch.float32]:
        raise ValueError(f"rows of values have other types than {types}")
    alike = index.shape == values.shape and rows.shape == divisors.shape
    if not (x.is_contiguous() and alike) or (touched is not None and touched.shape != x.shape):
        raise ValueError("rows of values do not fit together")
    checks.check_inside(rows, len(index))
    if len(rows) and index.numel():
        # Rows ascend: their ends say where all of them lie.
        places, which = index.numpy(), rows.numpy()
        if places[which, 0].min() < 0 or places[which, -1].max() >= x.numel():
            raise IndexError(f"index outside a vector of {x.numel()}")


def check_marked(marked: Marked, starts: Tensor) -> None:
    """Raises ValueError unless this is a vector with marks for these groups."""
    checks.check_vector(marked.x, starts)
    if not np.array_equal(marked.starts.numpy(), starts.numpy()):
        raise ValueError("the marks are of other groups")
    words = (marked.x.numel() + 63) // 64
    if marked.limits.numel() != starts.numel() - 1 or marked.marks.numel() != 8 * words:
        raise ValueError("the marks are those of another vector")
