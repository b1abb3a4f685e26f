"""thinwire: training over thin wires. H local steps, then what was learned in few bits.

Start with `LocalSGD` and a preset; read `thinwire.round` to see how it works.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from thinwire.version import __version__ as __version__

if TYPE_CHECKING:
    from thinwire.names import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import: the command line answers, and hears Ctrl-C, before it.
    if name in {module.name for module in iter_modules(__path__)}:  # noqa: F405
        return import_module(f"thinwire.{name}")
    names = import_module("thinwire.names")
    if name != "__all__" and name not in names.__all__:
        raise AttributeError(f"module 'thinwire' has no attribute {name!r}")
    return getattr(names, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("thinwire.names").__all__})
