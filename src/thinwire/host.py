"""Tensors on the host: float32 or int64 on the CPU, whatever defaults a program has set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thinwire.memory import large

CPU = torch.device("cpu")
LARGEST = torch.finfo(torch.float32).max
"""The largest float32."""
Bytes = bytes | memoryview
"""What a frame is made or arrives as: either way nobody changes it."""

_LARGE = 1 << 18
"""From so many entries on, the system hands out memory anew each time, and a page at a time."""
_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32, torch.int64: np.int64, torch.int32: np.int32, torch.uint8: np.uint8,
}  # fmt: skip


def zeros(n: int, device: torch.device = CPU) -> Tensor:
    """Returns (n,) float32 zeros."""
    return empty(n, device=device).zero_()


def empty(n: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Tensor:
    """Returns (n,) of undefined content; dtype is float32, int64, int32 or uint8."""
    if n >= _LARGE and device.type == "cpu":
        return torch.from_numpy(large(n * dtype.itemsize).view(_NUMPY[dtype]))
    return torch.empty(n, dtype=dtype, device=device)


def like(v: Tensor) -> Tensor:
    """Returns a vector of as many float32 on v's device, of undefined content."""
    return empty(len(v), device=v.device)


def bytes_of(tensor: Tensor) -> memoryview:
    """Returns a tensor's own bytes, little-endian; of one on the host they are not copied."""
    flat = bring(tensor).contiguous().view(-1).view(torch.uint8)
    return flat.numpy().data


def floats(values: Sequence[float]) -> Tensor:
    """Returns the values as (n,) float32."""
    return torch.tensor(values, dtype=torch.float32, device=CPU)


def float_(value: float) -> Tensor:
    """Returns one float32 without an axis."""
    return torch.tensor(value, dtype=torch.float32, device=CPU)


def ints(values: Sequence[int]) -> Tensor:
    """Returns the values as (n,) int64."""
    return torch.tensor(values, dtype=torch.int64, device=CPU)


def bring(tensor: Tensor) -> Tensor:
    """Returns a tensor of any device on the host: the one door out of a device.

    Of a vector only what is said goes through it: indices, codes, kept values.
    """
    return tensor.to(CPU)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor of the host on that device."""
    return tensor.to(device)
