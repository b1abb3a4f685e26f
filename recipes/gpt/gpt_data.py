"""The text: Python's own standard library, which is on every machine, or files of one's own."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import thinwire as tw

AWAY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
HELD_OUT = 20
"""One file in so many is kept for validation, by the hash of its content; of one file, its end."""


@dataclass(frozen=True, eq=False)
class Text:
    """Bytes to learn and bytes to be judged by.

    Args:
        train: (n,) uint8.
        held: (m,) uint8.
        name: what it is, with a digest, so that a log says what was learned.
    """

    train: Tensor
    held: Tensor
    name: str

    def batch(
        self, rank: int, N: int, size: int, context: int, draws: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns windows of rank's N-th of the text, and the same one byte on: (size, context)."""
        n = len(self.train)
        low, high = rank * n // N, (rank + 1) * n // N - context - 1
        starts = torch.randint(low, high, (size,), generator=draws)
        return _windows(self.train, starts, context)

    def judged(self, windows: int, context: int) -> tuple[Tensor, Tensor]:
        """Returns windows spread evenly over the held-out text, always the same."""
        last = len(self.held) - context - 1
        starts = torch.arange(windows) * last // max(1, windows - 1)
        return _windows(self.held, starts, context)


def standard_library() -> list[Path]:
    """Returns the source files of Python's standard library, its tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(root.rglob("*.py"))
    return [file for file in found if not AWAY & set(file.relative_to(root).parts)]


def load(files: Sequence[Path], context: int) -> Text:
    """Returns the text of these files, or of the standard library where there are none.

    Raises:
        ConfigError: a file cannot be read, or there is too little text.
    """
    contents = []
    for file in files or standard_library():
        try:
            contents.append(file.read_bytes())
        except OSError as error:
            raise tw.ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    kept = [c for c in contents if int(hashlib.sha256(c).hexdigest(), 16) % HELD_OUT]
    held = [c for c in contents if not int(hashlib.sha256(c).hexdigest(), 16) % HELD_OUT]
    if not kept or not held:
        whole = b"".join(contents)
        end = len(whole) - len(whole) // HELD_OUT
        kept, held = [whole[:end]], [whole[end:]]
    train, judged = b"".join(kept), b"".join(held)
    if min(len(train), len(judged)) < 64 * context:
        raise tw.ConfigError(
            f"{len(train)} bytes to learn and {len(judged)} held out are too few for windows of "
            f"{context}; give more text"
        )
    digest = hashlib.sha256(train).hexdigest()[:8]
    source = "given files" if files else "Python's standard library"
    return Text(_tensor(train), _tensor(judged), f"{source}, {len(train)} bytes, {digest}")


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    found = text[starts[:, None] + torch.arange(context + 1)].long()
    return found[:, :-1], found[:, 1:]


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
