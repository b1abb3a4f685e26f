"""Small files in MNIST's format, for what reads them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import torch
from torch import Tensor

from thinwire.cli.idx import FILES


def idx(array: Tensor) -> bytes:
    head = b"\x00\x00\x08" + bytes([array.dim()]) + struct.pack(f">{array.dim()}I", *array.shape)
    return head + array.to(torch.uint8).numpy().tobytes()


def write_digits(folder: Path, zipped: bool) -> Path:
    """Writes ten easy classes, each digit lighting two rows of its own; images zipped or not."""
    g = torch.Generator().manual_seed(0)
    for split, n in (("train", 300), ("test", 100)):
        labels = torch.randint(10, (n,), generator=g)
        images = torch.randint(60, (n, 28, 28), generator=g)
        for i, digit in enumerate(labels.tolist()):
            images[i, 2 * digit : 2 * digit + 2] = 250
        (folder / FILES[f"{split}_labels"]).write_bytes(idx(labels))
        name = FILES[f"{split}_images"]
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(images)))
        else:
            (folder / name).write_bytes(idx(images))
    return folder
