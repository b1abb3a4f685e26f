"""Sign: one bit an entry and the mean magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thinwire import kernels
from thinwire.compress.halves import Quantizer
from thinwire.compress.layout import Coding, Layout, Scope
from thinwire.compress.payload import Codes, Steps
from thinwire.keys import Key


@dataclass(frozen=True, repr=False)
class Sign(Quantizer):
    """Says each value as its sign, times the mean magnitude of its block.

    Q(v) = (||v||_1 / n) sign(v), sign(0) = +1. Biased; contraction ||v||_1^2 / (n ||v||^2), at
    least 1/n; one bit an entry and 4 bytes a block. The 1-norm scale is also the fitted one.

    Args:
        scope: "tensor" or "global", when it stands alone.
        bucket: entries that share a scale; None for the whole group.

    Example:
        >>> import torch
        >>> from thinwire import Key
        >>> Sign().decompress(Sign().compress(torch.tensor([1., -3., 0.]), Key(0))).tolist()
        [1.3333333730697632, -1.3333333730697632, 1.3333333730697632]

    Source: Qsparse-local-SGD (arXiv 1906.02367), Sign and SignComp_k.
    """

    top: ClassVar[int] = 1
    width: ClassVar[int] = 1
    coding: ClassVar[Coding] = "fixed"  # type: ignore[misc]
    scope: Scope = "tensor"
    bucket: int | None = None

    def __post_init__(self) -> None:
        self.check_cut()

    @property
    def rounds_biased(self) -> bool:
        return True

    def shrinks_block(self, n: int) -> float:
        return 1 / n

    def encode(self, v: Tensor, at: Layout, key: Key) -> Codes:
        table = kernels.active(v.device)
        packed, sums = table.signs(v, at.blocks)
        units = sums / at.blocks.diff().clamp(min=1)
        return Codes(packed, at.kept, self.width, units.unsqueeze(1))

    def steps(self, codes: Codes, at: Layout) -> Steps:
        units = codes.scales[:, 0].double()
        return Steps(at.blocks, -units, 2 * units)
