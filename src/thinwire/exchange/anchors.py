"""ANCHOR frames: a master's model for one worker, exactly, from what that worker holds."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from thinwire.wire.body import Reader, as_bytes, pack_sparse, unpack_entries
from thinwire.wire.frame import HEADER

_HEAD = struct.Struct("<QQBB")
HEAD = _HEAD.size


class Form(IntEnum):
    """How the model is said."""

    WHOLE = 0
    """d float32."""
    VALUES = 1
    """The new values of the entries that changed: count, index section, float32."""
    UPDATES = 2
    """The messages applied since, in their order, as they came."""
    STREAM = 3
    """The frames of the hub's one shared stream since, in their order."""
    RESIDUAL = 4
    """As much of what this one worker is owed as one message says."""


@dataclass(frozen=True)
class Head:
    """What every ANCHOR body begins with.

    Args:
        since: the version the worker must hold.
        version: the version it holds afterwards.
        taken: whether its own message was applied; if not, it still owes all of it.
        form: of what follows.
    """

    since: int
    version: int
    taken: bool
    form: Form

    def pack(self) -> bytes:
        """Returns the 18 bytes."""
        return _HEAD.pack(self.since, self.version, self.taken, self.form)

    @staticmethod
    def read(reader: Reader) -> Head:
        """Returns the head a reader stands before.

        Raises:
            FrameError: there is none, or it names no form.
        """
        since, version, taken, form = _HEAD.unpack(reader.take(HEAD, "versions and form"))
        if form not in tuple(Form) or taken > 1 or since > version:
            reader.fail(f"form {form}, taken {taken}, versions {since} to {version}: no such reply")
        return Head(since, version, bool(taken), Form(form))


def anchor_bound(d: int) -> int:
    """Returns the most bytes an ANCHOR frame can have: no form is larger than the whole model."""
    return HEADER + HEAD + 4 * d


def encode_values(x: Tensor, touched: Tensor, head: Head) -> bytes:
    """Returns the body that says x exactly: what was touched, or all where that is smaller.

    Args:
        x: (d,) float32, the model.
        touched: (n,) int64 ascending, at least the entries that changed since.
        head: of a reply whose form is decided here.
    """
    whole = 4 * len(x)
    if 4 * len(touched) < whole:
        sparse = pack_sparse(touched, x[touched], len(x))
        if len(sparse) < whole:
            return Head(head.since, head.version, head.taken, Form.VALUES).pack() + sparse
    return Head(head.since, head.version, head.taken, Form.WHOLE).pack() + as_bytes(x)


def decode_values(reader: Reader, form: Form, anchor: Tensor) -> Tensor:
    """Returns the model that a WHOLE or VALUES body says, (d,) float32.

    Args:
        reader: stands behind the head.
        form: WHOLE or VALUES.
        anchor: (d,) float32, what the worker holds.

    Raises:
        FrameError: the bytes are no such body.
    """
    if form is Form.WHOLE:
        return reader.floats(len(anchor), "model")
    index, values = unpack_entries(reader, len(anchor))
    return anchor.index_put((index,), values)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Returns which entries differ in their bits, (d,) bool."""
    return before.view(torch.int32) != after.view(torch.int32)
