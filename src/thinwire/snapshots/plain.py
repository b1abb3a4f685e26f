"""What a snapshot may hold: plain data and tensors, as copies of their own."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from thinwire import host
from thinwire.errors import ConfigError

SCALARS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size)
DICTS = (dict, OrderedDict, Counter)


@runtime_checkable
class Part(Protocol):
    """Anything whose state goes into a snapshot: a scheduler, a sampler, a scaler."""

    def state_dict(self) -> dict[str, Any]:
        """Returns plain data and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Takes them up."""
        ...


Parts = dict[str, Part | torch.Generator]


def check_parts(parts: Parts) -> None:
    """Raises a ConfigError unless each part has a state of plain data that can be taken up."""
    for name, part in parts.items():
        if not isinstance(part, (Part, torch.Generator)):
            raise ConfigError(
                f"snapshots: {name} is {part!r}; give a torch.Generator, or an object with "
                "state_dict and load_state_dict"
            )
    states_of(parts)


def states_of(parts: Parts) -> dict[str, Any]:
    """Returns each part's state by name, copied."""
    return {name: _state_of(part, name) for name, part in parts.items()}


def take_up(part: Part | torch.Generator, state: Any) -> None:
    """Puts a part where it was when `states_of` looked at it."""
    if isinstance(part, torch.Generator):
        part.set_state(state)
    else:
        part.load_state_dict(state)


def plain(value: Any, where: str) -> Any:
    """Returns a copy on the host that `torch.load(weights_only=True)` reads back.

    Args:
        value: plain data, containers of it, and tensors.
        where: names it in errors.

    Raises:
        ConfigError: something in it is neither.

    Example:
        >>> plain({"lr": [0.1, 0.2]}, "scheduler")
        {'lr': [0.1, 0.2]}
        >>> plain({"hook": print}, "scheduler")
        Traceback (most recent call last):
        ...
        thinwire.errors.ConfigError: snapshots: scheduler['hook'] is a builtin_function_or_method...
    """
    kind = type(value)
    if isinstance(value, Tensor):
        return value.detach().to(host.CPU, copy=True)
    if isinstance(value, np.generic):
        return value.item()
    if kind in SCALARS:
        return value
    if kind in DICTS:
        return kind({k: plain(v, f"{where}[{k!r}]") for k, v in value.items()})
    if kind in (list, tuple, set):
        return kind(plain(v, f"{where}[{n}]") for n, v in enumerate(value))
    raise ConfigError(
        f"snapshots: {where} is a {kind.__name__}, which no snapshot holds: reading it back would "
        "run code of the file. Let its state_dict return plain data and tensors"
    )


def _state_of(part: Part | torch.Generator, name: str) -> Any:
    return part.get_state() if isinstance(part, torch.Generator) else plain(part.state_dict(), name)
