"""Bodies: payloads to bytes and back, sizes checked before anything is allocated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import Codes, Compressor, Payload
from thinwire.errors import FrameError
from thinwire.flat import Spans
from thinwire.host import Bytes
from thinwire.keys import Key

T = TypeVar("T")

VALUE = 4
"""Bytes of a value, and of a scale."""


class Reader:
    """Reads a body from front to back and refuses to read past its end.

    Args:
        body: the bytes.
        where: names the frame in errors.
    """

    def __init__(self, body: Bytes, where: str) -> None:
        self._view = memoryview(body)
        self._at = 0
        self.where = where

    @property
    def place(self) -> tuple[object, int]:
        """The object that holds the bytes, and how many of them are still to be read."""
        return self._view.obj, len(self)

    def __len__(self) -> int:
        return len(self._view) - self._at

    def take(self, n: int, what: str) -> memoryview:
        """Returns the next n bytes, which hold `what`."""
        if n > len(self):
            self.fail(f"{what} needs {n} bytes, {len(self)} are left")
        self._at += n
        return self._view[self._at - n : self._at]

    def floats(self, n: int, what: str) -> Tensor:
        """Returns the next n float32, each finite."""
        values = as_tensor(self.take(4 * n, what), VALUE).view(torch.float32)
        if kernels.active().first_nonfinite(values, host.ints([0, n])) >= 0:
            self.fail(f"{what} holds a NaN or an infinity")
        return values

    def index(self, counts: Tensor, groups: Tensor, domains: Tensor, most: int) -> Tensor:
        """Returns the next index section, at most `most` bytes long: (sum counts,) int64."""
        rest = as_tensor(self._view[self._at : self._at + most], VALUE)
        index, used, problem = kernels.active().decode_index(rest, counts, groups, domains)
        if index is None:
            self.fail(problem)
        self.take(used, "index section")
        return index

    def codes(self, n: int, width: int, top: int, what: str) -> Tensor:
        """Returns the next n codes of that width as they are packed, each at most `top`."""
        packed = as_tensor(self.take(kernels.packed_bytes(n, width), what), VALUE)
        largest = kernels.active().largest_code(packed, n, width)
        if largest < 0:
            self.fail(f"padding bits after the {what} are not zero")
        if largest > top:
            self.fail(f"code {largest} is above {top}")
        return packed

    def coded(self, n: int, width: int, top: int, what: str) -> Tensor:
        """Returns the next n codes, which one byte says to be entropy-coded or not, packed."""
        most = 1 + kernels.packed_bytes(n, width)
        rest = as_tensor(self._view[self._at : self._at + most], VALUE)
        packed, used, problem = kernels.active().decode_codes(rest, n, width, top)
        if packed is None:
            self.fail(problem)
        self.take(used, what)
        return packed

    def end(self) -> None:
        """Refuses bytes left over."""
        if len(self):
            self.fail(f"{len(self)} bytes are left over")

    def fail(self, problem: str) -> NoReturn:
        """Raises the FrameError of this frame."""
        raise FrameError(f"{self.where}: {problem}")


def as_tensor(data: Bytes, size: int = 8) -> Tensor:
    """Returns the bytes as (n,) uint8: those that may be written as they are, of others a copy.

    Args:
        data: the bytes.
        size: of the values that they will be viewed as.
    """
    if not len(data):
        return host.empty(0, torch.uint8)
    view = memoryview(data)
    if not view.readonly:
        # What came over a wire is this reader's own.
        tensor = torch.frombuffer(view, dtype=torch.uint8)
        if tensor.data_ptr() % size == 0:
            return tensor
    return torch.frombuffer(bytearray(view), dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> bytes:
    """Returns a copy of a tensor's bytes, little-endian."""
    return bytes(host.bytes_of(tensor))


def pack(payload: Payload, compressor: Compressor) -> bytes:
    """Returns the payload's body, its `in_pieces` end to end.

    Args:
        payload: what is said.
        compressor: the operator that made it.

    Example:
        >>> from thinwire import Sign, TopK
        >>> C = TopK(k=40) >> Sign()
        >>> body = pack(C.compress(torch.randn(7850), Key(0)), C)
        >>> len(body) <= C.nbytes(7850)
        True
    """
    return b"".join(in_pieces(payload, compressor))


def in_pieces(payload: Payload, compressor: Compressor) -> list[memoryview]:
    """Returns the payload's body in pieces: index section, scales, then values.

    They are the payload's own bytes, where it lies on the host; it must outlive them unchanged.

    Args:
        payload: what is said.
        compressor: the operator that made it.
    """
    at, sections = payload.layout, []
    if compressor.sparsifier.says_index:
        assert payload.index is not None
        index = host.bring(payload.index)
        index = kernels.active().encode_index(index, at.counts, at.groups, at.domains)
        sections.append(host.bytes_of(index))
    if isinstance(payload.values, Codes):
        codes = payload.values
        packed = host.bring(codes.packed)
        if compressor.quantizer.coding == "smallest":
            packed = kernels.active().encode_codes(packed, codes.n, codes.width)
        sections += [host.bytes_of(codes.scales), host.bytes_of(packed)]
    else:
        sections.append(host.bytes_of(payload.values))
    return sections


