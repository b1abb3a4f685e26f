"""Which files make a set, and which set a gang takes up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NAME = re.compile(r"snapshot-(\d{12})-rank-(\d+)-of-(\d+)\.tws")


@dataclass(frozen=True, order=True)
class File:
    """The file of one rank.

    Args:
        step: local steps done when it was taken.
        N: workers there were.
        rank: whose it is.
    """

    step: int
    N: int
    rank: int

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return f"snapshot-{self.step:012d}-rank-{self.rank}-of-{self.N}.tws"

    @staticmethod
    def of(name: str) -> File | None:
        """Returns the file of that name, or None where it is no snapshot's.

        Example:
            >>> File.of(File(50, 4, 3).name)
            File(step=50, N=4, rank=3)
        """
        match = NAME.fullmatch(name)
        step, rank, N = (int(n) for n in match.groups()) if match else (0, 0, 0)
        return File(step, N, rank) if match and rank < N else None


def needed(files: Iterable[File], rank: int, N: int) -> list[File]:
    """Returns the files among these that a rank must read to take up their sets, newest first.

    Of a set of as many workers its own; of another, where everything is shared out anew, all.

    Args:
        files: in the folder as this rank sees it.
        rank: this worker.
        N: workers there are now.
    """
    return sorted((f for f in files if f.N != N or f.rank == rank), reverse=True)


def complete(seen: Sequence[Iterable[File]]) -> list[tuple[int, int]]:
    """Returns (step, N') of every set that all ranks can take up, newest first.

    Args:
        seen: of each rank now, the files it needs and found whole.
    """
    N = len(seen)
    each = [set(files) for files in seen]
    sets = {(f.step, f.N) for files in each for f in files}

    def whole(step: int, old: int) -> bool:
        if old == N:
            return all(File(step, N, rank) in files for rank, files in enumerate(each))
        return all(File(step, old, r) in files for files in each for r in range(old))

    return sorted(
        (s for s in sets if whole(*s)), key=lambda s: (s[0], s[1] == N, s[1]), reverse=True
    )
