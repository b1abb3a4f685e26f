"""Levels: uniform stochastic levels between the least and the greatest value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress.base import ROUNDING
from thinwire.compress.halves import Quantizer
from thinwire.compress.layout import SCALES, Coding, Layout, Scope
from thinwire.compress.payload import Codes, Steps
from thinwire.keys import Key
from thinwire.value import one_of, whole


@dataclass(frozen=True, repr=False)
class Levels(Quantizer):
    """Rounds each value at random to one of s + 1 even steps from its block's least to greatest.

    Q(v)_i = lo + (hi - lo) xi_i / s, xi_i the stochastic rounding of s (v_i - lo) / (hi - lo).
    With scale "none" unbiased, beta = n/(2 s^2). Contraction 1 - beta; scaled, 1/(1 + beta).
    Bytes: at most ceil(log2(s + 1)) bits an entry, and 8 bytes a block.

    Args:
        levels: s, the steps from least to greatest.
        scale: "fit", "beta" or "none", as in `QSGD`; the factor multiplies both scales.
        scope: "tensor" or "global", when it stands alone.
        bucket: entries that share a range; None for the whole group.
        coding: "smallest" or "fixed", as in `QSGD`.

    Example:
        >>> import torch
        >>> from thinwire import Key
        >>> C = Levels(levels=2, scale="none")
        >>> C.decompress(C.compress(torch.tensor([-1., 0., 1.]), Key(0))).tolist()
        [-1.0, 0.0, 1.0]

    Source: Qsparse-local-SGD (arXiv 1906.02367), stochastic s-level quantization.
    Differs: the fitted scale is ours.
    """

    scales: ClassVar[int] = 2
    levels: int = 15
    scale: Literal["fit", "beta", "none"] = "fit"
    scope: Scope = "tensor"
    bucket: int | None = None
    coding: Coding = "smallest"

    def __post_init__(self) -> None:
        self.check_cut()
        whole(self, "levels", self.levels, 1, 65535)
        one_of(self, "scale", self.scale, SCALES)

    @property
    def top(self) -> int:
        return self.levels

    @property
    def width(self) -> int:
        return self.levels.bit_length()

    @property
    def rounds_biased(self) -> bool:
        return self.scale != "none"

    def beta(self, n: int) -> float:
        """Returns beta with E||Q(v) - v||^2 <= beta ||v||^2 on a block of n values."""
        return n / (2 * self.levels**2)

    def shrinks_block(self, n: int) -> float:
        return self.scaled(self.scale, self.beta(n))

    def encode(self, v: Tensor, at: Layout, key: Key) -> Codes:
        return encode_levels(v, at.blocks, self.levels, self.scale, at.per_block(self.beta), key)

    def steps(self, codes: Codes, at: Layout) -> Steps:
        return steps_of(codes.scales, at.blocks)


def encode_levels(
    v: Tensor, blocks: Tensor, levels: int, scale: str, beta: Tensor, key: Key
) -> Codes:
    """Returns the stochastic s-level codes of v, with scales (lo, step) a block.

    Args:
        v: (n,) float32.
        blocks: (B + 1,) int64, where each block starts.
        levels: s.
        scale: "fit", "beta" or "none".
        beta: (B,) float32, the variance bound of each block.
        key: names the rounding.
    """
    table, width = kernels.active(v.device), levels.bit_length()
    lo, hi = table.extrema(v, blocks)
    # In float64, since hi - lo can exceed float32 where neither end does.
    step = ((hi.double() - lo.double()) / levels).clamp(max=host.LARGEST).float()
    packed = table.quantize_levels(v, blocks, lo, step, levels, key.draw(ROUNDING).words)
    scales = torch.stack([lo, step], 1)
    if scale == "fit":
        at = steps_of(scales, blocks)
        scales *= table.fit(v, packed, width, at.blocks, at.lows, at.steps).unsqueeze(1)
    elif scale == "beta":
        scales *= (1 / (1 + beta)).unsqueeze(1)
    return Codes(packed, len(v), width, scales)


def steps_of(scales: Tensor, blocks: Tensor) -> Steps:
    """Returns what codes with the scales (lo, step) stand for.

    Args:
        scales: (B, 2) float32.
        blocks: (B + 1,) int64.
    """
    lo, step = scales.double().unbind(1)
    return Steps(blocks, lo.contiguous(), step.contiguous())
