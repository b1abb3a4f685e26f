"""Rotated: stochastic levels after a random rotation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from thinwire import kernels
from thinwire.compress.base import ROTATION
from thinwire.compress.halves import Quantizer, decoded
from thinwire.compress.layout import SCALES, Coding, Layout, Scope
from thinwire.compress.levels import encode_levels, steps_of
from thinwire.compress.payload import Codes
from thinwire.keys import Key
from thinwire.value import one_of, whole


@dataclass(frozen=True, repr=False)
class Rotated(Quantizer):
    """Rounds to even levels after a random Hadamard rotation, which evens out the magnitudes.

    Q(v) = R^T Levels_s(R v), R = H D / sqrt(P): D random signs that all ranks share, H Hadamard,
    P the block's length padded to a power of two. With scale "none" unbiased,
    beta = 2 log2(2n)/s^2. Bytes: at most ceil(log2(s + 1)) bits for each of P entries, 8 a block.

    Args:
        levels: s, the steps from least to greatest.
        scale: "fit", "beta" or "none", as in `QSGD`; fitted in the rotated frame.
        scope: "tensor" or "global", when it stands alone.
        bucket: entries that share a rotation; a power of two wastes no padding.
        coding: "smallest" or "fixed", as in `QSGD`.

    Example:
        >>> import torch
        >>> from thinwire import Key
        >>> C = Rotated(levels=255, scale="none")
        >>> v = torch.tensor([0., 0., 8., 0.])
        >>> bool((C.decompress(C.compress(v, Key(0))) - v).abs().max() < 0.1)
        True

    Source: Qsparse-local-SGD (arXiv 1906.02367), stochastic rotated quantization.
    Differs: buckets, and the fitted scale.
    """

    scales: ClassVar[int] = 2
    levels: int = 15
    scale: Literal["fit", "beta", "none"] = "fit"
    scope: Scope = "tensor"
    bucket: int | None = 1024
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
        return 2 * math.log2(2 * n) / self.levels**2 if n else 0.0

    def shrinks_block(self, n: int) -> float:
        return self.scaled(self.scale, self.beta(n))

    def padded(self, n: int) -> int:
        return 1 << (n - 1).bit_length() if n else 0

    def encode(self, v: Tensor, at: Layout, key: Key) -> Codes:
        rotated = kernels.active(v.device).hadamard(v, at.blocks, at.codes, self._signs(key), False)
        return encode_levels(
            rotated, at.codes, self.levels, self.scale, at.per_block(self.beta), key
        )

    def decode(self, values: Tensor | Codes, at: Layout, key: Key) -> Tensor:
        assert isinstance(values, Codes)
        rotated = decoded(values, steps_of(values.scales, at.codes))
        table = kernels.active(rotated.device)
        return table.hadamard(rotated, at.blocks, at.codes, self._signs(key), True)

    def _signs(self, key: Key) -> tuple[int, int]:
        return key.shared().draw(ROTATION).words
