"""The kernels of `thinwire.kernels.reference` in Triton: same arguments, same bits.

What is as long as a vector stays on the vector's device: vectors, codes, indices. What there is
one of for each group is given and answered on the host. Index streams are bytes of a frame and
are coded on the host; they are the `cpu` table's.
"""

from __future__ import annotations

from thinwire.kernels.cpu_index import decode_index, encode_index
from thinwire.kernels.gpu_codes import largest_code, pack, unpack
from thinwire.kernels.gpu_decode import accumulate, accumulate_codes, decode, fit
from thinwire.kernels.gpu_measure import extrema, first_nonfinite, norms
from thinwire.kernels.gpu_quantize import quantize, quantize_levels, signs
from thinwire.kernels.gpu_rotate import hadamard
from thinwire.kernels.gpu_select import gather, randk, topk
from thinwire.kernels.gpu_words import words

__all__ = [
    "accumulate",
    "accumulate_codes",
    "decode",
    "decode_index",
    "encode_index",
    "extrema",
    "first_nonfinite",
    "fit",
    "gather",
    "hadamard",
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
