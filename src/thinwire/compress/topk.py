"""TopK: the k entries of largest magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thinwire import kernels
from thinwire.compress.halves import Sparsifier
from thinwire.compress.kept import check_kept, kept_of
from thinwire.compress.layout import Layout, Scope
from thinwire.kernels import Marked, Owed
from thinwire.keys import Key


@dataclass(frozen=True, repr=False)
class TopK(Sparsifier):
    """Keeps the k entries of largest magnitude of each group, exactly, ties by lower index.

    C(u)_i = u_i if |u_i| is among the k largest, else 0. Biased; contraction k/d; bytes: the
    index code (at most ceil(log2 d) bits an entry) and 4 an entry.

    Args:
        k: kept entries of each group, min(d_t, k) of a smaller one.
        density: the kept fraction instead: round(density d_t), at least 1.
        scope: "tensor", "chunk" (of `chunk` entries inside a tensor) or "global".
        chunk: entries of a chunk.
        small_dense: whether a group goes dense where that is no more bytes.

    Raises:
        ConfigError: neither or both of k and density, or one out of range.

    Example:
        >>> import torch
        >>> from thinwire import Key
        >>> C = TopK(k=2)
        >>> C.decompress(C.compress(torch.tensor([1., -3., 2., 2.]), Key(0))).tolist()
        [0.0, -3.0, 2.0, 0.0]

    Source: Qsparse-local-SGD (arXiv 1906.02367), Top_k.
    Differs: the paper's gamma is the same k/d; `scope` and `small_dense` are ours.
    """

    sees_nonfinite: ClassVar[bool] = True
    by_marks: ClassVar[bool] = True
    k: int | None = None
    density: float | None = None
    scope: Scope = "tensor"
    chunk: int = 4096
    small_dense: bool = False

    def __post_init__(self) -> None:
        check_kept(self, self.k, self.density, self.scope, self.chunk)

    @property
    def drops_biased(self) -> bool:
        return True

    def count(self, length: int, width: int) -> int:
        return kept_of(length, self.k, self.density, width if self.small_dense else None)

    def select(self, u: Tensor, at: Layout, key: Key) -> Tensor:
        return kernels.active(u.device).topk(u, at.groups, at.counts)

    def take(self, u: Tensor | Owed | Marked, at: Layout, key: Key) -> tuple[Tensor | None, Tensor]:
        if isinstance(u, Marked):
            return kernels.active(u.x.device).pick_marked(u, at.groups, at.counts)
        if isinstance(u, Owed):
            return kernels.active(u.anchor.device).pick(u, at.groups, at.counts)
        return super().take(u, at, key)
