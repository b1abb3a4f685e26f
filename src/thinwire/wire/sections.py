"""What a frame's bytes are spent on: header, index, scales, values."""

from __future__ import annotations

from thinwire import kernels
from thinwire.compress import Compressor
from thinwire.flat import Spans
from thinwire.host import Bytes
from thinwire.wire.body import Reader
from thinwire.wire.frame import HEADER

CLASSES = ("header", "index", "scale", "value")


def sections(frame: Bytes, compressor: Compressor, spans: Spans) -> dict[str, int]:
    """Returns how many bytes of a SAID frame are of each class; they add up to its length.

    Costs the decoding of its index section where values may be entropy-coded, and else nothing.

    Args:
        frame: as it was sent.
        compressor: the operator that made its payload.
        spans: the tensors that the payload is of.

    Raises:
        FrameError: it holds no such payload.

    Example:
        >>> import torch
        >>> from thinwire import Key, Sign, TopK
        >>> from thinwire.wire.body import pack
        >>> from thinwire.wire.frame import Address, Kind, seal
        >>> C, spans = TopK(k=40) >> Sign(), Spans.of(7850)
        >>> body = pack(C.compress(torch.randn(7850), Key(0)), C)
        >>> found = sections(seal(Kind.SAID, Address(0, 0, 0), body), C, spans)
        >>> found["header"], found["scale"], found["value"]
        (26, 4, 5)
    """
    at, quantizer = compressor.layout(spans), compressor.quantizer
    reader = Reader(memoryview(frame)[HEADER:], "frame")
    body, scale = len(reader), 4 * quantizer.scales * at.n_blocks
    if not compressor.sparsifier.says_index:
        index = 0
    elif quantizer.scales and quantizer.coding == "smallest":
        reader.index(at.counts, at.groups, at.domains, at.index_bytes)
        index = body - len(reader)
    else:
        packed = kernels.packed_bytes(at.n_codes, quantizer.width) if quantizer.scales else 0
        index = body - scale - (packed or 4 * at.kept)
    value = body - index - scale
    if min(index, value) < 0:
        reader.fail(f"{body} bytes hold no payload of {compressor!r}")
    return {"header": HEADER, "index": index, "scale": scale, "value": value}
