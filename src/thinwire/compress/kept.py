"""How many entries of a group a sparsifier keeps."""

from __future__ import annotations

from thinwire.compress.layout import SCOPES
from thinwire.errors import ConfigError
from thinwire.value import in_range, one_of, whole


def check_kept(
    owner: object, k: int | None, density: float | None, scope: str | None, chunk: int
) -> None:
    """Raises a ConfigError unless exactly one of k and density is given, and all are sound."""
    if (k is None) == (density is None):
        raise ConfigError(
            f"{type(owner).__name__}: give k (entries) or density (a fraction), one of the two; "
            f"got k={k!r}, density={density!r}"
        )
    if k is not None:
        whole(owner, "k", k, 1, 1 << 40)
    if density is not None:
        in_range(owner, "density", density, 1e-12, 1.0)
    one_of(owner, "scope", scope, SCOPES)
    whole(owner, "chunk", chunk, 1, 1 << 30)


def kept_of(length: int, k: int | None, density: float | None, width: int | None) -> int:
    """Returns the kept entries of a group of `length`.

    Args:
        length: entries of the group.
        k: at most this many.
        density: or this fraction, rounded, at least 1.
        width: bits of a said value where the group may go dense when that is no more bytes;
            None where it may not.

    Example:
        >>> kept_of(64, 1000, None, None), kept_of(7850, None, 0.01, None)
        (64, 78)
        >>> kept_of(1024, 1000, None, 1)
        1024
    """
    kept = min(length, k if k is not None else max(1, round((density or 0.0) * length)))
    if width is not None and 0 < kept < length:
        rice = min(kept * (b + 1) + (length >> b) for b in range(length.bit_length()))
        index_bits = min(length, kept * max(1, (length - 1).bit_length()), rice)
        if index_bits + kept * width >= length * width:
            return length
    return kept
