"""The table of kernels: one set of operations, one definition, and faster versions that agree.

`reference` says in plain torch what each operation means; `cpu` computes the same bits with
Numba, `gpu` with Triton where a vector lives on a CUDA device. Everything else in the library
calls `active(device)` and never one of the three by name, so that `with use("reference"):`
switches the fast versions off. What is as long as a vector (codes, indices) is given and answered
on the vector's device; what there is one of for each group is on the host for every table.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from thinwire import host
from thinwire.errors import ConfigError
from thinwire.kernels.bodies import BodyShape
from thinwire.kernels.checks import packed_bytes
from thinwire.kernels.marked import Marked
from thinwire.kernels.owed import Owed
from thinwire.kernels.reference import Key, index_bytes_bound

__all__ = [
    "NAMES", "BodyShape", "Kernels", "Key", "Marked", "Owed", "active", "index_bytes_bound",
    "packed_bytes", "use",
]  # fmt: skip

NAMES = ("reference", "cpu", "gpu")


@dataclass(frozen=True)
class Kernels:
    """One complete set of operations; `thinwire.kernels.reference` defines each of them."""

    name: str
    words: Callable[[int, Key], Tensor]
    first_nonfinite: Callable[[Tensor, Tensor], int]
    divide: Callable[[Tensor, int, Tensor], int]
    topk: Callable[[Tensor, Tensor, Tensor], Tensor]
    owe: Callable[[Owed], Tensor]
    pick: Callable[[Owed, Tensor, Tensor], tuple[Tensor, Tensor]]
    pick_marked: Callable[[Marked, Tensor, Tensor], tuple[Tensor, Tensor]]
    settle: Callable[[Owed, Tensor, Tensor], None]
    scatter: Callable[[tuple[Tensor, ...], Tensor, Tensor], None]
    land: Callable[[Tensor, tuple[Tensor, ...], int, float], None]
    gather: Callable[[Tensor, Tensor], Tensor]
    randk: Callable[[Tensor, Tensor, Key], Tensor]
    norms: Callable[[Tensor, Tensor, str], Tensor]
    extrema: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    quantize: Callable[[Tensor, Tensor, Tensor, int, Key], Tensor]
    quantize_levels: Callable[[Tensor, Tensor, Tensor, Tensor, int, Key], Tensor]
    signs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    two_levels: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    look_up: Callable[[Tensor, int, Tensor, Tensor], Tensor]
    fit: Callable[[Tensor, Tensor, int, Tensor, Tensor, Tensor], Tensor]
    decode: Callable[[Tensor, int, Tensor, Tensor, Tensor], Tensor]
    accumulate_codes: Callable[
        [Tensor, Tensor | None, Tensor, int, Tensor, Tensor, Tensor, float], None
    ]
    hadamard: Callable[[Tensor, Tensor, Tensor, Key, bool], Tensor]
    pack: Callable[[Tensor, int], Tensor]
    unpack: Callable[[Tensor, int, int], Tensor]
    largest_code: Callable[[Tensor, int, int], int]
    encode_index: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    decode_index: Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor | None, int, str]]
    encode_codes: Callable[[Tensor, int, int], Tensor]
    decode_codes: Callable[[Tensor, int, int, int], tuple[Tensor | None, int, str]]
    accumulate: Callable[[Tensor, Tensor | None, Tensor, float], None]
    subtract_bodies: Callable[
        [Tensor | Marked, Tensor, Tensor, BodyShape, Tensor, float, Tensor | None, int], Tensor
    ]
    join_crc: Callable[[int, int, int], int]


_chosen: ContextVar[str | None] = ContextVar("thinwire_kernels", default=None)
OPERATIONS = tuple(field.name for field in fields(Kernels) if field.name != "name")


@functools.cache
def _table(name: str, device: torch.device) -> Kernels:
    # Imported on first use because Numba alone costs about a second.
    if name == "gpu":
        return Kernels(name, **_on_device(device))
    module = importlib.import_module(f"{__name__}.{name}")
    operations = {operation: getattr(module, operation) for operation in OPERATIONS}
    if device.type != "cpu":
        far = importlib.import_module(f"{__name__}.by_way_of_host")
        operations = {op: far.wrapped(op, call, device) for op, call in operations.items()}
    return Kernels(name, **operations)


def _on_device(device: torch.device) -> dict[str, Callable[..., Any]]:
    try:
        gpu = importlib.import_module(f"{__name__}.gpu")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "triton":
            raise
        raise ConfigError(
            f"vectors on {device} need Triton, which is not installed: pip install "
            "'thinwire[gpu]', or keep the model's parameters on the CPU, or say "
            "`with thinwire.kernels.use('cpu'):` around everything, which moves every vector"
        ) from error
    gpu.check_version()
    if device.type == "cpu" and not gpu.interpreted():
        raise ConfigError(
            "the gpu kernels serve CUDA vectors, and do so by themselves; for vectors on the host "
            "set TRITON_INTERPRET=1 before Python starts, or use('cpu')"
        )
    return {operation: gpu.bound(operation, device) for operation in OPERATIONS}


def active(device: torch.device = host.CPU) -> Kernels:
    """Returns the table that serves vectors on that device.

    That is "gpu" for a CUDA device and "cpu" for any other, unless `use` says otherwise.

    Args:
        device: where the vectors are.

    Raises:
        ConfigError: it takes Triton, and that is not installed, or is too old.
    """
    return _table(_chosen.get() or ("gpu" if device.type == "cuda" else "cpu"), device)


@contextmanager
def use(name: str) -> Iterator[Kernels]:
    """Puts the named table in force for the body of a `with` statement.

    The choice follows `contextvars`: it holds for this thread and for the tasks it starts, while
    a thread started inside the body begins with the default again. For vectors on a CUDA device
    the other two work by way of the host, which is slow and meant for comparison.

    Args:
        name: one of `NAMES`.

    Raises:
        ValueError: when no table has that name.
        ConfigError: the table cannot serve vectors on the host.
    """
    if name not in NAMES:
        raise ValueError(f"no kernels named {name!r}: choose from {', '.join(NAMES)}")
    table = _table(name, host.CPU)
    token = _chosen.set(name)
    try:
        yield table
    finally:
        _chosen.reset(token)
