"""The two halves of a compressor, and their chain.

A `Sparsifier` decides which entries are kept, a `Quantizer` how a kept entry is said. Each is a
compressor by itself, completed by the half that loses nothing: `Everything` or `Float32`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from thinwire import kernels
from thinwire.compress.base import Compressor
from thinwire.compress.layout import CODINGS, SCALES, Coding, Layout, Scope, pieces
from thinwire.compress.payload import Codes, Steps
from thinwire.errors import ConfigError
from thinwire.kernels import Marked, Owed
from thinwire.keys import Key
from thinwire.value import one_of, whole


class Sparsifier(Compressor):
    """Keeps some entries of each group and says where they are."""

    says_index: ClassVar[bool] = True
    drops: ClassVar[bool] = True
    sees_nonfinite: ClassVar[bool] = False
    """Whether a vector that holds a NaN or an infinity has one among its kept entries."""
    by_marks: ClassVar[bool] = False
    """Whether it finds what it keeps of a marked vector without a look at all of it."""
    scope: Scope | None
    chunk: int

    @property
    def sparsifier(self) -> Sparsifier:
        return self

    @property
    def quantizer(self) -> Quantizer:
        return FLOAT32

    @property
    @abstractmethod
    def drops_biased(self) -> bool:
        """Whether the expected message differs from the vector."""

    @abstractmethod
    def count(self, length: int, width: int) -> int:
        """Returns how many of a group's `length` entries are kept, at `width` bits a value."""

    @abstractmethod
    def select(self, u: Tensor, at: Layout, key: Key) -> Tensor | None:
        """Returns the kept positions, (n,) int64 ascending, or None for all of them."""

    def take(self, u: Tensor | Owed | Marked, at: Layout, key: Key) -> tuple[Tensor | None, Tensor]:
        """Returns the kept positions and u there, (n,) float32."""
        u = u.x if isinstance(u, Marked) else u
        table = kernels.active(u.anchor.device if isinstance(u, Owed) else u.device)
        vector = table.owe(u) if isinstance(u, Owed) else u
        index = self.select(vector, at, key)
        return index, vector if index is None else table.gather(vector, index)

    def shrinks_group(self, kept: int, length: int, quantizer: Quantizer) -> float:
        """Returns the contraction of keeping `kept` of `length` entries, then quantizing them.

        ||u - Q(u_S)||^2 = ||u||^2 - ||u_S||^2 + ||u_S - Q(u_S)||^2, and E||u_S||^2 is at least
        kept/length of ||u||^2: the product of both contractions.
        """
        return kept / length * max(0.0, quantizer.shrinks(kept))

    def weigh(self, v: Tensor, at: Layout) -> Tensor:
        """Returns the kept values as they are to be said, (n,) float32."""
        return v

    def __rshift__(self, other: Compressor) -> Compressor:
        return Chain(self, other)  # type: ignore[arg-type]


class Quantizer(Compressor):
    """Says each value as one of a few levels, with one or two scales a block."""

    scales: ClassVar[int] = 1
    scope: Scope
    bucket: int | None
    coding: Coding

    @property
    def sparsifier(self) -> Sparsifier:
        return EVERYTHING

    @property
    def quantizer(self) -> Quantizer:
        return self

    @property
    @abstractmethod
    def width(self) -> int:
        """Bits of a code."""

    @property
    @abstractmethod
    def top(self) -> int:
        """The greatest code."""

    @property
    @abstractmethod
    def rounds_biased(self) -> bool:
        """Whether E[Q(v)] differs from v."""

    @abstractmethod
    def encode(self, v: Tensor, at: Layout, key: Key) -> Tensor | Codes:
        """Returns the codes of v, (n,) float32 cut into `at.blocks`."""

    def steps(self, codes: Codes, at: Layout) -> Steps | None:
        """Returns what each code stands for, or None where values are more than that."""
        return None

    def decode(self, values: Tensor | Codes, at: Layout, key: Key) -> Tensor:
        """Returns the values the codes stand for, (n,) float32."""
        assert isinstance(values, Codes)
        steps = self.steps(values, at)
        assert steps is not None
        return decoded(values, steps)

    @abstractmethod
    def shrinks_block(self, n: int) -> float:
        """Returns the contraction on a block of n >= 1 values; 0 or less if there is none."""

    def shrinks(self, n: int) -> float:
        """Returns the contraction on a group of n values, the least over its blocks."""
        return min((self.shrinks_block(m) for m in set(self.cut([n])) if m), default=1.0)

    def cut(self, counts: list[int]) -> list[int]:
        """Returns the lengths of the blocks that groups of these counts are cut into."""
        return counts if self.bucket is None else pieces(counts, self.bucket)

    def padded(self, n: int) -> int:
        """Returns how many codes a block of n values takes."""
        return n

    def check_cut(self) -> None:
        """Raises a ConfigError unless `scope`, `bucket` and `coding` are sound."""
        one_of(self, "scope", self.scope, ("tensor", "global"))
        one_of(self, "coding", self.coding, CODINGS)
        if self.bucket is not None:
            whole(self, "bucket", self.bucket, 1, 1 << 30)

    def scaled(self, scale: str, beta: float) -> float:
        """Returns the contraction of an unbiased operator with second moment 1 + beta.

        Unscaled: 1 - beta. Divided by 1 + beta: 1/(1 + beta), the paper's. Fitted: at least that,
        since E[<v,Q>^2/||Q||^2] >= E[<v,Q>]^2 / E||Q||^2 >= ||v||^2 / (1 + beta).
        """
        one_of(self, "scale", scale, SCALES)
        return 1 - beta if scale == "none" else 1 / (1 + beta)


