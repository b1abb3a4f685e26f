"""The master's reply: the exact mean in the fewest bytes, a compressed one, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from thinwire import host
from thinwire.compress import Compressor
from thinwire.exchange.base import Here
from thinwire.exchange.hear import check_finite, mean
from thinwire.exchange.refusal import REFUSAL_BODY, refusal
from thinwire.keys import Key
from thinwire.wire.body import Reader, as_bytes, once, pack, pack_sparse, unpack, unpack_sparse
from thinwire.wire.frame import HEADER, Kind

MASTER_PART = 1
"""The master's draws are told from its worker's by this part of the round's key."""


class Form(IntEnum):
    """How a reply says the mean: the first byte of its body."""

    DENSE = 0
    """d float32."""
    UNION = 1
    """The nonzero entries: count, index section, float32."""
    BUNDLE = 2
    """The workers' bodies as they came, in rank order; each folds them itself."""
    COMPRESSED = 3
    """A body of the downlink operator."""


def reply_bound(downlink: Compressor | None, here: Here) -> int:
    """Returns the most bytes a reply can have."""
    body = 4 * here.spans.d if downlink is None else downlink.nbytes(here.spans)
    return HEADER + max(1 + body, REFUSAL_BODY)


def encode_exact(direction: Tensor, bodies: Sequence[memoryview]) -> bytes:
    """Returns the body that says the mean exactly in the fewest bytes.

    Args:
        direction: (d,) float32, the mean.
        bodies: the workers' bodies it is the mean of, in rank order.
    """
    d, bundle = len(direction), sum(len(body) for body in bodies)
    fewest = min(4 * d, bundle)
    index = direction.nonzero().squeeze(1)
    if 4 * len(index) < fewest:
        union = pack_sparse(index, direction[index], d)
        if len(union) < fewest:
            return bytes([Form.UNION]) + union
    if bundle < 4 * d:
        return b"".join((bytes([Form.BUNDLE]), *bodies))
    return bytes([Form.DENSE]) + as_bytes(direction)


def encode_compressed(
    direction: Tensor, down: Tensor, downlink: Compressor, here: Here
) -> tuple[bytes, Tensor, Tensor]:
    """Returns (body, w, down'): v = direction + down, w = C'(v), down' = v - w.

    Raises:
        NonFiniteError: v or w holds a NaN or an infinity.
    """
    v = direction + down
    check_finite(v, here)
    payload = downlink.compress(v, master_key(here), here.spans)
    w = downlink.decompress(payload)
    check_finite(w, here)
    downlink.remove(v, payload)
    return bytes([Form.COMPRESSED]) + pack(payload, downlink), w, v


def decode_reply(kind: Kind, reader: Reader, downlink: Compressor | None, here: Here) -> Tensor:
    """Returns the direction a reply says, (d,) float32, the master's own bits.

    Raises:
        NonFiniteError, FrameError: the master refused the round; every rank raises the same.
    """
    if kind is Kind.REFUSAL:
        raise refusal(reader, here)
    # What the reply says depends on the workers' keys, too, which one key stands for.
    asked = (downlink, here.compressor, here.spans, here.key.shared(), here.N, here.device)
    direction = once(reader, asked, lambda: _direction(reader, downlink, here), torch.clone)
    reader.end()
    return direction


def _direction(reader: Reader, downlink: Compressor | None, here: Here) -> Tensor:
    form = reader.take(1, "form")[0]
    if (form == Form.COMPRESSED) != (downlink is not None) or form not in tuple(Form):
        reader.fail(f"reply form {form} does not fit downlink={downlink!r}")
    if downlink is not None:
        payload = unpack(reader, downlink, here.spans, master_key(here), here.device)
        direction = downlink.decompress(payload)
        check_finite(direction, here)
        return direction
    if form == Form.DENSE:
        return host.send(reader.floats(here.spans.d, "mean"), here.device)
    if form == Form.UNION:
        return unpack_sparse(reader, here.spans.d, here.device)
    return mean([reader] * here.N, here)


def master_key(here: Here) -> Key:
    """Returns the key of the master's own draws in this round."""
    return here.key.shared().of_part(MASTER_PART)
