"""Parameters <-> one flat float32 vector with named spans, one per tensor."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from thinwire import host


@dataclass(frozen=True)
class Spans:
    """The named pieces of a flat vector, one per tensor, in order.

    Args:
        names: one name per tensor.
        shapes: one shape per tensor.

    Example:
        >>> spans = Spans(("weight", "bias"), ((10, 784), (10,)))
        >>> spans.d, spans.starts.tolist()
        (7850, [0, 7840, 7850])
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(d: int) -> Spans:
        """Returns the spans of one plain vector of d entries."""
        return Spans(("vector",), ((d,),))

    @staticmethod
    def of_tensors(named: Sequence[tuple[str, Tensor]]) -> Spans:
        """Returns the spans of these named tensors laid end to end."""
        return Spans(tuple(n for n, _ in named), tuple(tuple(t.shape) for _, t in named))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def starts(self) -> Tensor:
        """(T + 1,) int64: tensor t is the slice starts[t]:starts[t + 1]."""
        return starts_of(host.ints(self.sizes))

    @cached_property
    def d(self) -> int:
        """Entries in all."""
        return sum(self.sizes)

    def piece(self, low: int, high: int) -> Spans:
        """Returns the spans of the slice low:high; tensors it cuts keep their names.

        Example:
            >>> Spans(("a", "b"), ((4,), (3,))).piece(2, 5)
            Spans(names=('a', 'b'), shapes=((2,), (1,)))
        """
        return _piece(self, low, high)

    @cached_property
    def _hash(self) -> int:
        return hash((self.names, self.shapes))

    def __hash__(self) -> int:
        return self._hash


@lru_cache(maxsize=4096)
def _piece(spans: Spans, low: int, high: int) -> Spans:
    starts = spans.starts.tolist()
    first = max(0, bisect_right(starts, low) - 1)
    names, shapes = [], []
    for t in range(first, len(spans.names)):
        a, b = max(low, starts[t]), min(high, starts[t + 1])
        if b > a:
            names.append(spans.names[t])
            shapes.append((b - a,))
        if starts[t + 1] >= high:
            break
    return Spans(tuple(names), tuple(shapes))


def starts_of(lengths: Tensor) -> Tensor:
    """Returns where pieces of these lengths start when laid end to end, and where the last ends.

    Args:
        lengths: (G,) int64.

    Returns:
        (G + 1,) int64, the first 0.

    Example:
        >>> starts_of(torch.tensor([3, 0, 2])).tolist()
        [0, 3, 3, 5]
    """
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=host.CPU)
    torch.cumsum(lengths, 0, out=starts[1:])
    return starts


def home(tensors: Sequence[Tensor]) -> torch.device:
    """Returns where a round over these tensors works: the CUDA device all share, or the CPU.

    Args:
        tensors: of any devices.
    """
    first, *more = {tensor.device for tensor in tensors} or {host.CPU}
    return first if first.type == "cuda" and not more else host.CPU


def read(
    tensors: Sequence[Tensor], out: Tensor | None = None, device: torch.device = host.CPU
) -> Tensor:
    """Returns the tensors laid end to end as one float32 vector on one device.

    Args:
        tensors: any shapes, floating dtypes, devices and strides.
        out: (d,) float32 to write into, or None for a new one on `device`.
        device: where the vector is made.

    Returns:
        (d,) float32.
    """
    d = sum(t.numel() for t in tensors)
    vector = host.empty(d, device=device) if out is None else out
    at = 0
    with torch.no_grad():
        for tensor in tensors:
            piece = vector[at : at + tensor.numel()]
            piece.view(tensor.shape).copy_(tensor)
            at += tensor.numel()
    return vector


def write(vector: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copies a flat vector into the tensors, each in its own dtype, on its own device.

    Args:
        vector: (d,) float32.
        tensors: d entries in all.
    """
    at = 0
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(vector[at : at + tensor.numel()].view(tensor.shape))
            at += tensor.numel()


@dataclass(frozen=True, eq=False)
class Difference:
    """anchor - tensors as `difference` has it, formed where it is sliced.

    Args:
        anchor: (d,) float32.
        tensors: d entries in all, laid end to end.

    Example:
        >>> Difference(torch.tensor([3.0, 1.0]), [torch.tensor([2.5]), torch.tensor([1.0])])[:1]
        tensor([0.5000])
    """

    anchor: Tensor
    tensors: Sequence[Tensor]

    def __getitem__(self, at: slice) -> Tensor:
        low, high, _ = at.indices(len(self.anchor))
        if high - low == len(self.anchor):
            return difference(self.anchor, self.tensors)
        return difference(self.anchor[at], list(_within(self._rows, low, high)))

    @cached_property
    def _rows(self) -> list[Tensor]:
        """Each tensor as one row: a copy, and only one, where it does not lie in memory so."""
        return [tensor.detach().reshape(-1) for tensor in self.tensors]


Vector = Tensor | Difference
"""(d,) float32, of which a slice is a vector of the caller's own or part of one."""
ALL = slice(None)


def _within(rows: Sequence[Tensor], low: int, high: int) -> Iterator[Tensor]:
    """Yields the entries low:high of these rows laid end to end."""
    start = 0
    for row in rows:
        a, b = max(low - start, 0), min(high - start, len(row))
        if a < b:
            yield row[a:b]
        start += len(row)


def difference(anchor: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Returns anchor - tensors: how far local steps have moved them, read where they lie.

    Tensors of another dtype than float32 began as the anchor rounded to it. That rounding is no
    progress: with h the rounded anchor, their difference is anchor - (anchor - (h - tensor)).

    Args:
        anchor: (d,) float32, on the device on which a round works.
        tensors: d entries in all, laid end to end; any floating dtypes, devices and strides.

    Returns:
        (d,) float32, a vector of its own.

    Example:
        >>> difference(torch.tensor([3.0, 1.0]), [torch.tensor([2.5]), torch.tensor([1.0])])
        tensor([0.5000, 0.0000])
    """
    vector = host.like(anchor)
    at = 0
    with torch.no_grad():
        for tensor in tensors:
            here = slice(at, at + tensor.numel())
            a, out = (v[here].view(tensor.shape) for v in (anchor, vector))
            values = tensor.to(anchor.device)
            if tensor.dtype != torch.float32:
                values = a - (a.to(tensor.dtype).float() - values.float())
            torch.sub(a, values, out=out)
            at += tensor.numel()
    return vector
