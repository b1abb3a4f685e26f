"""A folder of images as each worker reads it: the same draws from whatever step a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

try:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
except (ImportError, RuntimeError) as error:
    raise SystemExit(
        f"imagenet: torchvision cannot be loaded ({error}); it must be there, and be built for "
        f"torch {torch.__version__}: pip install 'thinwire[recipes]'"
    ) from None

import thinwire as tw

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batch = tuple[Tensor, Tensor]


def images(folder: Path, size: int, train: bool) -> ImageFolder:
    """Returns `folder`'s images, one class a folder; cropped at random to train, else the centre.

    Raises:
        ConfigError: there are none.
    """
    ends = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if train:
        begins = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    else:
        begins = [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)]
    if not folder.is_dir():
        raise tw.ConfigError(
            f"{folder}: no such folder; expected one folder a class there, as ImageNet is laid "
            "out: DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG"
        )
    try:
        return ImageFolder(str(folder), transforms.Compose([*begins, *ends]))
    except FileNotFoundError as error:
        raise tw.ConfigError(f"{folder}: {str(error).splitlines()[0]}") from error


class Drawn(Dataset[tuple[Tensor, int]]):
    """Images whose random crops follow from seed, epoch and image alone.

    So a run that goes on in the middle of an epoch sees what it would have seen.
    """

    def __init__(self, data: ImageFolder, seed: int) -> None:
        self._data, self._seed = data, seed

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = place
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self._seed * 100_003 + epoch) * 10_000_019 + index)
            return self._data[index]


class Share:
    """A worker's batches: every N-th image of an order that all workers draw alike.

    Args:
        data: the training images.
        rank: this worker.
        N: workers.
        batch: b, of each worker.
        seed: of orders and crops.
        loaders: processes that decode.

    Raises:
        ConfigError: there are fewer images than one batch of all workers.
    """

    def __init__(
        self, data: ImageFolder, rank: int, N: int, batch: int, seed: int, loaders: int
    ) -> None:
        self._data, self._rank, self._N, self._batch = data, rank, N, batch
        self._seed, self._loaders = seed, loaders
        self.per_epoch = len(data) // (N * batch)
        if not self.per_epoch:
            raise tw.ConfigError(
                f"{len(data)} images are fewer than one batch of {N} workers x {batch}; "
                "lower --batch"
            )

    def epoch(self, number: int, first: int) -> Iterator[Batch]:
        """Yields the batches of an epoch, from its `first` on."""
        draws = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        order = torch.randperm(len(self._data), generator=draws)[self._rank :: self._N].tolist()
        b = self._batch
        batches = [
            [(number, index) for index in order[at * b : (at + 1) * b]]
            for at in range(first, self.per_epoch)
        ]
        yield from DataLoader(
            Drawn(self._data, self._seed),
            batch_sampler=batches,
            num_workers=self._loaders,
            pin_memory=torch.cuda.is_available(),
        )


def held_out(data: ImageFolder, rank: int, N: int, batch: int, loaders: int) -> DataLoader[Batch]:
    """Returns every N-th test image, in batches."""
    own = torch.utils.data.Subset(data, range(rank, len(data), N))
    return DataLoader(own, batch_size=batch, num_workers=loaders)
