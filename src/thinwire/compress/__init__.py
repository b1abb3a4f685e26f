"""Operators that say a vector in fewer bytes: one file, one operator."""

from thinwire.compress.base import Compressor
from thinwire.compress.halves import Chain, Quantizer, Sparsifier
from thinwire.compress.identity import Identity
from thinwire.compress.layout import Layout
from thinwire.compress.levels import Levels
from thinwire.compress.payload import Codes, Payload
from thinwire.compress.qsgd import QSGD
from thinwire.compress.randk import RandK
from thinwire.compress.rotated import Rotated
from thinwire.compress.sign import Sign
from thinwire.compress.ternary import Ternary
from thinwire.compress.topk import TopK
from thinwire.compress.two_level import TwoLevel

__all__ = [
    "QSGD",
    "Chain",
    "Codes",
    "Compressor",
    "Identity",
    "Layout",
    "Levels",
    "Payload",
    "Quantizer",
    "RandK",
    "Rotated",
    "Sign",
    "Sparsifier",
    "Ternary",
    "TopK",
    "TwoLevel",
]
