"""One rank's view of the folder: what is there, what it writes, and what it may remove."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from thinwire.errors import SnapshotError
from thinwire.snapshots.folder import Writer, folder_of
from thinwire.snapshots.sets import File, needed

LOG = logging.getLogger("thinwire")


class Shelf:
    """The files of one rank; it removes no other's.

    Args:
        where: the folder.
        rank: this worker.
        N: workers in all.
        keep: complete sets that are kept.
    """

    def __init__(self, where: str | Path, rank: int, N: int, keep: int) -> None:
        self.rank, self.N, self.keep = rank, N, keep
        self.complete: list[int] = []
        self._folder = folder_of(where)
        self.dead, self.claim, self.free = self._folder.dead, self._folder.claim, self._folder.free

    def __str__(self) -> str:
        return str(self._folder)

    def look(self) -> tuple[list[File], list[File]]:
        """Returns the files that this rank needs: those that are whole, and those that are not."""
        seen: list[File] = []
        broken: list[File] = []
        for file in needed(self._files(), self.rank, self.N):
            (broken if self._folder.read(file.name) is None else seen).append(file)
        return seen, broken

    def read(self, file: File) -> memoryview:
        """Returns a file's content.

        Raises:
            SnapshotError: it is not whole any more.
        """
        content = self._folder.read(file.name)
        if content is None:
            raise SnapshotError(f"{self}: {file.name} was whole and is no longer; try again")
        return content

    def write(self, step: int, fill: Callable[[Writer], None]) -> None:
        """Writes this rank's file of that step, whole or not at all."""
        self._folder.write(File(step, self.N, self.rank).name, fill)

    def forget_newer(self, step: int) -> None:
        """Removes what this rank wrote of sets that never were complete.

        Were it left, such files and new ones of the same name could make up a set of two histories.
        """
        for name in self._folder.names():
            unfinished = name.endswith(".part")
            file = File.of(name.removesuffix(".part") + ".tws" if unfinished else name)
            mine = file is not None and (file.N, file.rank) == (self.N, self.rank)
            if mine and file is not None and (unfinished or file.step > step):
                self._folder.remove(name)

    def completed(self, step: int) -> None:
        """Notes that all ranks have that step's files, and removes what is older than is kept."""
        self.complete = sorted({*self.complete, step})[-self.keep :]
        if len(self.complete) < self.keep:
            return
        for file in self._files():
            if file.rank % self.N == self.rank and file.step < self.complete[0]:
                try:
                    self._folder.remove(file.name)
                except OSError as error:
                    LOG.warning("%s: %s stays: %s", self, file.name, error)

    def _files(self) -> list[File]:
        return [file for name in self._folder.names() if (file := File.of(name)) is not None]
