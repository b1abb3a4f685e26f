"""What a checkpoint holds, and whether it fits the run that takes it up."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from thinwire import host
from thinwire.errors import ConfigError
from thinwire.round import RoundState

FORMAT = 1


def save(inner: torch.optim.Optimizer, state: RoundState, **rest: Any) -> dict[str, Any]:
    """Returns plain data and tensors of their own: training on changes nothing in them.

    Args:
        inner: the inner optimizer.
        state: of the rounds.
        rest: what else must be the same or must go on: settings, tensors, rank, counters.
    """
    return {
        "format": FORMAT,
        "inner_class": type(inner).__name__,
        "inner": copy.deepcopy(inner.state_dict()),
        "anchor": state.anchor.clone(),
        "mem": {name: tensor.clone() for name, tensor in state.mem.items()},
        "outer": {name: tensor.clone() for name, tensor in state.outer.items()},
        "round": state.round,
        **rest,
    }


def load(saved: dict[str, Any], own: dict[str, Any], same: tuple[str, ...]) -> RoundState:
    """Returns the round state that was saved, after everything else has been found to fit.

    Args:
        saved: what `save` returned then.
        own: what it would return now.
        same: the fields that must be equal.

    Raises:
        ConfigError: something is missing, or does not fit; nothing has been changed.
    """
    if not isinstance(saved, dict):
        raise ConfigError(f"{saved!r} is no state of LocalSGD")
    missing = sorted(own.keys() - saved.keys())
    if missing:
        raise ConfigError(f"this state lacks {', '.join(missing)}; it was not saved by LocalSGD")
    for name in ("format", "inner_class", *same):
        if saved[name] != own[name]:
            raise ConfigError(
                f"this state was saved with {name} {saved[name]!r}; here it is {own[name]!r}"
            )
    for name in ("round", "local"):
        if type(saved[name]) is not int or saved[name] < 0:
            raise ConfigError(f"this state's {name} is {saved[name]!r}; expected a whole number")
    for name in ("mem", "outer"):
        _check_tensors(name, saved[name], own[name])
    _check_tensors("anchor", {"anchor": saved["anchor"]}, {"anchor": own["anchor"]})
    device = own["anchor"].device
    return RoundState(
        anchor=saved["anchor"].to(device, copy=True),
        mem={name: _at_home(tensor, device) for name, tensor in saved["mem"].items()},
        outer={name: _at_home(tensor, device) for name, tensor in saved["outer"].items()},
        round=saved["round"],
    )


def residual_of(
    saved: dict[str, Any], own: dict[str, Any], round: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the inner optimizer's state, and the residual if it is of that round.

    Args:
        saved: what `save` returned when this worker was last here.
        own: what it would return now.
        round: the round the worker is in on its hub; an older residual has partly been said since.

    Raises:
        ConfigError: it is another worker's, or of other settings.
    """
    state = load(saved, own, ("settings", "tensors", "rank"))
    owed = state.mem.get("residual")
    inner = copy.deepcopy(saved["inner"])
    return inner, {} if owed is None or state.round != round else {"residual": owed}


def _check_tensors(part: str, saved: Any, own: dict[str, Tensor]) -> None:
    # What an exchange comes to remember on its way: a measured step, replicas of workers met,
    # a master's model.
    names = saved.keys() ^ own.keys() if isinstance(saved, dict) else own.keys()
    if any(not _is_gained(name) for name in names) or not isinstance(saved, dict):
        raise ConfigError(f"this state's {part} holds {list(saved)}; expected {list(own)}")
    for name, tensor in saved.items():
        like = own.get(name)
        fits = isinstance(tensor, Tensor) and (
            like is None or (tensor.shape, tensor.dtype) == (like.shape, like.dtype)
        )
        if not fits or not bool(tensor.isfinite().all()):
            raise ConfigError(
                f"this state's {part} {name!r} has another shape or dtype, or is not finite"
            )


def _at_home(tensor: Tensor, device: torch.device) -> Tensor:
    # Vectors of floats live with the parameters; numbers and flags on the host.
    vector = tensor.dim() == 1 and tensor.is_floating_point()
    return tensor.to(device if vector else host.CPU, copy=True)


def _is_gained(name: str) -> bool:
    gained = ("gamma", "start", "owed", "asked")
    return name in gained or name.startswith(("mine/", "theirs/", "master/"))
