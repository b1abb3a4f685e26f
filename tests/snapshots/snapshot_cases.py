"""What the snapshots' tests share: a run of N workers in one process that keeps snapshots."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from shell_cases import Inner, Run, backward, momentum, net

import thinwire as tw

_FOLDERS = itertools.count()


def in_memory() -> str:
    """A folder of this process that nobody else has."""
    return f"memory://snapshots-{next(_FOLDERS)}"


class Kept(Run):
    """N workers, each with snapshots in one folder; each draws noise for its data."""

    def __init__(
        self,
        folder: str | Path,
        N: int = 2,
        inner: Inner = momentum,
        *,
        start: int = 0,
        parts: bool = True,
        every: int = 1,
        keep: int = 2,
        heed: int = 1,
        model=None,
        **arguments: Any,
    ) -> None:
        super().__init__(N, inner, (lambda: net(start)) if model is None else model, **arguments)
        self.draws = [torch.Generator().manual_seed(100 * start + rank) for rank in range(N)]
        self.keepers = [
            tw.Snapshots(folder, every=every, keep=keep, heed=heed, signals=()) for _ in range(N)
        ]
        each = zip(self.keepers, self.nets, self.shells, self.draws, strict=True)
        talks = [
            k.resume_talk(m, s, **({"noise": d} if parts else {})) for k, m, s, d in each
        ]  # fmt: skip
        try:
            self.resumed = self.cluster.run(talks)
        except BaseException:
            self.close()
            raise
        self.done = self.keepers[0].step

    def gradients(self) -> None:
        for rank, (model, draws) in enumerate(zip(self.nets, self.draws, strict=True)):
            backward(model, rank, self.done)
            for p in model.parameters():
                p.grad += 0.1 * torch.randn(p.shape, generator=draws).to(p.dtype)

    def step(self) -> bool:
        super().step()
        told = self.cluster.run([k.after_step_talk() for k in self.keepers])
        assert len(set(told)) == 1
        return told[0]

    def take(self) -> None:
        self.cluster.run([k.take_talk() for k in self.keepers])

    def settle(self) -> Kept:
        """Waits for the disk."""
        for k in self.keepers:
            k._writing.wait()
        return self

    def close(self) -> None:
        for k in self.keepers:
            k.close()


def files_of(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != "lock")
