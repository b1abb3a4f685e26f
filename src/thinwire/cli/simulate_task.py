"""What the workers of `thinwire simulate` learn: which of ten clouds a point comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thinwire.link import Link
from thinwire.presets import Preset
from thinwire.seat import Seat
from thinwire.shell import LocalSGD
from thinwire.virtual import Compute, Method, Sizes, Spoken, Timeline, check_frames, run_training

INPUTS, CLASSES = 784, 10
TEST = 1000
NEAR = 0.09
"""How far apart the clouds' middles are, so that a softmax regression gets about 95 % right."""


class Clouds:
    """Points of ten normal clouds in 784 dimensions, all drawn anew for each batch.

    Args:
        seed: of the clouds and of all points.
        batch: points a worker sees at a step.
    """

    def __init__(self, seed: int, batch: int) -> None:
        self.seed, self.batch = seed, batch
        draw = torch.Generator().manual_seed(seed)
        self.middles = torch.randn(CLASSES, INPUTS, generator=draw) * NEAR
        self.test = self._points(TEST, draw)

    def points(self, rank: int, step: int) -> tuple[Tensor, Tensor]:
        """Returns a worker's batch of that step: (batch, 784) float32 and (batch,) int64."""
        mixed = ((self.seed * 10_007 + step) * 1_000_003 + rank) % (1 << 63)
        return self._points(self.batch, torch.Generator().manual_seed(mixed))

    def _points(self, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLASSES, (n,), generator=draw)
        noise = torch.randn(n, INPUTS, generator=draw)
        return self.middles[labels] + noise, labels

    def accuracy(self, params: Tensor) -> float:
        """Returns the share of test points that these parameters get right, (d,) float32."""
        weight = params[: CLASSES * INPUTS].view(CLASSES, INPUTS)
        x, y = self.test
        return float(((x @ weight.T + params[CLASSES * INPUTS :]).argmax(1) == y).float().mean())


def train(
    method: Preset,
    clouds: Clouds,
    links: Sequence[Link],
    rounds: int,
    compute: Compute,
    lr: float,
    on_round: Callable[[int, float, float], None],
    timeline: Timeline | None,
) -> tuple[Spoken, dict[str, Any]]:
    """Trains one model on each worker and returns what was spoken, and what was learned.

    Args:
        method: of the workers.
        clouds: what they learn.
        links: one of each.
        rounds: of each.
        compute: how long a step takes; its seed is the run's.
        lr: of the local steps.
        on_round: is told of the first worker's rounds: number, virtual seconds, accuracy.
        timeline: takes note of who did what when.

    Raises:
        ConfigError: they would send more frames in a round than fit here.
    """
    N = len(links)
    # Before ten thousand models are made.
    sizes = Sizes(method["compressor"], CLASSES * INPUTS + CLASSES)
    check_frames(Method(method["exchange"], sizes, method["H"]), N, compute.seed)
    torch.manual_seed(compute.seed)
    start = nn.Linear(INPUTS, CLASSES)
    nn.init.zeros_(start.weight)
    nn.init.zeros_(start.bias)
    models, workers = [], []
    for rank in range(N):
        model = nn.Linear(INPUTS, CLASSES)
        model.load_state_dict(start.state_dict())
        inner = torch.optim.SGD(model.parameters(), lr=lr)
        models.append(model)
        workers.append(LocalSGD(model, inner, group=Seat(rank, N), seed=compute.seed, **method))
    curve: list[dict[str, float]] = []

    def did(rank: int, number: int, t: float) -> None:
        if rank == 0:
            right = clouds.accuracy(workers[0].anchor)
            curve.append({"round": number + 1, "virtual_seconds": t, "accuracy": right})
            on_round(number, t, right)

    def closure(rank: int) -> Callable[[int], None]:
        def gradients(step: int) -> None:
            x, y = clouds.points(rank, step)
            cross_entropy(models[rank](x), y).backward()  # type: ignore[no-untyped-call]

        return gradients

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Many small models: more threads only wait for each other.
    try:
        spoken = run_training(
            workers, [closure(rank) for rank in range(N)], links, rounds, compute, did, timeline
        )
    finally:
        torch.set_num_threads(threads)
    mean = torch.zeros_like(workers[0].anchor)
    for worker in workers:
        mean += worker.agreed / N
    apart = max(float((worker.agreed - mean).norm()) for worker in workers)
    learned = {
        "accuracy": clouds.accuracy(mean),
        "apart": apart / max(1e-30, float(mean.norm())),
        "uplink_framed": sum(worker.stats.uplink for worker in workers),
        "curve": curve,
    }
    return spoken, learned
