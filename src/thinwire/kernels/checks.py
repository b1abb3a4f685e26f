"""The refusals that both tables share: Numba checks no bounds, so the layout is checked here.

A check costs at most one pass over the groups or the indices, never one over a gradient. They look
through NumPy, whose operations on a few hundred numbers start several times sooner than torch's.
"""

from __future__ import annotations

import numpy as np
import torch

from thinwire.kernels.owed import Owed

KINDS = ("l1", "l2", "max")


def check_kind(kind: str) -> None:
    """Raises ValueError unless `kind` names a norm."""
    if kind not in KINDS:
        raise ValueError(f"no norm named {kind!r}: choose from {', '.join(KINDS)}")


def check_starts(starts: torch.Tensor, n: int) -> None:
    """Raises ValueError unless `starts` cuts a vector of n entries into groups.

    Args:
        starts: (G + 1,) int64.
        n: entries of the vector, at most 2**32, the indices a random word tells apart.
    """
    if starts.dtype != torch.int64 or starts.dim() != 1 or starts.numel() == 0:
        raise ValueError("starts must be a non-empty int64 vector")
    cuts = starts.numpy()
    if cuts[0] != 0 or cuts[-1] != n or (cuts[1:] < cuts[:-1]).any():
        raise ValueError(f"starts must ascend from 0 to {n}")
    if n > 2**32:
        raise ValueError(f"{n} entries in one call: at most 2**32")


def check_vector(v: torch.Tensor, starts: torch.Tensor) -> None:
    """Raises ValueError unless `v` is a float32 vector that `starts` cuts into groups.

    Args:
        v: (n,) float32.
        starts: (G + 1,) int64.
    """
    if v.dtype != torch.float32 or v.dim() != 1:
        raise ValueError("expected a float32 vector")
    check_starts(starts, v.numel())


