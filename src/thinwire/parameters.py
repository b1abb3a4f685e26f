"""Which tensors take part: a model's parameters, its buffers, and the inner optimizer's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from thinwire.errors import ConfigError

Buffers = Literal["local", "average", "broadcast"]
Named = Sequence[tuple[str, Tensor]]
Given = nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]


def named_parameters(given: Given) -> Named:
    """Returns the named parameters that take part: those that require a gradient, each once.

    Args:
        given: a module, parameters, or (name, parameter) pairs.
    """
    if isinstance(given, nn.Module):
        return [(name, p) for name, p in given.named_parameters() if p.requires_grad]
    named: dict[int, tuple[str, Tensor]] = {}
    for number, item in enumerate(given):
        name, p = item if isinstance(item, tuple) else (f"param{number}", item)
        if not isinstance(p, Tensor):
            raise ConfigError(f"LocalSGD takes a module or its parameters, not {p!r}")
        if p.requires_grad:
            named.setdefault(id(p), (name, p))
    return list(named.values())


def named_buffers(given: Given, buffers: Buffers) -> Named:
    """Returns the floating-point buffers that are shared at every round.

    Raises:
        ConfigError: they are to be shared, and only parameters were given.
    """
    if buffers == "local":
        return []
    if not isinstance(given, nn.Module):
        raise ConfigError(f"buffers={buffers!r} needs the model itself, not its parameters")
    return [(name, b) for name, b in given.named_buffers() if b.is_floating_point()]


def check_same(named: Named, inner: torch.optim.Optimizer) -> None:
    """Raises a ConfigError unless the inner optimizer steps exactly these parameters."""
    given = {id(p) for _, p in named}
    stepped = {id(p) for g in inner.param_groups for p in g["params"] if p.requires_grad}
    missing = [name for name, p in named if id(p) not in stepped]
    if missing:
        raise ConfigError(
            f"the inner optimizer does not step {', '.join(missing[:5])}: give it the same "
            "parameters as LocalSGD, or freeze those with requires_grad_(False)"
        )
    if stepped - given:
        raise ConfigError(
            f"the inner optimizer steps {len(stepped - given)} tensors that LocalSGD was not "
            "given: they would drift apart between ranks; give both the same parameters"
        )
    bad = [f"{name} ({p.dtype})" for name, p in named if not p.is_floating_point()]
    if bad or not named:
        raise ConfigError(
            f"LocalSGD averages floating-point parameters; got {', '.join(bad) or 'none'}"
        )


def described(named: Named, part: str) -> list[list[str]]:
    """Returns name, shape, dtype and part of each tensor, as ranks compare them."""
    return [[n, str(tuple(t.shape)), str(t.dtype).removeprefix("torch."), part] for n, t in named]
