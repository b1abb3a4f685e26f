"""TwoLevel: two bits an entry, its sign and one of two magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from thinwire import kernels
from thinwire.compress.halves import Quantizer
from thinwire.compress.layout import Coding, Layout, Scope
from thinwire.compress.payload import Codes
from thinwire.keys import Key


@dataclass(frozen=True, repr=False)
class TwoLevel(Quantizer):
    """Says each value as its sign, times the smaller or the larger of its block's two magnitudes.

    Q(v)_i = a sign(v_i) where |v_i| <= t, else b sign(v_i), sign(0) = +1; a and b are the means of
    the magnitudes up to t and above it, and t = (a + b)/2 is found by Lloyd's iteration. Biased.
    Contraction (n_a a^2 + n_b b^2) / ||v||^2: at least Sign's ||v||_1^2 / (n ||v||^2), since the
    square is convex; and at least 1/max(1, n - 1), since a part of p values has at least 1/p of
    its square sum and neither part is empty unless all magnitudes are equal, which costs nothing.
    Bytes: at most two bits an entry, and 8 bytes a block.

    Args:
        scope: "tensor" or "global", when it stands alone.
        bucket: entries that share both magnitudes; None for the whole group.
        coding: "smallest" or "fixed", as in `QSGD`.

    Example:
        >>> from thinwire import Key
        >>> C = TwoLevel()
        >>> C.decompress(C.compress(torch.tensor([1., -2., 9., 0.]), Key(0))).tolist()
        [1.0, -1.0, 9.0, 1.0]

    Source: Lloyd, Least squares quantization in PCM (1982), of the magnitudes; the signs as in
    Qsparse-local-SGD (arXiv 1906.02367), Sign.
    """

    scales: ClassVar[int] = 2
    top: ClassVar[int] = 3
    width: ClassVar[int] = 2
    scope: Scope = "tensor"
    bucket: int | None = None
    coding: Coding = "smallest"

    def __post_init__(self) -> None:
        self.check_cut()

    @property
    def rounds_biased(self) -> bool:
        return True

    def shrinks_block(self, n: int) -> float:
        return 1 / max(1, n - 1)

    def encode(self, v: Tensor, at: Layout, key: Key) -> Codes:
        packed, magnitudes = kernels.active(v.device).two_levels(v, at.blocks)
        return Codes(packed, at.kept, self.width, magnitudes)

    def decode(self, values: Tensor | Codes, at: Layout, key: Key) -> Tensor:
        assert isinstance(values, Codes)
        # Adding 0 turns -0 into +0.
        books = torch.cat([-values.scales, values.scales], 1) + 0.0
        return kernels.active(values.packed.device).look_up(
            values.packed, self.width, at.blocks, books
        )
