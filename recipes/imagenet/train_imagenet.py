"""ResNet-50 on ImageNet as the first paper trained it, over thin wires.

    torchrun --nproc-per-node 8 recipes/imagenet/train_imagenet.py --data DIR --H 4

DIR holds train/CLASS/*.JPEG and val/CLASS/*.JPEG. On several machines start torchrun on each, with
--nnodes and --rdzv-endpoint as ever. Stopped (or told so by SIGTERM), the same command goes on from
--snapshots. Read what it did with `thinwire report runs/`.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from imagenet_data import Share, held_out, images
from imagenet_method import (
    CLEAR_AT,
    LR,
    LR_BATCH,
    METHODS,
    MOMENTUM,
    WEIGHT_DECAY,
    StepSize,
    bits_a_round,
    preset,
)
from torch import Tensor, nn
from torchvision.models import get_model

import thinwire as tw
from thinwire import flat
from thinwire.cli.progress import board

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Clock:
    """Seconds of training, over all the lives of a run."""

    def __init__(self) -> None:
        self._before, self._began = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.perf_counter() - self._began

    def state_dict(self) -> dict[str, Any]:
        """Returns them."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from them."""
        self._before, self._began = state["seconds"], time.perf_counter()


class Trainer:
    """One worker: model, optimizer, data, and how they meet."""

    def __init__(self, chosen: argparse.Namespace, rank: int, N: int) -> None:
        self.chosen, self.rank, self.N = chosen, rank, N
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        train = images(chosen.data / "train", chosen.size, train=True)
        test = images(chosen.data / "val", chosen.size, train=False)
        self.share = Share(train, rank, N, chosen.batch, chosen.seed, chosen.loaders)
        self.test = held_out(test, rank, N, chosen.batch, chosen.loaders)
        torch.manual_seed(chosen.seed)
        model = get_model(chosen.model, num_classes=chosen.classes or len(train.classes)).to(
            self.device
        )
        self.layout = torch.channels_last if chosen.channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.layout)
        inner = torch.optim.SGD(
            self.model.parameters(),
            lr=LR * N * chosen.batch / LR_BATCH,
            momentum=MOMENTUM,
            nesterov=True,
            weight_decay=WEIGHT_DECAY,
        )
        self.optimizer = tw.LocalSGD(
            self.model,
            inner,
            **preset(chosen.method, chosen.H, chosen.gather),
            seed=chosen.seed,
            buffers="local",
            clear_residual_at_drop=CLEAR_AT,
        )
        at = StepSize(self.share.per_epoch, chosen.H)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, at)
        self.dtype = AMP[chosen.amp]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=chosen.amp == "fp16")
        self.clock = Clock()

    def descend(self, x: Tensor, y: Tensor) -> Tensor:
        """Takes one local step, and the round that ends with it; returns the loss."""
        x = x.to(self.device, non_blocking=True, memory_format=self.layout)
        y = y.to(self.device, non_blocking=True)
        self.optimizer.zero_grad()
        with self._cast():
            loss = nn.functional.cross_entropy(self.model(x), y)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.detach()

    def evaluate(self) -> dict[str, float]:
        """Returns top-1, top-5 and loss of the anchor, each worker with its own BN statistics."""
        judge = copy.deepcopy(self.model).eval()
        flat.write(self.optimizer.anchor, list(judge.parameters()))
        sums = torch.zeros(4, dtype=torch.float64)
        with torch.no_grad(), self._cast():
            for x, y in self.test:
                logits = judge(x.to(self.device, memory_format=self.layout)).float().cpu()
                best = logits.topk(min(5, logits.shape[1])).indices == y[:, None]
                loss = nn.functional.cross_entropy(logits, y, reduction="sum")
                sums += torch.stack([best[:, 0].sum(), best.sum(), loss, torch.tensor(len(y))])
        top1, top5, loss, n = self._over_all(sums).tolist()
        return {"top1": top1 / n, "top5": top5 / n, "loss": loss / n}

    def cost(self) -> dict[str, Any]:
        """Returns what all workers have said and sent."""
        own = torch.tensor(self.optimizer.stats.totals()[:2], dtype=torch.float64)
        uplink, sent = self._over_all(own).tolist()
        return {"uplink": int(uplink), "sent": int(sent), "seconds": self.clock.seconds}

    def _over_all(self, sums: Tensor) -> Tensor:
        if dist.is_initialized():
            dist.all_reduce(sums)
        return sums

    def _cast(self) -> Any:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)


