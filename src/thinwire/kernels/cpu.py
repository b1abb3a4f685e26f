"""The kernels of `thinwire.kernels.reference` in Numba: same arguments, same bits.

Numba widens uint32 arithmetic to 64 bits, so every step is wrapped in `np.uint32`. Fast math is
off throughout, because contracted multiply-adds would change the bits. Nothing here checks
bounds on its own: the wrappers check the layout, and the decoders check every byte they read.
"""

from __future__ import annotations

import fcntl
import gc
import os
import tempfile

import numba
import numpy as np

from thinwire import host
from thinwire.kernels.bodies import BodyShape
from thinwire.kernels.cpu_bits import padded_words
from thinwire.kernels.cpu_bodies import subtract_bodies
from thinwire.kernels.cpu_codes import largest_code, pack, unpack
from thinwire.kernels.cpu_crc import join_crc
from thinwire.kernels.cpu_decode import accumulate, accumulate_codes, decode, fit
from thinwire.kernels.cpu_entropy_decode import decode_codes
from thinwire.kernels.cpu_entropy_encode import encode_codes
from thinwire.kernels.cpu_index_decode import decode_index, read_side_by_side
from thinwire.kernels.cpu_index_encode import encode_index, sum_ahead
from thinwire.kernels.cpu_lloyd import look_up, two_levels
from thinwire.kernels.cpu_marked import pick_marked
from thinwire.kernels.cpu_measure import divide, extrema, first_nonfinite, norms
from thinwire.kernels.cpu_owed import land, owe, scatter, settle
from thinwire.kernels.cpu_quantize import quantize, quantize_levels, signs
from thinwire.kernels.cpu_randk import randk
from thinwire.kernels.cpu_rotate import hadamard
from thinwire.kernels.cpu_select import gather, pick, topk
from thinwire.kernels.cpu_words import words
from thinwire.kernels.marked import Marked
from thinwire.kernels.numba_support import array
from thinwire.kernels.owed import Owed

__all__ = [
    "accumulate",
    "accumulate_codes",
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
    "join_crc",
    "land",
    "largest_code",
    "look_up",
    "norms",
    "owe",
    "pack",
    "pick",
    "pick_marked",
    "quantize",
    "quantize_levels",
    "randk",
    "scatter",
    "settle",
    "signs",
    "subtract_bodies",
    "topk",
    "two_levels",
    "unpack",
    "warm",
    "words",
]


def warm() -> None:
    """Compiles every kernel, or loads it from the cache, before anything has to be fast.

    Processes that start together on a cold cache take turns, so one compiles and the others load.
    """
    name = f"thinwire-{os.getuid()}-numba-{numba.__version__}.lock"
    # Links are not followed: in a shared folder another user could aim one at a file of ours.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(os.path.join(tempfile.gettempdir(), name), flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A compiler makes much that stays: looking for garbage meanwhile takes a tenth of its time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            _call_each()
        finally:
            if collecting:
                gc.enable()
    finally:
        os.close(lock)


def _call_each() -> None:
    key = (1, 2)
    v = host.floats([1.0, -2.0, 3.0])
    starts, counts, padded = host.ints([0, 3]), host.ints([2]), host.ints([0, 4])
    words(3, key)
    first_nonfinite(v, starts)
    divide(v.clone(), 2, starts)
    randk(starts, counts, key)
    norm, (lo, _) = norms(v, starts, "l2"), extrema(v, starts)
    codes = quantize(v, starts, norm, 4, key)
    quantize_levels(v, starts, lo, norm, 4, key)
    halves, levels = two_levels(v, starts)
    look_up(halves, 2, starts, levels.repeat(1, 2))
    low, step = lo.double(), norm.double()
    fit(v, codes, 4, starts, low, step)
    decode(codes, 4, starts, low, step)
    largest_code(pack(unpack(signs(v, starts)[0], 3, 1), 4), 3, 4)
    hadamard(hadamard(v, starts, padded, key, False), starts, padded, key, True)
    # What only long vectors need.
    long = host.ints([0, 8192])
    hadamard(host.zeros(8192), long, long, key, False)
    index = topk(v, starts, counts)
    gather(v, index)
    owed = Owed(v.clone(), (v, v[:0].bfloat16()), host.zeros(3))
    owe(owed)
    settle(owed, *pick(owed, starts, counts))
    scatter((v,), index, v[:2])
    land(owed.anchor, (v,), 2, 1.0)
    places = encode_index(index, counts, starts)
    decode_index(places, counts, starts)
    cut = array(counts), array(starts), array(starts)
    sum_ahead(array(index), *cut, np.empty((2, 4), np.int64))
    read_side_by_side(padded_words(places), len(places), *cut, array(index))
    decode_codes(encode_codes(pack(host.ints([9] * 100), 4), 100, 4), 100, 4, 14)
    accumulate(host.zeros(3), None, v, 1.0)
    accumulate(host.zeros(3), index, v[:2], 1.0)
    accumulate_codes(host.zeros(3), None, codes, 4, starts, low, step, 1.0)
    accumulate_codes(host.zeros(3), host.ints([0, 1, 2]), codes, 4, starts, low, step, 1.0)
    units, n = low.new_ones(1, 2), len(places) + 5
    shape = BodyShape(counts, starts, starts, len(places), units, 1, 1, host.ints([0, 2]))
    body, ends = places.repeat(n)[:n], host.ints([n])
    marked, one = Marked.over(v.clone(), starts), host.floats([1.0])
    for x, touched in ((v.clone(), None), (v.clone(), starts.new_zeros(3)), (marked, None)):
        subtract_bodies(x, body, ends, shape, one, 9.0, touched, 1)
    pick_marked(marked, starts, counts)
    join_crc(1, 2, 3)
