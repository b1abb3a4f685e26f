"""What the Numba kernels share: one decorator and the views of torch tensors that they take."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.cpython.unsafe import numbers
from numba.extending import intrinsic

Array = npt.NDArray[Any]
# A machine number inside a kernel: Numba infers its type, and mypy cannot follow the widening.
Number = Any

trailing_zeros: Any = numbers.trailing_zeros
"""Counts the zero bits below the lowest one of an unsigned number, inside a kernel."""


@intrinsic  # type: ignore[misc, untyped-decorator, unused-ignore]
def _pointer(typing: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), code


pointer: Any = _pointer
"""Turns an address into a pointer, inside a kernel."""


@intrinsic  # type: ignore[misc, untyped-decorator, unused-ignore]
def _prefetch(typing: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        module: Any = cgutils
        call = module.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.inttoptr(args[0], cgutils.voidptr_t)
        # To be read, to be kept in every cache, data.
        builder.call(call, [place, number(0), number(0), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), code


prefetch: Any = _prefetch
"""Asks for the cache line at an address, inside a kernel; any address is safe to ask for."""


EARLY = 192
"""So many entries ahead are asked for where they lie far apart. Memory takes some 100 ns to answer,
and a line that came early stays in the first cache for that long."""


@intrinsic  # type: ignore[misc, untyped-decorator, unused-ignore]
def _word_at(typing: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), align=1)

    return types.uint64(types.int64), code


word_at: Any = _word_at
"""Reads the 8 bytes at an address as a number, lowest first, inside a kernel."""

LINE = 64
"""Entries that are looked at in one vector operation, whose answer is a word."""
_KEYS, _FLOATS = (ir.VectorType(kind, LINE) for kind in (ir.IntType(32), ir.FloatType()))


def _everywhere(builder: Any, value: Any, line: Any) -> Any:
    """Writes a line of so many times the same value."""
    nothing = ir.Constant(line, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_KEYS, [0] * LINE))


def _reached(builder: Any, keys: Any, mask: Any, limit: Any) -> Any:
    """Writes a comparison of a line of keys; the answer's bit j is entry j's."""
    masks, limits = (_everywhere(builder, value, _KEYS) for value in (mask, limit))
    reached = builder.icmp_unsigned(">=", builder.and_(keys, masks), limits)
    return builder.bitcast(reached, ir.IntType(LINE))


@intrinsic  # type: ignore[misc, untyped-decorator, unused-ignore]
def _reaching(typing: Any, address: Any, mask: Any, limit: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        keys = builder.load(builder.inttoptr(args[0], _KEYS.as_pointer()), align=4)
        return _reached(builder, keys, *args[1:])

    return types.uint64(types.int64, types.uint32, types.uint32), code


reaching: Any = _reaching
"""Tells which of the 64 uint32 at an address reach a limit under a mask: bit j is entry j's."""


@intrinsic  # type: ignore[misc, untyped-decorator, unused-ignore]
def _owed_reaching(
    typing: Any, a: Any, p: Any, m: Any, out: Any, decay: Any, mask: Any, limit: Any
) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        anchor, params, residual = (
            builder.load(builder.inttoptr(place, _FLOATS.as_pointer()), align=4)
            for place in args[:3]
        )
        decays = _everywhere(builder, args[4], _FLOATS)
        u = builder.fadd(builder.fsub(anchor, params), builder.fmul(residual, decays))
        builder.store(u, builder.inttoptr(args[3], _FLOATS.as_pointer()), align=4)
        return _reached(builder, builder.bitcast(u, _KEYS), *args[5:])

    place, word = types.int64, types.uint32
    return types.uint64(place, place, place, place, types.float32, word, word), code


owed_reaching: Any = _owed_reaching
"""Writes 64 entries of u = (a - p) + decay m, all at addresses, and tells which reach a limit."""

carray: Any = numba.carray  # type: ignore[attr-defined]
"""Views memory at a pointer as an array of so many entries of a dtype, inside a kernel."""

_F = TypeVar("_F", bound=Callable[..., Any])


def kernel(function: _F) -> _F:
    """Compiles a function on its first call, cached on disk and without the interpreter lock."""
    return _compiled(function, nogil=True)


def brief(function: _F) -> _F:
    """Compiles a kernel that keeps the lock, being done sooner than it would be had again."""
    return _compiled(function, nogil=False)


def _compiled(function: _F, nogil: bool) -> _F:
    # The "numpy" error model drops the branch on division by zero, which stops vectorising.
    compiled: Any = numba.njit(nogil=nogil, cache=True, error_model="numpy")(function)
    # Numba knows a cached kernel by its own file alone, and would keep one that froze a constant
    # or took in a function of another file which has changed since. The version it compares
    # first: what other sources left is not even read, since their classes may be gone.
    compiled._cache._cache_file._version += f" {_sources()}"
    return cast(_F, compiled)


def inlined(function: _F) -> _F:
    """Writes a function out wherever a kernel calls it, so that its loops have known lengths."""
    return cast(_F, numba.njit(nogil=True, error_model="numpy", inline="always")(function))


@functools.cache
def _sources() -> str:
    """Returns a digest of every source that a kernel may be made of."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@kernel
def copy(out: Array, data: Array) -> None:
    """Writes the first entries of data to out, all that it has room for."""
    # By hand: what NumPy does for out[:] = data takes each kernel a second to compile.
    for j in range(out.size):
        out[j] = data[j]


@kernel
def group_of(starts: Array, position: Number) -> Number:
    """Returns the last group that starts at or before a position, -1 where none does."""
    # By hand: NumPy's search is compiled anew in each kernel that calls it, a second each.
    low, high = 0, starts.size
    while low < high:
        middle = (low + high) // 2
        if starts[middle] <= position:
            low = middle + 1
        else:
            high = middle
    return low - 1


def array(t: torch.Tensor) -> Array:
    """Views a tensor as a contiguous array, copying only one that is not contiguous."""
    # Not asked of one that needs none: each of torch's operations gives the lock back.
    return (t.detach() if t.requires_grad else t).contiguous().numpy()


def bits(t: torch.Tensor) -> Array:
    """Views a float32 tensor as the uint32 bits that hold it."""
    return array(t).view(np.uint32)