def unpack(
    reader: Reader, compressor: Compressor, spans: Spans, key: Key, device: torch.device = host.CPU
) -> Payload:
    """Returns the payload whose body the reader stands before, and moves the reader past it.

    All of it is checked on the host before any of it moves to the device.

    Args:
        reader: stands at the body's first byte.
        compressor: the operator that made it; both sides agreed on it.
        spans: the tensors.
        key: the speaker's key.
        device: where the payload will be added up.

    Raises:
        FrameError: the bytes are no such body.
    """
    asked = (compressor, spans, key, device)
    return once(reader, asked, lambda: _unpack(reader, *asked))


def once(
    reader: Reader, asked: object, read: Callable[[], T], copy: Callable[[T], T] = lambda x: x
) -> T:
    """Returns what is read from where the reader stands; within `decoded_once`, once for all.

    Args:
        reader: is moved past what is read.
        asked: all that the result depends on beside the bytes.
        read: reads it with the reader.
        copy: makes a worker's own of what another has read, where workers write to it.
    """
    known = _known.get()
    if known is None:
        return read()
    frame, left = reader.place
    found = known.get((id(frame), left))
    if found is not None and found.asked == asked:
        reader.take(found.used, "body")
        return copy(found.value)
    value = read()
    known[id(frame), left] = _Known(frame, asked, copy(value), left - len(reader))
    if len(known) > _MOST_KNOWN:
        known.popitem(last=False)
    return value


@contextmanager
def decoded_once() -> Iterator[None]:
    """Within it, a body that several workers of this process hear is decoded for the first alone.

    They must be handed the same object, as a simulation hands them.
    """
    token = _known.set(OrderedDict())
    try:
        yield
    finally:
        _known.reset(token)


@dataclass(frozen=True, eq=False)
class _Known:
    frame: object
    """Kept, so that no other object takes its id."""
    asked: object
    value: Any
    used: int


_MOST_KNOWN = 2048
_known: ContextVar[OrderedDict[tuple[int, int], _Known] | None] = ContextVar("known", default=None)


def _unpack(
    reader: Reader, compressor: Compressor, spans: Spans, key: Key, device: torch.device
) -> Payload:
    at = compressor.layout(spans)
    sparsifier, quantizer = compressor.sparsifier, compressor.quantizer
    if sparsifier.says_index:
        said = reader.index(at.counts, at.groups, at.domains, at.index_bytes)
        index: Tensor | None = host.send(said, device)
    else:
        index = sparsifier.select(host.empty(0, device=device), at, key)
    if quantizer.scales == 0:
        return Payload(at, index, host.send(reader.floats(at.kept, "values"), device), key)
    scales = reader.floats(quantizer.scales * at.n_blocks, "scales").view(-1, quantizer.scales)
    read = reader.coded if quantizer.coding == "smallest" else reader.codes
    packed = host.send(read(at.n_codes, quantizer.width, quantizer.top, "codes"), device)
    return Payload(at, index, Codes(packed, at.n_codes, quantizer.width, scales), key)


def pack_sparse(index: Tensor, values: Tensor, d: int) -> bytes:
    """Returns the body of a vector given by its nonzero entries: count, index section, float32.

    Args:
        index: (n,) int64 ascending.
        values: (n,) float32.
        d: entries of the vector.
    """
    counts, domain = host.ints([len(index)]), host.ints([0, d])
    section = kernels.active().encode_index(host.bring(index), counts, domain, None)
    return len(index).to_bytes(6, "little") + as_bytes(section) + as_bytes(values)


def unpack_sparse(reader: Reader, d: int, device: torch.device = host.CPU) -> Tensor:
    """Returns the vector that `pack_sparse` wrote, (d,) float32 on that device.

    Raises:
        FrameError: the bytes are no such body.
    """
    index, values = unpack_entries(reader, d)
    vector = host.zeros(d, device)
    vector[host.send(index, device)] = host.send(values, device)
    return vector


def unpack_entries(reader: Reader, d: int) -> tuple[Tensor, Tensor]:
    """Returns the entries that `pack_sparse` wrote: (n,) int64 ascending, (n,) float32.

    Raises:
        FrameError: the bytes are no such body.
    """
    n = int.from_bytes(reader.take(6, "count"), "little")
    if n > d or 4 * n > len(reader):
        reader.fail(f"{n} entries are announced; d is {d} and {len(reader)} bytes are left")
    counts, domain = host.ints([n]), host.ints([0, d])
    most = kernels.index_bytes_bound(counts, domain)
    index = reader.index(counts, domain, domain, most)
    return index, reader.floats(n, "values")
