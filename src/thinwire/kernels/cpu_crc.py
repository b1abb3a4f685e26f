"""CRC-32 of pieces end to end in Numba, from the CRC-32 of each, without a look at their bytes."""

from __future__ import annotations

import numpy as np

from thinwire.kernels import reference
from thinwire.kernels.numba_support import Number, brief

_POLYNOMIAL = np.uint64(reference.CRC_POLYNOMIAL)
_ONE = np.uint64(1)


@brief
def _times(a: Number, b: Number) -> Number:
    product = np.uint64(0)
    for bit in range(32):
        product ^= b * (a >> np.uint64(31 - bit) & _ONE)
        b = b >> _ONE ^ _POLYNOMIAL * (b & _ONE)
    return product


def _powers() -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Returns x**(8 * 2**k) for each bit k of a length."""
    powers = [1 << 23]
    for _ in range(62):
        powers.append(reference.crc_times(powers[-1], powers[-1]))
    return np.array(powers, np.uint64)


_POWERS = _powers()


@brief
def _join(first: Number, second: Number, n: Number) -> Number:
    power, k = np.uint64(first), 0
    while n:
        if n & 1:
            power = _times(_POWERS[k], power)
        n >>= 1
        k += 1
    return power ^ np.uint64(second)


def join_crc(first: int, second: int, n: int) -> int:
    """Agrees with `reference.join_crc`."""
    return int(_join(first, second, n))
