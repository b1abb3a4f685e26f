"""A run taken up by another number of workers: what is owed is shared out, its mean is kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from thinwire.errors import ConfigError
from thinwire.exchange import Exchange
from thinwire.exchange.base import Memory
from thinwire.shell import LocalSGD

State = dict[str, Any]


def check_regroup(exchange: Exchange, old: int, new: int) -> None:
    """Raises a ConfigError where a run of this exchange cannot be taken up by another N."""
    if exchange.pace != "common":
        raise ConfigError(
            f"this snapshot is of {old} workers, and {exchange!r} keeps each worker's clock and "
            f"what it last heard, which {new} workers cannot take up. Resume with {old}, or start "
            "a new run from the model of the snapshot"
        )


def regroup(states: Iterable[State], old: int, optimizer: LocalSGD) -> State:
    """Returns this rank's state of N' workers, made of all N that were saved.

    Where replicas agree: sum(residual) / N is kept, so each residual is scaled by N' / N, and rank
    r of N' takes those of the old ranks r, r + N', ...; a master's own residual is in units of the
    mean and stays as it is. Where each worker has its own model, all start anew from the mean of
    the anchors, which is what such exchanges keep: replicas are equal again, so p = 0, and nothing
    is owed; a measured consensus step is kept.

    Args:
        states: of `LocalSGD`, in rank order.
        old: N.
        optimizer: this rank's, of N' workers.

    Raises:
        ConfigError: it was taken in the middle of a round.
    """
    rank, new = optimizer.place
    own = optimizer.state_dict()
    total, mems, taken = torch.zeros_like(own["anchor"], device="cpu"), [], own
    for number, state in enumerate(states):
        if state["local"]:
            raise ConfigError(
                f"this snapshot of {old} workers was taken in the middle of a round, so only {old} "
                "workers can take it up; call Snapshots.after_step after every step"
            )
        total += state["anchor"]
        if number == rank % old:
            taken = state
        # Of what is large, only what goes on here is kept.
        mems.append({k: v for k, v in state["mem"].items() if _goes_on(k, number, rank, new)})
    shared = optimizer.exchange.replicates
    return {
        **taken,
        "anchor": taken["anchor"] if shared else total / total.new_full((), old),
        "mem": _owed(mems, own["mem"], new / old) if shared else _anew(mems, own["mem"]),
        "settings": own["settings"],
        "rank": rank,
    }


def _goes_on(name: str, number: int, rank: int, new: int) -> bool:
    return name in ("down", "gamma") or (name == "residual" and number % new == rank)


def _owed(mems: list[Memory], own: Memory, scale: float) -> Memory:
    mem = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in own.items()}
    for old in mems:
        for name in mem.keys() & old.keys():
            mem[name] += old[name]
    return {name: v * _float32(scale) if name == "residual" else v for name, v in mem.items()}


def _anew(mems: list[Memory], own: Memory) -> Memory:
    measured = next((mem["gamma"] for mem in mems if "gamma" in mem), None)
    return own if measured is None else {**own, "gamma": measured}


def _float32(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float32)
