"""A hub's state as bytes and back: one JSON head, then the tensors and what can be repeated."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch

from thinwire import host
from thinwire.errors import ConfigError
from thinwire.hub.state import HubState, Member, Ring

VECTORS = ("anchor", "owed", "touched")
COUNTS = ("version", "applied", "unsaid", "refused", "staleness", "histogram")
DTYPES = {"float32": torch.float32, "int64": torch.int64}


def encode(state: HubState, about: dict[str, Any]) -> list[bytes | memoryview]:
    """Returns the parts of a snapshot; they do not change when the state does.

    Args:
        state: of the hub.
        about: what a restart compares: settings, tensors, run.
    """
    tensors = {name: getattr(state, name) for name in VECTORS if getattr(state, name) is not None}
    tensors |= {f"outer/{name}": tensor for name, tensor in state.outer.items()}
    head = {
        "about": about,
        "tensors": [
            [name, str(t.dtype).removeprefix("torch."), len(t)] for name, t in tensors.items()
        ],
        "counts": {name: getattr(state, name) for name in COUNTS},
        "members": {name: asdict(member) for name, member in state.members.items()},
        "ring": {
            "last": state.ring.last,
            "stamps": [stamp for stamp, _ in state.ring.entries],
            "lengths": [len(entry) for _, entry in state.ring.entries],
        },
    }
    text = json.dumps(head).encode()
    copies = [memoryview(t.clone().numpy()).cast("B") for t in tensors.values()]
    entries = [entry for _, entry in state.ring.entries]
    return [len(text).to_bytes(8, "little"), text, *copies, *entries]


def about_of(content: bytes) -> dict[str, Any]:
    """Returns what a snapshot says of the run it belongs to."""
    about: dict[str, Any] = _head(content)[0]["about"]
    return about


def decode(content: bytes, memory: int) -> HubState:
    """Returns the state that `encode` wrote.

    Args:
        content: of a snapshot.
        memory: bytes of the ring.
    """
    head, at = _head(content)
    view, tensors = memoryview(content), {}
    for name, dtype, n in head["tensors"]:
        size = n * DTYPES[dtype].itemsize
        tensors[name] = host.empty(n, DTYPES[dtype])
        host.bytes_of(tensors[name])[:] = view[at : at + size]
        at += size
    ring = Ring(memory, head["ring"]["last"] - len(head["ring"]["lengths"]))
    for stamp, length in zip(head["ring"]["stamps"], head["ring"]["lengths"], strict=True):
        ring.push(stamp, bytes(view[at : at + length]))
        at += length
    return HubState(
        **{name: tensors.get(name) for name in VECTORS},  # type: ignore[arg-type]
        outer={k.removeprefix("outer/"): t for k, t in tensors.items() if k.startswith("outer/")},
        ring=ring,
        members={name: Member(**member) for name, member in head["members"].items()},
        **head["counts"],
    )


def check_same_run(saved: dict[str, Any], own: dict[str, Any], folder: object) -> None:
    """Raises a ConfigError where a state belongs to other settings or another model."""
    for name in ("settings", "tensors"):
        if _without_memory(saved[name]) != _without_memory(own[name]):
            raise ConfigError(
                f"{folder} is the state of a run with {name} {saved[name]!r}; this hub was started "
                f"with {own[name]!r}. Give the same, or another folder"
            )


def _without_memory(settings: Any) -> Any:
    """Returns settings less those of bytes that are kept, which nothing that is saved rests on."""
    if isinstance(settings, dict):
        return {k: _without_memory(v) for k, v in settings.items() if k != "memory"}
    return settings


def _head(content: bytes) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(content[:8], "little")
    head: dict[str, Any] = json.loads(content[8 : 8 + length])
    return head, 8 + length
