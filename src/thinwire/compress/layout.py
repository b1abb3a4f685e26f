"""What a message's settings and the model's shape decide before a single value is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.flat import Spans, starts_of

Scope = Literal["tensor", "chunk", "global"]
SCOPES: tuple[Scope, ...] = ("tensor", "chunk", "global")
SCALES = ("fit", "beta", "none")
Coding = Literal["smallest", "fixed"]
CODINGS: tuple[Coding, ...] = ("smallest", "fixed")


@dataclass(frozen=True, eq=False)
class Layout:
    """How one kind of message is cut: groups, kept counts, blocks that share a scale.

    Args:
        spans: the tensors.
        groups: (G + 1,) int64, where each group of the sparsifier starts in the vector.
        counts: (G,) int64, entries kept of each group.
        domains: (S + 1,) int64, where each run that is index-coded together starts.
        domain_counts: (S,) int64, entries kept of each domain.
        blocks: (B + 1,) int64, where each block that shares a scale starts in the kept vector.
        codes: (B + 1,) int64, the same in the code vector (longer where a rotation pads).
    """

    spans: Spans
    groups: Tensor
    counts: Tensor
    domains: Tensor
    domain_counts: Tensor
    blocks: Tensor
    codes: Tensor

    @property
    def d(self) -> int:
        """Entries of the vector."""
        return self.spans.d

    @property
    def kept(self) -> int:
        """Entries that are said."""
        return int(self.blocks[-1])

    @property
    def n_blocks(self) -> int:
        """Blocks that share a scale."""
        return len(self.blocks) - 1

    @property
    def n_codes(self) -> int:
        """Codes that are said."""
        return int(self.codes[-1])

    @cached_property
    def index_bytes(self) -> int:
        """The most bytes that say which entries are kept."""
        return kernels.index_bytes_bound(self.counts, self.groups, self.domains)

    def per_block(self, fact: Callable[[int], float]) -> Tensor:
        """Returns a fact of each block's length, (B,) float32."""
        lengths = self.blocks.diff().tolist()
        memo = {n: fact(n) for n in set(lengths)}
        return host.floats([memo[n] for n in lengths])


def cut(spans: Spans, scope: Scope, chunk: int) -> Tensor:
    """Returns where each group starts: a tensor, a chunk of a tensor, or the whole vector.

    Args:
        spans: the tensors.
        scope: "tensor", "chunk" or "global".
        chunk: entries of a chunk; the last of a tensor is shorter. Chunks never cross tensors.

    Returns:
        (G + 1,) int64.

    Example:
        >>> cut(Spans(("a", "b"), ((5,), (2,))), "chunk", 3).tolist()
        [0, 3, 5, 7]
    """
    if scope == "tensor":
        return spans.starts
    if scope == "global":
        return host.ints([0, spans.d])
    return starts_of(host.ints(pieces(spans.sizes, chunk)))


def pieces(lengths: Sequence[int], size: int) -> list[int]:
    """Returns the lengths of the pieces of at most `size` that each length is cut into."""
    return [min(size, n - at) for n in lengths for at in range(0, n, size)]


def sums_within(counts: Tensor, groups: Tensor, domains: Tensor) -> Tensor:
    """Returns for each domain the sum of the counts of the groups inside it."""
    upto = starts_of(counts)
    at = torch.searchsorted(groups, domains, right=True) - 1
    return upto[at].diff()