def train(chosen: argparse.Namespace, rank: int, N: int) -> None:
    """Trains one worker to the end, or until it is told to stop."""
    t = Trainer(chosen, rank, N)
    per_epoch, steps = t.share.per_epoch, chosen.epochs * t.share.per_epoch
    kept, bits = bits_a_round(t.optimizer)
    with ExitStack() as stack:
        snapshots = stack.enter_context(tw.Snapshots(chosen.snapshots, every=chosen.every))
        parts = {"schedule": t.schedule, "scaler": t.scaler, "clock": t.clock}
        snapshots.resume(t.model, t.optimizer, stats=t.optimizer.stats, **parts)
        log = bar = None
        if rank == 0:
            method = f"{chosen.method} H={chosen.H}"
            log = stack.enter_context(
                tw.RunLog(
                    "imagenet",
                    chosen.seed,
                    {**settings(chosen), "workers": N, "kept": kept, "fixed_width_bits": bits},
                    chosen.log,
                    task=f"{chosen.model} on {chosen.data.resolve().name}",
                    method=method,
                    parameters=t.optimizer.spans.d,
                    from_step=snapshots.step or None,
                )
            )
            tw.Measured(t.optimizer, log, norms=chosen.norms, step=snapshots.step)
            bar = stack.enter_context(board()).add(method, steps, t.optimizer.spans.d)
        while snapshots.step < steps:
            epoch, first = divmod(snapshots.step, per_epoch)
            for x, y in t.share.epoch(epoch, first):
                loss, step = t.descend(x, y), snapshots.step + 1
                if bar is not None:
                    said, sent, _ = t.optimizer.stats.totals()
                    bar.tell(step, t.optimizer.round, float(loss), said, sent)
                if step % per_epoch == 0:
                    if step == steps and step % chosen.H:
                        t.optimizer.sync()
                    found = {**t.evaluate(), **t.cost()}
                    if log is not None:
                        at = {"step": step, "epoch": step // per_epoch, "round": t.optimizer.round}
                        log.write("evaluation", **at, **found)
                if snapshots.after_step():
                    return


def settings(chosen: argparse.Namespace) -> dict[str, Any]:
    """Returns what decides the run's figures, as plain data."""
    own = {k: v for k, v in vars(chosen).items() if k not in ("data", "log", "snapshots", "seed")}
    return {**own, "optimizer": f"Nesterov {MOMENTUM}, weight decay {WEIGHT_DECAY:g}"}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Returns what was asked for."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    p.add_argument("--method", choices=METHODS, default="signtopk", help="what is said")
    p.add_argument("--H", type=int, default=4, help="local steps per round: the paper's 1, 4, 8")
    p.add_argument("--gather", action="store_true", help="workers hear each other, no master")
    p.add_argument("--model", default="resnet50", help="a name of torchvision's")
    p.add_argument("--classes", type=int, help="of the model; by default the folders of train/")
    p.add_argument("--epochs", type=int, default=90)
    p.add_argument("--batch", type=int, default=256, help="images of each worker's mini-batch")
    p.add_argument("--size", type=int, default=224, help="pixels of a side")
    p.add_argument("--amp", choices=AMP, default="off", help="arithmetic of forward and backward")
    p.add_argument("--channels-last", action="store_true")
    p.add_argument("--loaders", type=int, default=4, help="processes that decode images")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--norms", action="store_true", help="log norms: two passes a round")
    p.add_argument(
        "--snapshots", type=Path, default=Path("runs/imagenet"), help="folder to go on from"
    )
    p.add_argument("--every", type=int, default=100, help="rounds from snapshot to snapshot")
    p.add_argument("--log", type=Path, help="JSON lines; by default beside the snapshots")
    chosen = p.parse_args(given)
    for name in ("H", "epochs", "batch", "size", "every"):
        if getattr(chosen, name) < 1:
            p.error(f"--{name} is {getattr(chosen, name)}; it must be at least 1")
    if chosen.log is None:
        chosen.snapshots.mkdir(parents=True, exist_ok=True)
        chosen.log = chosen.snapshots / "run.jsonl"
    return chosen


def main() -> None:
    chosen = arguments()
    if "RANK" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        tw.init_process_group("gloo")  # what is said is bytes on the host
    rank = dist.get_rank() if dist.is_initialized() else 0
    try:
        train(chosen, rank, dist.get_world_size() if dist.is_initialized() else 1)
    except tw.ConfigError as error:
        raise SystemExit(f"imagenet: {error}") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
