"""What is kept and what is said of a vector, as tensors; the wire packs it into bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thinwire import kernels
from thinwire.compress.layout import Layout
from thinwire.keys import Key


@dataclass(frozen=True, eq=False)
class Codes:
    """Quantized values: one small whole number an entry, and the scales of each block.

    Args:
        packed: the codes as the wire holds them, uint8.
        n: how many codes.
        width: bits of a code.
        scales: (B, c) float32, c scales a block, on the host.
    """

    packed: Tensor
    n: int
    width: int
    scales: Tensor

    @property
    def codes(self) -> Tensor:
        """The codes themselves, (n,) int32 in [0, 2**width)."""
        return kernels.active(self.packed.device).unpack(self.packed, self.n, self.width)


@dataclass(frozen=True, eq=False)
class Steps:
    """What codes stand for: float32(low + code step), one low and one step a block.

    Args:
        blocks: (B + 1,) int64, where each block starts.
        lows: (B,) float64.
        steps: (B,) float64.
    """

    blocks: Tensor
    lows: Tensor
    steps: Tensor

    @staticmethod
    def around_zero(blocks: Tensor, units: Tensor, offset: int) -> Steps:
        """Returns the steps of codes that mean (code - offset) unit.

        Args:
            blocks: (B + 1,) int64.
            units: (B,) float32.
            offset: the code of zero.
        """
        steps = units.double()
        return Steps(blocks, -offset * steps, steps)


@dataclass(frozen=True, eq=False)
class Payload:
    """What one worker says in one round, as tensors; the wire packs it into a frame's body.

    Args:
        layout: how the message is cut.
        index: (n,) int64 ascending positions in the flat vector, or None for every entry.
        values: (n,) float32, or `Codes`.
        key: the key it was compressed under.

    Index, values and codes live where the vector does; scales and the layout on the host.
    """

    layout: Layout
    index: Tensor | None
    values: Tensor | Codes
    key: Key

    @property
    def device(self) -> torch.device:
        """Where its vector lives."""
        return (self.values.packed if isinstance(self.values, Codes) else self.values).device


@dataclass(frozen=True, eq=False)
class Kept:
    """What a sparsifier keeps of a vector, before a quantizer says it.

    Args:
        layout: how the message is cut.
        index: (n,) int64 ascending positions in the flat vector, or None for every entry.
        values: (n,) float32, the vector there.
        key: the key of this message.
    """

    layout: Layout
    index: Tensor | None
    values: Tensor
    key: Key
