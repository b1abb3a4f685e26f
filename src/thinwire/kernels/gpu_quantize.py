"""Stochastic rounding in Triton: what each group's scales are, and the kernel that packs."""

from __future__ import annotations

import torch

from thinwire import host
from thinwire.kernels import checks
from thinwire.kernels.gpu_codes import SIGN, SIGNED, UPWARDS, put
from thinwire.kernels.gpu_measure import norms
from thinwire.kernels.gpu_words import halves
from thinwire.kernels.reference import Key


def quantize(
    v: torch.Tensor, starts: torch.Tensor, norms: torch.Tensor, levels: int, key: Key
) -> torch.Tensor:
    """Agrees bit for bit with `reference.quantize`; the norms are on the host."""
    checks.check_vector(v, starts)
    checks.check_per_group(starts, norms)
    checks.check_levels(levels)
    lift = torch.where(norms >= 2.0**-100, host.float_(1.0), host.float_(2.0**100))
    rate = torch.where(norms == 0, host.float_(0.0), host.float_(float(levels)) / (norms * lift))
    width = (2 * levels).bit_length()
    return put(v, starts, torch.stack([lift, rate]), levels, width, halves(key), SIGNED)


def quantize_levels(
    v: torch.Tensor,
    starts: torch.Tensor,
    lo: torch.Tensor,
    step: torch.Tensor,
    levels: int,
    key: Key,
) -> torch.Tensor:
    """Agrees bit for bit with `reference.quantize_levels`; lo and step are on the host."""
    checks.check_vector(v, starts)
    checks.check_per_group(starts, lo, step)
    checks.check_unsigned_levels(levels)
    c = torch.where(step >= 1, host.float_(0.5), host.float_(1.0))
    scales = torch.stack([c, lo * c, step * c])
    return put(v, starts, scales, levels, levels.bit_length(), halves(key), UPWARDS)


def signs(v: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.signs`; the norms are on the host."""
    packed = put(v, host.ints([0, v.numel()]), host.zeros(1), 1, 1, (0, 0), SIGN)
    return packed, norms(v, starts, "l1")
