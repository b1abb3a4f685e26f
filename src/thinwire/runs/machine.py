"""What a reader of a measurement must know of the machine it was taken on."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any


def machine() -> dict[str, Any]:
    """Returns what a reader of a measurement must know of the machine, and nothing that names it.

    Example:
        >>> sorted(machine())
        ['cores', 'cpu', 'memory_bytes', 'numba', 'platform', 'python', 'torch']
    """
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numba": _version("numba"),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def ran_on(**more: str) -> str:
    """Returns what a reader of a figure must know of the machine, and of more, in one line."""
    return ", ".join(f"{name} {value}" for name, value in {**machine(), **more}.items())


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
