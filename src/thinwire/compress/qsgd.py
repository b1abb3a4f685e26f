"""QSGD: stochastic levels between 0 and the norm, with a sign."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from thinwire import kernels
from thinwire.compress.base import ROUNDING
from thinwire.compress.halves import Quantizer
from thinwire.compress.layout import SCALES, Coding, Layout, Scope
from thinwire.compress.payload import Codes, Steps
from thinwire.errors import ConfigError
from thinwire.keys import Key
from thinwire.value import one_of, whole


@dataclass(frozen=True, repr=False)
class QSGD(Quantizer):
    """Rounds each value at random to one of s levels of its block's norm, keeping the sign.

    Q(v)_i = norm sign(v_i) xi_i / s, xi_i = floor(s |v_i| / norm), or one more with the
    fraction's probability. With scale "none" unbiased, E||Q(v) - v||^2 <= beta ||v||^2 with
    beta = min(n/s^2, sqrt(n)/s) for the l2 norm, min(n/4s^2, sqrt(n)/2s) for the max norm.
    Contraction 1 - beta; with scale "beta" or "fit", 1/(1 + beta). Bytes: at most
    ceil(log2(2s + 1)) bits an entry, close to the codes' entropy, and 4 bytes a block.

    Args:
        levels: s, the levels above zero.
        bits: or the width of a code: s = 2^(bits - 1) - 1.
        norm: "l2" or "max".
        scale: "fit" sends <v,Q>/||Q||^2 in the scale's place, the least-squares choice; "beta"
            divides by 1 + beta, as the paper does; "none" leaves Q unbiased.
        scope: "tensor" or "global", when it stands alone.
        bucket: entries that share a norm; None for the whole group.
        coding: "smallest" takes an entropy-coded stream where it is shorter, "fixed" never.

    Raises:
        ConfigError: neither or both of levels and bits, or one out of range.

    Example:
        >>> QSGD(bits=4).s, QSGD(bits=4).width, QSGD(levels=1).width
        (7, 4, 2)
        >>> QSGD(bits=2).biased, QSGD(bits=2, scale="none").biased
        (True, False)

    Source: Qsparse-local-SGD (arXiv 1906.02367), Q_s; QSGD (arXiv 1610.02132).
    Differs: "fit" and the max norm are ours; both facts above were derived and are tested.
    """

    levels: int | None = None
    bits: int | None = None
    norm: Literal["l2", "max"] = "l2"
    scale: Literal["fit", "beta", "none"] = "fit"
    scope: Scope = "tensor"
    bucket: int | None = None
    coding: Coding = "smallest"

    def __post_init__(self) -> None:
        self.check_cut()
        if (self.levels is None) == (self.bits is None):
            raise ConfigError(
                "QSGD: give levels (s) or bits (the width of a code), one of the two; "
                f"got levels={self.levels!r}, bits={self.bits!r}"
            )
        if self.levels is not None:
            whole(self, "levels", self.levels, 1, 32767)
        if self.bits is not None:
            whole(self, "bits", self.bits, 2, 16)
        one_of(self, "norm", self.norm, ("l2", "max"))
        one_of(self, "scale", self.scale, SCALES)

    @property
    def s(self) -> int:
        """Levels above zero."""
        return self.levels if self.levels is not None else (1 << ((self.bits or 2) - 1)) - 1

    @property
    def top(self) -> int:
        return 2 * self.s

    @property
    def width(self) -> int:
        return (2 * self.s).bit_length()

    @property
    def rounds_biased(self) -> bool:
        return self.scale != "none"

    def beta(self, n: int) -> float:
        """Returns beta with E||Q(v) - v||^2 <= beta ||v||^2 on a block of n values."""
        s = self.s
        if self.norm == "l2":
            return min(n / s**2, math.sqrt(n) / s)
        return min(n / (4 * s**2), math.sqrt(n) / (2 * s))

    def shrinks_block(self, n: int) -> float:
        return self.scaled(self.scale, self.beta(n))

    def encode(self, v: Tensor, at: Layout, key: Key) -> Codes:
        table = kernels.active(v.device)
        norms = table.norms(v, at.blocks, self.norm)
        packed = table.quantize(v, at.blocks, norms, self.s, key.draw(ROUNDING).words)
        units = norms / self.s
        if self.scale == "fit":
            whole = Steps.around_zero(at.blocks, torch.ones_like(norms), self.s)
            units = table.fit(v, packed, self.width, whole.blocks, whole.lows, whole.steps)
        elif self.scale == "beta":
            units = norms / (self.s * (1 + at.per_block(self.beta)))
        return Codes(packed, at.kept, self.width, units.unsqueeze(1))

    def steps(self, codes: Codes, at: Layout) -> Steps:
        return Steps.around_zero(at.blocks, codes.scales[:, 0], self.s)
