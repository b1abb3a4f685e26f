"""A worker program that the tests launch with torchrun: trains, and dies or stops where told."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import thinwire as tw
from thinwire.value import Value


def main() -> None:
    torch.set_num_threads(1)
    spec, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    tw.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(20, 16), nn.Dropout(0.1), nn.Tanh(), nn.Linear(16, 4))
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = tw.LocalSGD(
        model,
        inner,
        H=2,
        compressor=Value.from_json(spec["compressor"]),
        exchange=Value.from_json(spec["exchange"]),
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20], 0.5)
    data = torch.Generator().manual_seed(100 + rank)
    torch.manual_seed(rank)
    life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    with tw.Snapshots(out / "snapshots", every=spec["every"]) as snapshots:
        parts = {"schedule": schedule, "data": data, "draws": tw.Draws()}
        resumed = snapshots.resume(model, optimizer, **parts)
        began = snapshots.step
        while snapshots.step < spec["steps"]:
            if [life, rank, snapshots.step] in spec["deaths"]:
                os.kill(os.getpid(), signal.SIGKILL)
            if [rank, snapshots.step] == spec.get("told"):
                (out / "pid").write_text(str(os.getpid()))
                time.sleep(1.0)
            optimizer.zero_grad()
            x, y = torch.randn(8, 20, generator=data), torch.randint(4, (8,), generator=data)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
            if snapshots.after_step():
                break
        told = {"stopped": snapshots.stopped, "step": snapshots.step, "began": began, "life": life}
        (out / f"said-{life}-{rank}.json").write_text(json.dumps(told))
    if not told["stopped"]:
        torch.save((optimizer.anchor, optimizer.state_dict()), out / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    del resumed


if __name__ == "__main__":
    main()
