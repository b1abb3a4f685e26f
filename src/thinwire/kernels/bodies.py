"""What bodies of one layout hold; checked once, for all that are read by it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from thinwire.kernels import checks


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
