"""The ImageNet recipe as a user starts it, with torchvision made importable first."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import torchvision_schemas

RECIPE = Path(__file__).parents[2] / "recipes" / "imagenet"

if __name__ == "__main__":
    torchvision_schemas.define()
    sys.path.insert(0, str(RECIPE))
    runpy.run_path(str(RECIPE / "train_imagenet.py"), run_name="__main__")
