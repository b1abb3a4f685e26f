"""Ternary: -1, 0 or +1 of the largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from thinwire.compress.halves import Quantizer
from thinwire.compress.layout import Coding, Layout, Scope
from thinwire.compress.payload import Codes, Steps
from thinwire.compress.qsgd import QSGD
from thinwire.keys import Key


@dataclass(frozen=True, repr=False)
class Ternary(Quantizer):
    """Says each value as -1, 0 or +1 times the largest magnitude of its block, at random.

    Q(v)_i = max|v| sign(v_i) b_i, b_i = 1 with probability |v_i| / max|v|. It is QSGD with one
    level and the max norm: with scale "none" unbiased, beta = min(n/4, sqrt(n)/2). At most two
    bits an entry, and 4 bytes a block.

    Args:
        scale: "fit", "beta" or "none", as in `QSGD`.
        scope: "tensor" or "global", when it stands alone.
        bucket: entries that share a scale; None for the whole group.
        coding: "smallest" or "fixed", as in `QSGD`.

    Example:
        >>> import torch
        >>> from thinwire import Key
        >>> C = Ternary(scale="none")
        >>> C.decompress(C.compress(torch.tensor([0., -2., 2.]), Key(0))).tolist()
        [0.0, -2.0, 2.0]

    Source: TernGrad (arXiv 1705.07878).
    Differs: no gradient clipping; a clip belongs in the training loop.
    """

    top: ClassVar[int] = 2
    width: ClassVar[int] = 2
    scale: Literal["fit", "beta", "none"] = "fit"
    scope: Scope = "tensor"
    bucket: int | None = None
    coding: Coding = "smallest"

    def __post_init__(self) -> None:
        self._qsgd()

    @property
    def rounds_biased(self) -> bool:
        return self.scale != "none"

    def shrinks_block(self, n: int) -> float:
        return self._qsgd().shrinks_block(n)

    def encode(self, v: Tensor, at: Layout, key: Key) -> Codes:
        return self._qsgd().encode(v, at, key)

    def steps(self, codes: Codes, at: Layout) -> Steps:
        return self._qsgd().steps(codes, at)

    def _qsgd(self) -> QSGD:
        cut = self.scale, self.scope, self.bucket, self.coding
        return QSGD(1, None, "max", *cut)
