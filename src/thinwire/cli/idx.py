"""The standard IDX files of MNIST, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from thinwire.errors import ConfigError

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
WHERE = (
    "the four IDX files of the MNIST database (train-images-idx3-ubyte, train-labels-idx1-ubyte, "
    "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte), each plain or with .gz; its authors publish "
    "them at yann.lecun.com/exdb/mnist, and torchvision.datasets.MNIST(root, download=True) "
    "leaves them in root/MNIST/raw"
)


@dataclass(frozen=True, eq=False)
class Digits:
    """Images in [0, 1] and their labels.

    Args:
        train_x: (n, 784) float32.
        train_y: (n,) int64.
        test_x: (m, 784) float32.
        test_y: (m,) int64.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_mnist(folder: Path) -> Digits:
    """Returns MNIST from a folder of its IDX files.

    Raises:
        ConfigError: a file is missing or broken; it names the path and what was expected.
    """
    read = {part: read_idx(_find(folder, name)) for part, name in FILES.items()}
    for split in ("train", "test"):
        images, labels = read[f"{split}_images"], read[f"{split}_labels"]
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise ConfigError(
                f"{folder}: the {split} images have shape {tuple(images.shape)}, the labels "
                f"{tuple(labels.shape)}; expected (n, rows, columns) and (n,)"
            )
        if images.shape[1:] != (28, 28):
            raise ConfigError(
                f"{folder}: the {split} images are {tuple(images.shape[1:])}; MNIST's are (28, 28)"
            )
        if len(labels) == 0 or int(labels.max()) > 9:
            raise ConfigError(f"{folder}: the {split} labels must be digits 0 to 9, at least one")
    return Digits(
        train_x=read["train_images"].flatten(1).float() / 255,
        train_y=read["train_labels"].long(),
        test_x=read["test_images"].flatten(1).float() / 255,
        test_y=read["test_labels"].long(),
    )


def read_idx(path: Path) -> Tensor:
    """Returns the array of unsigned bytes that an IDX file holds.

    Raises:
        ConfigError: the file is no such IDX file, or is cut short.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; expected {WHERE}") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ConfigError(
            f"{path}: is no IDX file of unsigned bytes (it starts with {data[:4].hex()}); "
            f"expected {WHERE}"
        )
    n_axes = data[3]
    head = 4 + 4 * n_axes
    if len(data) < head:
        raise ConfigError(f"{path}: is cut short after {len(data)} bytes; expected {WHERE}")
    shape = struct.unpack(f">{n_axes}I", data[4:head])
    if len(data) - head != math.prod(shape):
        raise ConfigError(
            f"{path}: announces {shape}, which is {math.prod(shape)} bytes, and holds "
            f"{len(data) - head}; it is cut short or altered; expected {WHERE}"
        )
    if not math.prod(shape):
        return torch.zeros(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=head).view(shape)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"{folder / name}[.gz]: no such file; expected there {WHERE}")
