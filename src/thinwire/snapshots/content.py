"""What a snapshot's file says: a head of JSON to compare, then the state as torch writes it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import torch

from thinwire.errors import ConfigError
from thinwire.exchange.agree import show, show_tensor
from thinwire.snapshots.folder import Writer

FORMAT = 1
LENGTH = 8

Head = dict[str, Any]


def filler(head: Head, state: dict[str, Any]) -> Callable[[Writer], None]:
    """Returns what writes this head and this state.

    Args:
        head: as JSON.
        state: plain data and tensors.
    """

    def fill(file: Writer) -> None:
        text = json.dumps(head).encode()
        file.write(len(text).to_bytes(LENGTH, "little"))
        file.write(text)
        torch.save(state, file)  # type: ignore[arg-type]

    return fill


def head_of(content: memoryview) -> Head:
    """Returns the head of a whole file's content."""
    head: Head = json.loads(bytes(content[LENGTH : LENGTH + _length(content)]))
    return head


def state_of(content: memoryview) -> dict[str, Any]:
    """Returns the state in a whole file's content; no code of the file is run."""
    file = io.BytesIO(content[LENGTH + _length(content) :])
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def check_head(saved: Head, own: Head, where: str) -> None:
    """Raises a ConfigError where a snapshot is of another version, model or run.

    Args:
        saved: of the snapshot; only N may differ.
        own: what this run would write.
        where: the folder.
    """
    way_out = "give the same, or another folder"
    if saved["format"] != own["format"]:
        raise ConfigError(
            f"{where} is written in format {saved['format']}, by thinwire {saved['thinwire']}; "
            f"thinwire {own['thinwire']} reads format {own['format']}. Install that version, or "
            "give another folder"
        )
    for number in range(max(len(saved["tensors"]), len(own["tensors"]))):
        theirs, ours = ((h["tensors"][number : number + 1] or [None])[0] for h in (saved, own))
        if theirs != ours:
            raise ConfigError(
                f"{where} is of another model: its tensor {number} is {show_tensor(theirs)}, this "
                f"one's {show_tensor(ours)}; {way_out}"
            )
    for name in sorted({*saved["settings"], *own["settings"]} - {"N"}):
        theirs, ours = (h["settings"].get(name) for h in (saved, own))
        if theirs != ours:
            raise ConfigError(
                f"{where} is of a run with {name} {show(theirs)}, this one has {show(ours)}; "
                f"{way_out}"
            )
    if saved["parts"] != own["parts"]:
        raise ConfigError(
            f"{where} holds the parts {saved['parts']}, resume was given {own['parts']}; {way_out}"
        )


def _length(content: memoryview) -> int:
    return int.from_bytes(content[:LENGTH], "little")
