"""Where snapshots lie: a folder of this machine, or any path that fsspec knows."""

from __future__ import annotations

import json
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from thinwire.errors import ConfigError
from thinwire.files import Sealed, whole, written

MAGIC = b"twsnap\x00\x01"
LOCK = "lock"


class Writer(Protocol):
    """Takes bytes; what `torch.save` writes to."""

    def write(self, data: bytes, /) -> int:
        """Writes these bytes and returns how many they are."""
        ...

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        ...


class Folder(ABC):
    """Holds files that are whole or not there, for one job at a time."""

    @abstractmethod
    def names(self) -> list[str]:
        """Returns what lies in it."""

    @abstractmethod
    def write(self, name: str, fill: Callable[[Writer], None]) -> None:
        """Lets `fill` write that file, whole or not at all."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes that file if it is there."""

    @abstractmethod
    def dead(self) -> str | None:
        """Returns the job that has the folder if this rank can tell that it is dead."""

    @abstractmethod
    def claim(self, job: str, dead: set[str]) -> None:
        """Makes this folder that job's, whose ranks may all claim it, until `free`.

        Args:
            job: a name that no other has.
            dead: jobs that some rank knows to be dead.

        Raises:
            ConfigError: another job has it.
        """

    @abstractmethod
    def free(self) -> None:
        """Lets another job have the folder."""

    def read(self, name: str) -> memoryview | None:
        """Returns what `write` was given, or None where a byte of it is missing or altered."""
        return whole(self._bytes(name), MAGIC)

    @abstractmethod
    def _bytes(self, name: str) -> bytes: ...


def folder_of(where: str | Path) -> Folder:
    """Returns the folder there: of this machine, or, where it is an URL, by fsspec."""
    text = str(where)
    if "://" in text and not text.startswith(("file://", "local://")):
        return Remote(text)
    return Local(Path(text.removeprefix("file://").removeprefix("local://")))


class Local(Folder):
    """A folder of this machine, or one that is mounted.

    Args:
        path: made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = None

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        return [file.name for file in self.path.iterdir()]

    def write(self, name: str, fill: Callable[[Writer], None]) -> None:
        with written(self.path / name, MAGIC) as file:
            fill(file)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def dead(self) -> None:
        return None

    def claim(self, job: str, dead: set[str]) -> None:
        import fcntl

        # The system lets go of a lock when its process ends, however it ends.
        lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.pwrite(lock, job.encode(), 0)
        except BlockingIOError:
            pass  # A rank of this job was first; or another job.
        # Whoever is first holds it alone only while it writes its name.
        fcntl.flock(lock, fcntl.LOCK_SH)
        if os.pread(lock, 1024, 0).decode() != job:
            os.close(lock)
            raise ConfigError(_taken(str(self), "it ends"))
        self._lock = lock

    def free(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _bytes(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class Remote(Folder):
    """A path that fsspec knows: an object store, another host, or `memory://` in tests.

    Args:
        url: such as "s3://bucket/run".
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        self._fs, self._path = fsspec.core.url_to_fs(self.url)
        self._fs.makedirs(self._path, exist_ok=True)
        self._job: str | None = None

    def __str__(self) -> str:
        return self.url

    def names(self) -> list[str]:
        self._fs.invalidate_cache()
        while True:
            try:
                listed = self._fs.ls(self._path, detail=False)
            except KeyError:
                continue  # memory:// trips over what another thread moves meanwhile.
            return [path.rpartition("/")[2] for path in listed]

    def write(self, name: str, fill: Callable[[Writer], None]) -> None:
        held = self._holder()
        if held is not None and held["job"] != self._job:
            raise ConfigError(_taken(str(self), "it ends"))
        temporary = self._at(Path(name).with_suffix(".part").name)
        try:
            with self._fs.open(temporary, "wb") as file:
                sealed = Sealed(file, MAGIC)
                fill(sealed)
                sealed.end()
            self._fs.mv(temporary, self._at(name))
        except BaseException:
            if self._fs.exists(temporary):
                self._fs.rm_file(temporary)
            raise

    def remove(self, name: str) -> None:
        if self._fs.exists(self._at(name)):
            self._fs.rm_file(self._at(name))

    def dead(self) -> str | None:
        held = self._holder()
        if held is None or held["host"] != platform.node():
            return None
        try:
            os.kill(held["process"], 0)
        except ProcessLookupError:
            return str(held["job"])
        except PermissionError:
            pass
        return None

    def claim(self, job: str, dead: set[str]) -> None:
        # No file system at hand creates a file exclusively by every protocol, so what is written
        # is read back, before each write too: of two jobs that come at once the later one stays.
        held = self._holder()
        if held is None or held["job"] in dead:
            mine = {"job": job, "host": platform.node(), "process": os.getpid()}
            self._fs.pipe_file(self._at(LOCK), json.dumps(mine).encode())
            held = self._holder()
        if held is None or held["job"] != job:
            raise ConfigError(_taken(str(self), f"it ends; if it has ended, remove {LOCK} there"))
        self._job = job

    def free(self) -> None:
        held = self._holder() if self._job else None
        if held is not None and held["process"] == os.getpid():
            self.remove(LOCK)
        self._job = None

    def _holder(self) -> dict[str, Any] | None:
        try:
            held = json.loads(self._fs.cat_file(self._at(LOCK)))
        except (FileNotFoundError, ValueError):
            return None
        return held if isinstance(held, dict) and {"job", "host", "process"} <= set(held) else None

    def _bytes(self, name: str) -> bytes:
        content: bytes = self._fs.cat_file(self._at(name))
        return content

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"


def _taken(where: str, until: str) -> str:
    return (
        f"another job writes its snapshots to {where}: two would take up each other's. Give this "
        f"one a folder of its own, or wait until {until}"
    )
