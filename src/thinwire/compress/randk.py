"""RandK: k entries chosen at random by a key that all ranks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thinwire import host, kernels
from thinwire.compress.base import SELECTION
from thinwire.compress.halves import Quantizer, Sparsifier
from thinwire.compress.kept import check_kept, kept_of
from thinwire.compress.layout import Layout, Scope
from thinwire.keys import Key


@dataclass(frozen=True, repr=False)
class RandK(Sparsifier):
    """Keeps k entries of each group, the same random ones on every rank; no index is sent.

    C(u)_i = u_i on the support, else 0. Biased, contraction k/d; with `rescale`, d/k u_i:
    unbiased, and no contraction unless d < 2k. Bytes: exactly 4 an entry.

    Args:
        k: kept entries of each group, min(d_t, k) of a smaller one.
        density: the kept fraction instead: round(density d_t), at least 1.
        scope: "tensor", "chunk" (of `chunk` entries inside a tensor) or "global".
        chunk: entries of a chunk.
        rescale: whether values are multiplied by d/k, which makes the message unbiased.

    Raises:
        ConfigError: neither or both of k and density, or one out of range.

    Example:
        >>> from thinwire import Key
        >>> import torch
        >>> C = RandK(density=0.5)
        >>> int(C.decompress(C.compress(torch.ones(8), Key(0, rank=1))).sum())
        4

    Source: Qsparse-local-SGD (arXiv 1906.02367), Rand_k.
    Differs: the paper's workers draw apart; a shared draw costs no index bytes, and payloads add.
    """

    says_index: ClassVar[bool] = False
    k: int | None = None
    density: float | None = None
    scope: Scope = "tensor"
    chunk: int = 4096
    rescale: bool = False

    def __post_init__(self) -> None:
        check_kept(self, self.k, self.density, self.scope, self.chunk)

    @property
    def drops_biased(self) -> bool:
        return not self.rescale

    def count(self, length: int, width: int) -> int:
        # Without index bytes a sparse group is never larger than a dense one.
        return kept_of(length, self.k, self.density, None)

    def select(self, u: Tensor, at: Layout, key: Key) -> Tensor:
        words = key.shared().draw(SELECTION).words
        return kernels.active(u.device).randk(at.groups, at.counts, words)

    def shrinks_group(self, kept: int, length: int, quantizer: Quantizer) -> float:
        if not self.rescale:
            return super().shrinks_group(kept, length, quantizer)
        # E||C||^2 = r (1 + beta) ||u||^2 and E<u, C> = ||u||^2 with r = length/kept, Q unbiased.
        r, shrinks = length / kept, quantizer.shrinks(kept)
        if not quantizer.rounds_biased:
            return 2 - r * (2 - shrinks)
        return max(0.0, 2 - r) * max(0.0, shrinks)

    def weigh(self, v: Tensor, at: Layout) -> Tensor:
        if not self.rescale:
            return v
        factors = (at.groups.diff().double() / at.counts.clamp(min=1).double()).float()
        return v * host.send(factors, v.device).repeat_interleave(host.send(at.counts, v.device))
