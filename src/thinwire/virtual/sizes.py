"""Sizes: how many bytes each frame of a model has, without the model.

Where an operator is `exact`, so is the size. Elsewhere it is what normal values come to: they are
drawn by key, compressed and packed, and the bytes counted, on at most two tensors of 2^20 entries;
a larger model is taken to be more of the same tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from thinwire import kernels
from thinwire.compress import Compressor
from thinwire.flat import Spans
from thinwire.keys import Key
from thinwire.wire.body import pack, pack_sparse
from thinwire.wire.frame import HEADER

TENSOR = 1 << 20
"""Entries of each tensor of a model too large to be laid out."""
LARGEST = 2 * TENSOR


class Sized(bytes):
    """A frame that has a length and no bytes.

    Example:
        >>> len(Sized(280_000_000_000))
        280000000000
    """

    def __new__(cls, n: int) -> Sized:
        frame = super().__new__(cls)
        frame.n = n
        return frame

    n: int

    def __len__(self) -> int:
        return self.n

    def __bool__(self) -> bool:
        return self.n > 0


@dataclass(frozen=True)
class Sizes:
    """The frames of one model.

    Args:
        compressor: what is said of it.
        model: its tensors, or d where there are too many entries to lay them out.

    Example:
        >>> from thinwire import QSGD
        >>> eight = QSGD(bits=8, norm="max", scale="none", bucket=1024, coding="fixed")
        >>> Sizes(eight, 70_000_000_000).whole
        70273437526
    """

    compressor: Compressor
    model: Spans | int

    @property
    def d(self) -> int:
        """Entries in all."""
        return self.model if isinstance(self.model, int) else self.model.d

    @property
    def exact(self) -> bool:
        """Whether each of these sizes is exact, not expected."""
        return self.compressor.exact

    @property
    def whole(self) -> int:
        """Bytes of a frame that says all of it."""
        return self.piece(0, self.d)

    def piece(self, low: int, high: int) -> int:
        """Returns the bytes of a frame that says the entries low:high."""
        if isinstance(self.model, Spans):
            return _frame(self.compressor, self.model.piece(low, high))
        return _frame_of(self.compressor, high - low)

    def reply(self, downlink: Compressor | None, N: int) -> int:
        """Returns the bytes of a master's reply to N workers: see `exchange.downlink`."""
        if downlink is not None:
            return 1 + Sizes(downlink, self.model).whole
        dense, bundle = 4 * self.d, N * (self.whole - HEADER)
        kept = self._kept / max(1, self.d)
        union = _union(1 - (1 - kept) ** N, self.d) if kept < 1 else dense
        return HEADER + 1 + min(dense, bundle, union)

    @property
    def _kept(self) -> int:
        d = min(self.d, TENSOR)
        model = self.model if isinstance(self.model, Spans) else Spans.of(d)
        kept = self.compressor.layout(model).kept
        return kept if isinstance(self.model, Spans) else kept * self.d // max(1, d)


@lru_cache(maxsize=1 << 16)
def _frame(compressor: Compressor, spans: Spans) -> int:
    if compressor.exact:
        # What a round may say in a message's place is not counted: it stops the run.
        return HEADER + compressor.nbytes(spans)
    key = Key(0)
    u = normal(spans.d, key)
    return HEADER + len(pack(compressor.compress(u, key, spans), compressor))


@lru_cache(maxsize=1 << 16)
def _frame_of(compressor: Compressor, n: int) -> int:
    if n <= TENSOR:
        return _frame(compressor, Spans.of(n))
    rest = n % TENSOR
    one, two = (_frame(compressor, _tensors(k, 0)) for k in (1, 2))
    first = _frame(compressor, _tensors(1, rest)) if rest else one
    return first + (n // TENSOR - 1) * (two - one)


@lru_cache(maxsize=256)
def _union(density: float, d: int) -> int:
    """Returns the bytes that say that part of d entries, each as a float32."""
    sample = min(d, LARGEST)
    words = kernels.active().words(sample, Key(1).words)
    index = (words < int(density * (1 << 32))).nonzero().view(-1)
    said = len(pack_sparse(index, torch.zeros(len(index)), sample))
    return said * d // max(1, sample)


def normal(n: int, key: Key) -> Tensor:
    """Returns (n,) float32 of the normal distribution, drawn by key."""
    words = kernels.active().words(n, key.words)
    uniform = (words.double() + 0.5) / (1 << 32)
    return (torch.erfinv(2 * uniform - 1) * math.sqrt(2)).float()


def _tensors(k: int, rest: int) -> Spans:
    sizes = [TENSOR] * k + [rest] * (rest > 0)
    return Spans(tuple(str(n) for n in range(len(sizes))), tuple((n,) for n in sizes))
