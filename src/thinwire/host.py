"""Tensors on the host: float32 or int64 on the CPU, whatever defaults a program has set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CPU = torch.device("cpu")


def zeros(n: int, device: torch.device = CPU) -> Tensor:
    """Returns (n,) float32 zeros."""
    return torch.zeros(n, dtype=torch.float32, device=device)


def empty(n: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Tensor:
    """Returns (n,) of undefined content."""
    return torch.empty(n, dtype=dtype, device=device)


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
