"""What the workers of a chaos story learn, and with which optimizer."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thinwire.cli.chaos_plan import ROUNDS, Story
from thinwire.cli.demo_train import CLASSES, PIXELS, Digits, accuracy
from thinwire.compress import QSGD, Compressor, Sign, TopK
from thinwire.exchange import Choco, Exchange, Feedback, Gather, Gossip, Ring, Server
from thinwire.ledger import Ledger
from thinwire.shell import LocalSGD
from thinwire.topology import RingGraph

H = 4
HIDDEN = 32
LR = 0.5
"""Of the first half; then it falls to nothing in a line, so that all seeds end nearly alike."""


def network(seed: int) -> nn.Sequential:
    """Returns the model, 64-32-10: d = 2,410 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def method(kind: str, form: str) -> tuple[Exchange, Compressor]:
    """Returns how the workers of a story talk."""
    sparse, codes = TopK(density=0.05) >> Sign(), QSGD(bits=8, norm="max", bucket=256)
    if form == "server":
        return Server(Feedback()), sparse
    if kind == "gossip":
        plain = QSGD(bits=8, norm="max", scale="none", bucket=256)
        return (Choco(RingGraph()), codes) if form == "choco" else (Gossip(RingGraph()), plain)
    if form == "gather" and kind != "ring":
        return Gather(Feedback()), sparse
    if form == "gather":
        return Ring("gather", Feedback()), sparse
    return Ring("ring" if form == "ring" else "two-phase", Feedback()), codes


def optimizer_of(story: Story, model: nn.Module, group: Any) -> LocalSGD:
    """Returns the optimizer of a worker of this story."""
    exchange, compressor = method(story.kind, story.form)
    inner = torch.optim.SGD(model.parameters(), lr=LR)
    return LocalSGD(
        model, inner, H=H, compressor=compressor, exchange=exchange, group=group,
        seed=story.seed, ledger=Ledger(),
    )  # fmt: skip


def batch(digits: Digits, step: int) -> tuple[Tensor, Tensor]:
    """Returns the batch of that local step, whatever came before."""
    epoch, at = divmod(step, digits.steps)
    draw = torch.Generator().manual_seed((digits.seed * 1009 + epoch) * 1009 + digits.rank)
    order = torch.randperm(len(digits.images), generator=draw)
    size = len(digits.images) // digits.steps
    chosen = order[at * size : (at + 1) * size]
    return digits.images[chosen], digits.labels[chosen]


def slope(model: nn.Module, optimizer: LocalSGD, digits: Digits, step: int) -> None:
    """Leaves the gradient of one local step in the model, and its learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = LR * min(1.0, 2.0 * (1.0 - optimizer.round / ROUNDS))
    images, labels = batch(digits, step)
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]


def outcome(anchors: list[Tensor], digits: Digits) -> dict[str, Any]:
    """Returns the accuracy of the mean of these models, and their digest."""
    total = torch.zeros_like(anchors[0])
    for anchor in anchors:
        total += anchor
    data = b"".join(anchor.numpy().tobytes() for anchor in anchors)
    return {
        "accuracy": accuracy(network(0), total / len(anchors), digits.test),
        "digest": hashlib.sha256(data).hexdigest(),
    }
