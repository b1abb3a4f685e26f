"""What a snapshot's file says: a head of JSON to compare, then the state as torch writes it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import torch

from thinwire.errors import ConfigError, SnapshotError
from thinwire.exchange.agree import show, show_tensor
from thinwire.snapshots.folder import Writer
from thinwire.snapshots.sets import File

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
        try:
            torch.save(state, file)  # type: ignore[arg-type]
        except RuntimeError as error:
            # torch ends its archive even after a write that failed, and then says where it
            # stood; why the file took no more is what was raised before.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    return fill


def head_of(content: memoryview, file: File, where: str) -> Head:
    """Returns the head of a whole file's content.

    Args:
        content: of the file.
        file: which it must be of.
        where: the folder.

    Raises:
        SnapshotError: it is of another file, or of no snapshot.
    """
    try:
        head = json.loads(bytes(content[LENGTH : LENGTH + _length(content)]))
        said = File(head["step"], head["N"], head["rank"])
    except (ValueError, KeyError, TypeError, RecursionError):
        said = None
    if said != file:
        raise SnapshotError(
            f"{where}: {file.name} says it is {said or 'no snapshot'}; somebody has renamed or "
            "written it. Restore the folder from a copy, or start a new run in another one"
        )
    return dict(head)


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
