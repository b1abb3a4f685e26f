"""Identity: every entry, exactly."""

from __future__ import annotations

from dataclasses import dataclass

from thinwire.compress.base import Compressor
from thinwire.compress.halves import EVERYTHING, FLOAT32, Quantizer, Sparsifier


@dataclass(frozen=True, repr=False)
class Identity(Compressor):
    """Says every entry exactly, in 4 bytes.

    C(u) = u. Unbiased; contraction 1; exactly 4 d bytes.

    Example:
        >>> Identity().nbytes(7850), Identity().contraction(7850)
        (31400, 1.0)
    """

    @property
    def sparsifier(self) -> Sparsifier:
        return EVERYTHING

    @property
    def quantizer(self) -> Quantizer:
        return FLOAT32
