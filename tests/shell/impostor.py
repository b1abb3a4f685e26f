"""A CUDA device that is none: tensors of the host that claim to be on cuda:0.

It is as strict as a device where it matters: an operation that mixes it with a vector of the host
fails, and so does reading its memory from the host. All that leaves it is written down.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from thinwire.kernels import gpu, gpu_support  # noqa: F401  (all of whose launches are caught)

CUDA = torch.device("cuda", 0)


class Far(torch.Tensor):
    """A tensor of the host that claims to be on cuda:0."""

    near: torch.Tensor
    left: list[tuple[int, ...]] = []  # noqa: RUF012
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        far = torch.Tensor._make_wrapper_subclass(
            cls, near.shape, near.stride(), near.storage_offset(), dtype=near.dtype, device="meta"
        )
        far.near = near.detach()
        return far

    @property
    def device(self) -> torch.device:
        # Below Python it is "meta": torch without CUDA has no guard for another device.
        return CUDA

    def __repr__(self) -> str:
        return f"Far({self.near!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name == "_to_copy" and kwargs.get("device", CUDA).type == "cpu":
            return bring(args[0])
        if name == "copy_" and not isinstance(args[0], Far):
            return args[0].copy_(bring(args[1]))
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        mixed = [
            x
            for x in tree_flatten((args, kwargs))[0]
            if isinstance(x, torch.Tensor) and not isinstance(x, Far) and x.dim()
        ]
        if mixed and name != "copy_":
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, cuda:0")
        answer = func(*tree_map(near, args), **tree_map(near, kwargs))
        if name.endswith("_") and not name.endswith("__"):
            return args[0]
        return tree_map(lambda x: Far(x) if isinstance(x, torch.Tensor) else x, answer)


def near(x: Any) -> Any:
    return x.near if isinstance(x, Far) else x


def bring(far: Far) -> torch.Tensor:
    Far.left.append(tuple(far.shape))
    return far.near.clone()


class Impostor(TorchFunctionMode):
    """Makes tensors on cuda:0 where a program asks for some, which torch without CUDA refuses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            given = [*args[1:], *kwargs.values()]
            device = next((x for x in given if isinstance(x, torch.device)), None)
            if device is not None and not isinstance(args[0], Far) and device.type == "cuda":
                return Far(args[0].clone())
            if device is not None and isinstance(args[0], Far):
                if device.type == "cpu":
                    return bring(args[0])
                return Far(args[0].near.clone()) if kwargs.get("copy") else args[0]
        elif kwargs.get("device") == CUDA:
            return Far(func(*args, **{**kwargs, "device": torch.device("cpu")}))
        return func(*args, **kwargs)


def launched(function: Any, programs: int, *given: Any, **constants: Any) -> None:
    assert all(isinstance(x, Far) for x in given if isinstance(x, torch.Tensor)), function
    gpu_support.launch(function, programs, *map(near, given), **constants)


@contextmanager
def impostor() -> Iterator[list[tuple[int, ...]]]:
    """Puts the impostor in place; what leaves it is added to the list, by shape."""
    with pytest.MonkeyPatch.context() as patch, Impostor():
        for name, module in list(sys.modules.items()):
            if name.startswith("thinwire.kernels.gpu_") and name != gpu_support.__name__:
                patch.setattr(module, "launch", launched, raising=False)
        Far.left = []
        yield Far.left