def check_typed(v: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises ValueError unless `v` is a vector of that dtype."""
    if v.dtype != dtype or v.dim() != 1:
        raise ValueError(f"expected a vector of {dtype}")


def check_counts(counts: torch.Tensor, starts: torch.Tensor) -> None:
    """Raises ValueError unless every group has between 0 and all of its entries counted.

    Args:
        counts: (G,) int64.
        starts: (G + 1,) int64.
    """
    check_starts(starts, int(starts.numpy()[-1]) if starts.numel() else 0)
    if counts.dtype != torch.int64 or counts.shape != (starts.numel() - 1,):
        raise ValueError("counts must be an int64 vector with one entry per group")
    kept = counts.numpy()
    if (kept < 0).any() or (kept > np.diff(starts.numpy())).any():
        raise ValueError("a count lies outside its group")


def check_domains(domains: torch.Tensor | None, starts: torch.Tensor) -> None:
    """Raises ValueError unless every domain is made of whole groups.

    Args:
        domains: (S + 1,) int64, or None where each group is one.
        starts: (G + 1,) int64.
    """
    if domains is not None:
        check_starts(domains, int(starts.numpy()[-1]))
        places = np.searchsorted(starts.numpy(), domains.numpy())
        if (starts.numpy()[places] != domains.numpy()).any():
            raise ValueError("every domain must start where a group does")


def check_rotation(starts: torch.Tensor, out_starts: torch.Tensor, n: int, inverse: bool) -> None:
    """Raises ValueError unless `out_starts` pads every group of `starts` to a power of two.

    Args:
        starts: (G + 1,) int64.
        out_starts: (G + 1,) int64.
        n: entries of the input, laid out by `out_starts` when `inverse` and else by `starts`.
        inverse: which of the two layouts the input has.
    """
    check_starts(starts, int(starts[-1]) if inverse else n)
    check_starts(out_starts, n if inverse else int(out_starts[-1]))
    lengths, padded = starts.diff(), out_starts.diff()
    if lengths.shape != padded.shape:
        raise ValueError("starts and out_starts must have the same number of groups")
    fits = (lengths <= padded) & ((padded & (padded - 1)) == 0) & ((lengths > 0) == (padded > 0))
    if not bool(fits.all()):
        raise ValueError("every non-empty group must be padded to a power of two")


def packed_bytes(n: int, width: int) -> int:
    """Says how many bytes n packed codes of `width` bits take.

    That is n width / 8, and where a block of 4096 is not full, each of its planes rounded up.

    Args:
        n: number of codes.
        width: bits per code, 1..16.

    Examples:
        >>> packed_bytes(8192, 3), packed_bytes(5, 3)
        (3072, 3)
    """
    check_width(width)
    whole, rest = divmod(n, 4096)
    planes = [p for p in (8, 4, 2, 1) if width & p] + [8] * (width // 16 * 2)
    return 512 * width * whole + sum((rest * p + 7) // 8 for p in planes)


def check_packed(data: torch.Tensor, n: int, width: int) -> None:
    """Raises ValueError unless `data` has exactly the bytes of n codes of `width` bits.

    Args:
        data: (packed_bytes(n, width),) uint8.
        n: number of codes.
        width: bits per code, 1..16.
    """
    check_width(width)
    if n < 0 or data.dtype != torch.uint8 or data.numel() != packed_bytes(n, width):
        raise ValueError(f"{n} codes of {width} bits need {packed_bytes(n, width)} uint8 bytes")


def check_coded(
    packed: torch.Tensor,
    width: int,
    starts: torch.Tensor,
    lows: torch.Tensor,
    steps: torch.Tensor,
) -> None:
    """Raises ValueError unless these are packed codes with a low and a step for each group."""
    n = int(starts.numpy()[-1]) if starts.numel() else 0
    check_starts(starts, n)
    check_packed(packed, n, width)
    check_per_group(starts, lows, steps)
    if lows.dtype != torch.float64 or steps.dtype != torch.float64:
        raise ValueError("lows and steps must be float64")


def check_books(
    packed: torch.Tensor, width: int, starts: torch.Tensor, books: torch.Tensor
) -> None:
    """Raises ValueError unless these are packed codes with a float32 book for each group."""
    n = int(starts.numpy()[-1]) if starts.numel() else 0
    check_starts(starts, n)
    check_packed(packed, n, width)
    if books.dtype != torch.float32 or books.shape != (starts.numel() - 1, 1 << width):
        raise ValueError(f"expected {1 << width} float32 values for each group")


def check_width(width: int) -> None:
    """Raises ValueError unless `width` is between 1 and 16 bits."""
    if not 1 <= width <= 16:
        raise ValueError(f"width {width} outside 1..16")


def check_levels(levels: int) -> None:
    """Raises ValueError unless `levels` can be stored in a signed 16-bit code."""
    if not 1 <= levels <= 32767:
        raise ValueError(f"levels {levels} outside 1..32767")


def check_unsigned_levels(levels: int) -> None:
    """Raises ValueError unless `levels` can be stored in an unsigned 16-bit code."""
    if not 1 <= levels <= 65535:
        raise ValueError(f"levels {levels} outside 1..65535")


def check_per_group(starts: torch.Tensor, *values: torch.Tensor) -> None:
    """Raises ValueError unless each vector has one entry per group.

    Args:
        starts: (G + 1,) int64.
        *values: (G,) each.
    """
    if any(value.numel() != starts.numel() - 1 for value in values):
        raise ValueError(f"expected one value for each of {starts.numel() - 1} groups")


def check_index(index: torch.Tensor | None, acc: torch.Tensor, n: int) -> None:
    """Raises unless n values can be added to `acc` at `index`.

    Args:
        index: (n,) int64 ascending, or None for every entry.
        acc: float32, contiguous.
        n: number of values.

    Raises:
        ValueError: when the lengths differ or `acc` is not contiguous.
        IndexError: when an index lies outside `acc`.
    """
    if not acc.is_contiguous():
        raise ValueError("acc must be contiguous")
    if n != (acc if index is None else index).numel():
        raise ValueError(f"{n} values for {(acc if index is None else index).numel()} places")
    if index is not None:
        check_inside(index, acc.numel())


def check_inside(index: torch.Tensor, n: int) -> None:
    """Raises IndexError unless every index is one of a vector of n entries.

    Args:
        index: (k,) int64.
        n: entries of the vector.
    """
    if index.numel():
        # Torch's own threads would look for more work for a while, on cores the kernel needs.
        there = index.numpy() if index.device.type == "cpu" else index
        if int(there.min()) < 0 or int(there.max()) >= n:
            raise IndexError(f"index outside a vector of {n}")


def check_owed(owed: Owed) -> None:
    """Raises ValueError unless anchor, params and residual are of one length and known dtypes."""
    d = owed.anchor.numel()
    vectors = [owed.anchor] if owed.residual is None else [owed.anchor, owed.residual]
    if any(v.shape != (d,) or not v.is_contiguous() for v in vectors):
        raise ValueError("anchor and residual must be contiguous vectors of one length")
    if any(v.dtype != torch.float32 for v in vectors):
        raise ValueError("anchor and residual must be float32")
    if sum(p.numel() for p in owed.params) != d:
        raise ValueError(f"params have {sum(p.numel() for p in owed.params)} entries, not {d}")
    known = (torch.float32, torch.bfloat16, torch.float16)
    if any(p.dtype not in known or p.device != owed.anchor.device for p in owed.params):
        raise ValueError("params must be float32, bfloat16 or float16 where the anchor is")


def check_plain(tensors: tuple[torch.Tensor, ...]) -> None:
    """Raises ValueError unless every tensor is contiguous float32, on one device."""
    for t in tensors:
        if t.dtype != torch.float32 or t.device != tensors[0].device or not t.is_contiguous():
            raise ValueError("expected contiguous float32 tensors on one device")
