"""The kernels of `thinwire.kernels.reference` in Triton: same arguments, same bits.

What is as long as a vector stays on the vector's device: vectors, codes, indices. What there is
one of for each group is given and answered on the host. Index streams are bytes of a frame and
are coded on the host, as streams of codes are; they are the `cpu` table's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from thinwire.kernels import cpu
from thinwire.kernels.by_way_of_host import wrapped
from thinwire.kernels.cpu import decode_codes, decode_index, encode_codes, encode_index
from thinwire.kernels.gpu_codes import largest_code, pack, unpack
from thinwire.kernels.gpu_decode import accumulate, accumulate_codes, decode, fit
from thinwire.kernels.gpu_measure import divide, extrema, first_nonfinite, norms
from thinwire.kernels.gpu_quantize import quantize, quantize_levels, signs
from thinwire.kernels.gpu_rotate import hadamard
from thinwire.kernels.gpu_select import gather, randk, topk
from thinwire.kernels.gpu_support import check_version, interpreted
from thinwire.kernels.gpu_words import words

__all__ = [
    "accumulate",
    "accumulate_codes",
    "bound",
    "check_version",
    "decode",
    "decode_codes",
    "decode_index",
    "divide",
    "encode_codes",
    "encode_index",
    "extrema",
    "first_nonfinite",
    "fit",
    "gather",
    "hadamard",
    "interpreted",
    "largest_code",
    "norms",
    "pack",
    "quantize",
    "quantize_levels",
    "randk",
    "signs",
    "topk",
    "unpack",
    "words",
]

BY_WAY_OF_HOST = (
    "owe", "pick", "settle", "scatter", "land", "two_levels", "look_up",
    "subtract_bodies", "pick_marked", "join_crc",
)  # fmt: skip
"""What no round on a device needs as a whole: rounds in place and hubs run on the host, and two
levels are fitted to the few values that a sparsifier keeps (a dense `TwoLevel` moves every
entry)."""


def bound(operation: str, device: torch.device) -> Callable[..., Any]:
    """Returns an operation for vectors on that device, where it needs to be told which."""
    if operation in BY_WAY_OF_HOST:
        return wrapped(operation, getattr(cpu, operation), device)
    call: Callable[..., Any] = globals()[operation]
    return functools.partial(call, device=device) if call in (words, randk) else call
