"""The table of kernels: one set of operations, one definition, and faster versions that agree.

`reference` says in plain torch what each operation means; `cpu` computes the same bits with
Numba. Everything else in the library calls `active()` and never one of the two by name, so that
`with use("reference"):` switches the fast versions off.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields

import torch

from thinwire.kernels.reference import Key, index_bytes_bound

__all__ = ["NAMES", "Kernels", "Key", "active", "index_bytes_bound", "use"]

NAMES = ("reference", "cpu")


@dataclass(frozen=True)
class Kernels:
    """One complete set of operations; `thinwire.kernels.reference` defines each of them."""

    name: str
    words: Callable[[int, Key], torch.Tensor]
    first_nonfinite: Callable[[torch.Tensor, torch.Tensor], int]
    topk: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    randk: Callable[[torch.Tensor, torch.Tensor, Key], torch.Tensor]
    norms: Callable[[torch.Tensor, torch.Tensor, str], torch.Tensor]
    extrema: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    quantize: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, Key], torch.Tensor]
    quantize_levels: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, Key], torch.Tensor
    ]
    fit: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    signs: Callable[[torch.Tensor], torch.Tensor]
    hadamard: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Key, bool], torch.Tensor]
    pack: Callable[[torch.Tensor, int], torch.Tensor]
    unpack: Callable[[torch.Tensor, int, int], torch.Tensor]
    encode_index: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    decode_index: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, int, str]
    ]
    accumulate: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], None]


_chosen: ContextVar[str] = ContextVar("thinwire_kernels", default="cpu")


@functools.cache
def _table(name: str) -> Kernels:
    # Imported on first use because Numba alone costs about a second.
    module = importlib.import_module(f"{__name__}.{name}")
    operations = [field.name for field in fields(Kernels) if field.name != "name"]
    return Kernels(name, **{operation: getattr(module, operation) for operation in operations})


def active() -> Kernels:
    """Returns the table that is in force here, "cpu" unless `use` says otherwise."""
    return _table(_chosen.get())


@contextmanager
def use(name: str) -> Iterator[Kernels]:
    """Puts the named table in force for the body of a `with` statement.

    The choice follows `contextvars`: it holds for this thread and for the tasks it starts, while
    a thread started inside the body begins with the default again.

    Args:
        name: one of `NAMES`.

    Raises:
        ValueError: when no table has that name.
    """
    if name not in NAMES:
        raise ValueError(f"no kernels named {name!r}: choose from {', '.join(NAMES)}")
    token = _chosen.set(name)
    try:
        yield _table(name)
    finally:
        _chosen.reset(token)
