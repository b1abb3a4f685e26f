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

from torch import Tensor

from thinwire.kernels.checks import packed_bytes
from thinwire.kernels.owed import Owed
from thinwire.kernels.reference import Key, index_bytes_bound

__all__ = ["NAMES", "Kernels", "Key", "Owed", "active", "index_bytes_bound", "packed_bytes", "use"]

NAMES = ("reference", "cpu")


@dataclass(frozen=True)
class Kernels:
    """One complete set of operations; `thinwire.kernels.reference` defines each of them."""

    name: str
    words: Callable[[int, Key], Tensor]
    first_nonfinite: Callable[[Tensor, Tensor], int]
    topk: Callable[[Tensor, Tensor, Tensor], Tensor]
    owe: Callable[[Owed], Tensor]
    pick: Callable[[Owed, Tensor, Tensor], tuple[Tensor, Tensor]]
    settle: Callable[[Owed, Tensor, Tensor], None]
    scatter: Callable[[tuple[Tensor, ...], Tensor, Tensor], None]
    land: Callable[[Tensor, tuple[Tensor, ...], int, float], None]
    gather: Callable[[Tensor, Tensor], Tensor]
    randk: Callable[[Tensor, Tensor, Key], Tensor]
    norms: Callable[[Tensor, Tensor, str], Tensor]
    extrema: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    quantize: Callable[[Tensor, Tensor, Tensor, int, Key], Tensor]
    quantize_levels: Callable[[Tensor, Tensor, Tensor, Tensor, int, Key], Tensor]
    signs: Callable[[Tensor], Tensor]
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
