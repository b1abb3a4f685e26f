"""The kernels of `thinwire.kernels.reference` in Triton: same arguments, same bits.

What is as long as a vector stays on the vector's device: vectors, codes, indices. What there is
one of for each group is given and answered on the host. Index streams are bytes of a frame and
are coded on the host, as streams of codes are; they are the `cpu` table's. So is `two_levels`,
whose vector is brought: what follows a sparsifier is short, a dense `TwoLevel` moves every entry.
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
from thinwire.kernels.gpu_measure import extrema, first_nonfinite, norms
from thinwire.kernels.gpu_owed import land, owe, pick, scatter, settle
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
    "encode_codes",
    "encode_index",
    "extrema",
    "first_nonfinite",
    "fit",
    "gather",
    "hadamard",
    "interpreted",
    "land",
    "largest_code",
    "norms",
    "owe",
    "pack",
    "pick",
    "quantize",
    "quantize_levels",
    "randk",
    "scatter",
    "settle",
    "signs",
    "topk",
    "unpack",
    "words",
]


def bound(operation: str, device: torch.device) -> Callable[..., Any]:
    """Returns an operation for vectors on that device, where it needs to be told which."""
    if operation in ("two_levels", "look_up"):
        return wrapped(operation, getattr(cpu, operation), device)
    call: Callable[..., Any] = globals()[operation]
    return functools.partial(call, device=device) if call in (words, randk) else call
