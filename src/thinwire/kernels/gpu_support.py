"""What the Triton kernels share: one decorator, one launch, and how a vector is cut for them.

Vectors live on the device; what there is one of for each group (starts, norms, steps) lives on
the host, where it is checked and computed in the same bits for every table, and is sent along.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias, TypeVar, cast

import torch
import triton
import triton.language as tl

from thinwire import host
from thinwire.errors import ConfigError
from thinwire.kernels import reference

# Triton infers the types inside a kernel; as annotations it suffers no names but its own.
Number: TypeAlias = tl.tensor
Pointer: TypeAlias = tl.pointer_type

BLOCK: tl.constexpr = tl.constexpr(reference.BLOCK)
LANES: tl.constexpr = tl.constexpr(reference.LANES)
TILE: tl.constexpr = tl.constexpr(1024)
"""Entries that one program holds at a time."""
OLDEST = (3, 6)
"""The first Triton whose float32 division, compiled, keeps subnormals."""
SPAN = 1 << 14
"""Entries that one program walks over, where the order of sums does not decide otherwise."""

_F = TypeVar("_F", bound=Callable[..., Any])


def kernel(function: _F) -> _F:
    """Compiles a function for the device on its first call.

    A parameter that is a `Number` is not specialised: else each new key would compile again.
    """
    given = inspect.signature(function).parameters
    plain = [name for name, p in given.items() if p.annotation == "Number"]
    return cast(_F, triton.jit(function, do_not_specialize=plain))


def check_version() -> None:
    """Raises a ConfigError where Triton is too old to round as the definition does."""
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        raise ConfigError(
            f"Triton {triton.__version__} divides subnormal numbers otherwise than the CPU does; "
            f"install {'.'.join(map(str, OLDEST))} or later, or a torch that brings it"
        )


def interpreted() -> bool:
    """Returns whether kernels run in Triton's interpreter, on the host."""
    return not isinstance(group_of, triton.JITFunction)


def launch(function: Callable[..., Any], programs: int, *given: Any, **constants: Any) -> None:
    """Runs that many programs of a kernel on the device of the tensors it is given.

    Args:
        function: a `kernel`.
        programs: how many; none is fine.
        *given: its arguments.
        **constants: its compile-time constants.
    """
    if not programs:
        return
    device = next(x.device for x in given if isinstance(x, torch.Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        # A contracted multiply-add would round once where the definition rounds twice.
        cast(Any, function)[(programs,)](*given, **constants, enable_fp_fusion=False)


def programs(n: int, size: int) -> int:
    """Returns how many programs of `size` entries n entries take."""
    return (n + size - 1) // size


def pieces(starts: torch.Tensor, size: int) -> torch.Tensor:
    """Cuts groups at every multiple of `size` flat positions.

    Args:
        starts: (G + 1,) int64, on the host.
        size: flat positions between two cuts.

    Returns:
        (3, P) int64 on the host: where each piece starts and ends, and its group.

    Example:
        >>> pieces(torch.tensor([0, 3, 3, 9]), 8).tolist()
        [[0, 3, 8], [3, 8, 9], [0, 2, 2]]
    """
    multiples = torch.arange(0, int(starts[-1]), size, device=host.CPU)
    edges = torch.unique(torch.cat([starts, multiples]))
    groups = torch.searchsorted(starts, edges[:-1], right=True) - 1
    return torch.stack([edges[:-1], edges[1:], groups])


def bounds(starts: torch.Tensor, n: int) -> torch.Tensor:
    """Returns the group of each block's first entry and, last, of the vector's last one.

    Args:
        starts: (G + 1,) int64, on the device.
        n: entries, of blocks of 4096.

    Returns:
        (blocks + 1,) int64, on the device.
    """
    firsts = torch.arange(0, n + BLOCK.value, BLOCK.value, device=starts.device).clamp(max=n - 1)
    return torch.searchsorted(starts, firsts, right=True) - 1


@kernel
def group_of(starts: Pointer, low: Number, high: Number, position: Number) -> Number:
    """Returns the groups of these positions, all of them between the groups low and high."""
    below = tl.zeros_like(position) + low
    above = tl.zeros_like(position) + high
    left = high - low
    while left > 0:
        middle = (below + above + 1) // 2
        inside = tl.load(starts + middle) <= position
        below = tl.where(inside, middle, below)
        above = tl.where(inside, above, middle - 1)
        left = left // 2
    return below
