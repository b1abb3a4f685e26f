"""Lets torchvision be imported beside a torch its compiled operators were not built for.

The recipes use its models, `ImageFolder` and transforms, and none of its operators; but its import
asks for the schemas of two. Only tests need this: where torchvision belongs to torch, it is silent.
"""

from __future__ import annotations

import torch

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_kept: list[torch.library.Library] = []


def define() -> None:
    """Defines the two schemas, unless torchvision's own library brings them."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        _forget()
        _kept.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name, schema in SCHEMAS.items():
            _kept[-1].define(name + schema)


def _forget() -> None:
    import sys

    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
