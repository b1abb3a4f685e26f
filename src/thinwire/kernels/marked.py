"""Marked: a vector that changes entry by entry, and marks where its large entries may be."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from thinwire import host


@dataclass(frozen=True, eq=False)
class Marked:
    """x, a limit for each of its groups, and a mark on every entry that may reach its group's.

    An entry whose magnitude reaches the limit is marked; one that is marked need not reach it. So
    the largest entries of a group are found among the marked ones, as long as those that reach the
    limit are enough. Who changes x marks what it changes, or calls `forget`.

    Args:
        x: (d,) float32.
        starts: (G + 1,) int64, the groups.
        limits: (G,) float32; infinite where none is known.
        marks: uint8, a bit an entry, the lowest first; in whole words of 64.
    """

    x: Tensor
    starts: Tensor
    limits: Tensor
    marks: Tensor

    @staticmethod
    def over(x: Tensor, starts: Tensor) -> Marked:
        """Returns a vector of which nothing is known yet."""
        limits = torch.full((len(starts) - 1,), inf, device=host.CPU)
        marks = torch.zeros(8 * ((len(x) + 63) // 64), dtype=torch.uint8, device=host.CPU)
        return Marked(x, starts, limits, marks)

    def forget(self) -> None:
        """Says that x may have changed anywhere."""
        self.limits.fill_(inf)

    def __len__(self) -> int:
        return len(self.x)
