"""The programs of the recipes, each of which is called run.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

RECIPES = Path(__file__).parents[2] / "recipes"


def program(recipe: str) -> ModuleType:
    """Returns a recipe's run.py, as a module with a name of its own."""
    name = f"{recipe}_run"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, RECIPES / recipe / "run.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
