"""Where a hub's first model comes from: a checkpoint, or a function that builds it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thinwire import parameters
from thinwire.errors import ConfigError


def load_model(source: str) -> list[tuple[str, Tensor]]:
    """Returns the named parameters that a source holds.

    Args:
        source: a file that `torch.save` wrote, of `{name: parameter}` in the model's order; or
            "package.module:function", which is called and returns a module or such pairs.

    Raises:
        ConfigError: there is none.
    """
    if Path(source).is_file():
        return _of_checkpoint(Path(source))
    module, colon, function = source.partition(":")
    if not colon:
        raise ConfigError(
            f"{source} is no file; give a checkpoint, or package.module:function, which returns "
            "the model"
        )
    sys.path.insert(0, "")
    try:
        made: Any = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{source} cannot be called: {error}") from error
    finally:
        sys.path.remove("")
    return list(parameters.named_parameters(made))


def _of_checkpoint(file: Path) -> list[tuple[str, Tensor]]:
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"{file} is no checkpoint of tensors: {error}") from error
    if isinstance(saved, dict) and all(isinstance(t, Tensor) for t in saved.values()) and saved:
        given = [(name, nn.Parameter(t)) for name, t in saved.items() if t.is_floating_point()]
        return list(parameters.named_parameters(given))
    raise ConfigError(
        f"{file} holds no {{name: tensor}}; save one with "
        "torch.save(dict(model.named_parameters()), file)"
    )