def decoded(codes: Codes, steps: Steps) -> Tensor:
    """Returns float32(low + code step) for every code, (n,) float32."""
    at = steps.blocks, steps.lows, steps.steps
    return kernels.active(codes.packed.device).decode(codes.packed, codes.width, *at)


@dataclass(frozen=True, repr=False)
class Everything(Sparsifier):
    """Keeps every entry: the sparsifier of a quantizer that stands alone."""

    says_index: ClassVar[bool] = False
    drops: ClassVar[bool] = False
    sees_nonfinite: ClassVar[bool] = True
    drops_biased: ClassVar[bool] = False
    scope: ClassVar[Scope | None] = None  # type: ignore[misc]
    chunk: ClassVar[int] = 4096  # type: ignore[misc]

    def count(self, length: int, width: int) -> int:
        return length

    def select(self, u: Tensor, at: Layout, key: Key) -> None:
        return None


@dataclass(frozen=True, repr=False)
class Float32(Quantizer):
    """Says every value exactly: the quantizer of a sparsifier that stands alone."""

    scales: ClassVar[int] = 0
    top: ClassVar[int] = 0
    width: ClassVar[int] = 32
    rounds_biased: ClassVar[bool] = False
    scope: ClassVar[Scope] = "global"  # type: ignore[misc]
    bucket: ClassVar[int | None] = None  # type: ignore[misc]
    coding: ClassVar[Coding] = "fixed"  # type: ignore[misc]

    def encode(self, v: Tensor, at: Layout, key: Key) -> Tensor:
        return v

    def decode(self, values: Tensor | Codes, at: Layout, key: Key) -> Tensor:
        assert isinstance(values, Tensor)
        return values

    def shrinks_block(self, n: int) -> float:
        return 1.0


@dataclass(frozen=True, repr=False)
class Chain(Compressor):
    """A sparsifier, then a quantizer on what it keeps; written `sparsifier >> quantizer`.

    The quantizer's scales follow the sparsifier's groups: one a group, or one a bucket of kept
    entries.

    Raises:
        ConfigError: the halves do not fit; it says what would work.
    """

    first: Sparsifier
    then: Quantizer

    def __post_init__(self) -> None:
        if not isinstance(self.first, Sparsifier):
            raise ConfigError(
                f"a chain begins with a sparsifier (TopK, RandK), not with {self.first!r}"
            )
        if not isinstance(self.then, Quantizer):
            raise ConfigError(
                f"{self.first!r} >> {self.then!r}: what follows a sparsifier is a quantizer "
                "(Sign, TwoLevel, QSGD, Levels, Rotated, Ternary); a chain has one of each"
            )
        if self.then.scope != "tensor":
            raise ConfigError(
                f"{self!r}: in a chain the sparsifier's scope rules; drop scope={self.then.scope!r}"
                " from the quantizer and set it on the sparsifier"
            )

    def __repr__(self) -> str:
        return f"{self.first!r} >> {self.then!r}"

    @property
    def sparsifier(self) -> Sparsifier:
        return self.first

    @property
    def quantizer(self) -> Quantizer:
        return self.then


EVERYTHING = Everything()
FLOAT32 = Float32()
