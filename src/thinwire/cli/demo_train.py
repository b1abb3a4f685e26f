"""What each worker of the demo does: the same small training loop, once for every method."""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from thinwire import flat
from thinwire.cli.demo_methods import Method, chosen
from thinwire.cli.worker import Say
from thinwire.exchange import Server
from thinwire.kernels import cpu
from thinwire.link import Link
from thinwire.seat import Seat
from thinwire.shell import LocalSGD
from thinwire.simulate import LockStep
from thinwire.stats import DOWN, UP
from thinwire.transport import Paced
from thinwire.wire.frame import HEADER, length

PIXELS, HIDDEN, CLASSES = 64, 512, 10
BATCH = 16
TEST_SHARE = 5
"""One image in so many is kept for the test."""


class Digits:
    """A worker's share of the training images, and the test images.

    Args:
        file: what `save_digits` wrote: images in [0, 1] and labels, train and test.
        rank: this worker; it holds every N-th training image.
        N: workers in all.
        seed: of the order in which it reads them.
    """

    def __init__(self, file: str, rank: int, N: int, seed: int) -> None:
        with np.load(file) as arrays:
            train = (
                torch.from_numpy(arrays["train_images"]),
                torch.from_numpy(arrays["train_labels"]),
            )
            self.test = (
                torch.from_numpy(arrays["test_images"]),
                torch.from_numpy(arrays["test_labels"]),
            )
        each = len(train[0]) // N
        self.images, self.labels = (t[rank::N][:each] for t in train)
        self.rank, self.N, self.seed = rank, N, seed
        self.steps = max(1, each // BATCH)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of one epoch, shuffled by seed, epoch and rank."""
        draw = torch.Generator().manual_seed((self.seed * 1009 + number) * 1009 + self.rank)
        order = torch.randperm(len(self.images), generator=draw)
        for step in range(self.steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            yield self.images[batch], self.labels[batch]


def network(seed: int) -> nn.Sequential:
    """Returns the model, 64-512-10: d = 38,410 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def work(rank: int, N: int, args: dict[str, Any], say: Say) -> None:
    """Trains every method in turn; says "plan" once, then "epoch" after each epoch."""
    if rank == 0:
        n_test = save_digits(args["data"], args["seed"])
        cpu.warm()  # alone, so that on a cold cache the others load what this one compiled
    dist.barrier()
    methods = chosen(args["presets"])
    _rehearse(methods)
    line = None if args["link"] is None else Paced(Link.parse(args["link"]), seed=args["seed"])
    if rank == 0:
        facts = {"epochs": args["epochs"], "test_images": n_test}
        say("plan", methods=[{**method.as_dict(), **facts} for method in methods])
    for method in methods:
        dist.barrier()  # so that the seconds are the method's own
        train = _with_ddp if method.preset is None else _with_local_sgd
        train(method, Digits(args["data"], rank, N, args["seed"]), args["epochs"], say, line)
        gc.collect()


def save_digits(file: str, seed: int) -> int:
    """Saves scikit-learn's digits, split by the seed, and returns the number of test images."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = np.split(order, [len(images) // TEST_SHARE])
    scaled = (images / 16).astype(np.float32)
    np.savez(
        file,
        train_images=scaled[train],
        train_labels=labels[train],
        test_images=scaled[test],
        test_labels=labels[test],
    )
    return len(test)


def _rehearse(methods: Sequence[Method]) -> None:
    # Loading a kernel takes longer than many rounds: that belongs to no method's seconds.
    for method in methods:
        if method.preset is not None:
            model = network(0)
            inner = torch.optim.SGD(model.parameters(), lr=method.lr)
            alone = LockStep([LocalSGD(model, inner, group=Seat(0, 1), **method.preset)])
            alone.sync()


def _with_local_sgd(
    method: Method, digits: Digits, epochs: int, say: Say, line: Paced | None
) -> None:
    assert method.preset is not None
    model = network(digits.seed)
    inner = torch.optim.SGD(model.parameters(), lr=method.lr)
    optimizer = LocalSGD(model, inner, seed=digits.seed, group=line, **method.preset)
    setup = sum(optimizer.stats.sent.values())

    def finish() -> None:
        if epochs * digits.steps % method.H:
            optimizer.sync()

    def traffic() -> dict[str, int]:
        sent, received = optimizer.stats.sent, optimizer.stats.received
        hears, says = (sum(side[kind] for kind in UP + DOWN) for side in (received, sent))
        return {
            "rounds": optimizer.round,
            "up": sum(sent[kind] for kind in UP),
            "down": sum(sent[kind] for kind in DOWN),
            # A master hears all, then answers all: its link carries one after the other. Among
            # peers both directions are busy at once.
            "link": hears + says if isinstance(optimizer.exchange, Server) else max(hears, says),
            "setup": setup,
        }

    _epochs(
        model, optimizer, lambda: optimizer.anchor, finish, traffic, method, digits, epochs, say
    )


def _with_ddp(method: Method, digits: Digits, epochs: int, say: Say, line: Paced | None) -> None:
    model = network(digits.seed)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=method.lr)
    handed, steps = [0], [0]
    paced = None if line is None else line.over(HEADER, length)

    def counted(bucket: Any) -> torch.futures.Future[Tensor]:
        handed[0] += bucket.buffer().numel() * bucket.buffer().element_size()
        steps[0] += bucket.is_last()
        if paced is not None:
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(paced.reduce(bucket.buffer()) / paced.size)
            return done
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]

    # A lambda, because DDP refuses a hook whose annotations it does not know.
    ddp.register_comm_hook(None, lambda _, bucket: counted(bucket))

    def traffic() -> dict[str, int]:
        # A ring all-reduce sends (N - 1)/N of the vector to add it up, and as much again to
        # spread the sum. Both directions of a link are in use at once.
        half = handed[0] * (digits.N - 1) // digits.N
        return {"rounds": steps[0], "up": half, "down": half, "link": 2 * half, "setup": 0}

    def anchor() -> Tensor:
        return flat.read(list(model.parameters()))

    _epochs(ddp, optimizer, anchor, lambda: None, traffic, method, digits, epochs, say)
    # DDP over Gloo can deadlock at exit unless its hooks are gone before the group is.
    del ddp, optimizer
    gc.collect()


def _epochs(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    anchor: Callable[[], Tensor],
    finish: Callable[[], None],
    traffic: Callable[[], dict[str, int]],
    method: Method,
    digits: Digits,
    epochs: int,
    say: Say,
) -> None:
    judge = network(digits.seed)
    seconds = 0.0
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        for images, labels in digits.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if epoch == epochs:
            finish()
        seconds += time.perf_counter() - began
        message = {"method": method.name, "epoch": epoch, "seconds": seconds, **traffic()}
        if digits.rank == 0:
            message["accuracy"] = accuracy(judge, anchor(), digits.test)
        if epoch == epochs:
            message["digest"] = hashlib.sha256(anchor().numpy().tobytes()).hexdigest()
        say("epoch", **message)


def accuracy(judge: nn.Module, params: Tensor, test: tuple[Tensor, Tensor]) -> float:
    """Returns the share of test images that the model with these parameters gets right.

    Args:
        judge: a model to put them into.
        params: (d,) float32.
        test: images and labels.
    """
    flat.write(params, list(judge.parameters()))
    images, labels = test
    with torch.no_grad():
        return float((judge(images).argmax(1) == labels).double().mean())
