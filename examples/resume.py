"""Stop anywhere, start again: the run ends in the same bits. Also under `torchrun --max-restarts`.

python examples/resume.py
torchrun --nproc-per-node 2 --max-restarts 3 examples/resume.py runs/a
"""

import os
import sys
import tempfile

import torch
from torch import nn

import thinwire as tw


def train(folder: str, steps: int, stop_after: int | None = None) -> torch.Tensor:
    """Trains to `steps` steps in all, from wherever the folder's newest snapshot is."""
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 1))
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer = tw.LocalSGD(model, inner, **tw.qsparse_local_sgd(H=4))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    with tw.Snapshots(folder, every=5) as snapshots:
        # Everything the run draws from or counts with goes on, if it is handed over by name.
        snapshots.resume(model, optimizer, schedule=schedule, draws=tw.Draws())
        print(f"from step {snapshots.step}")
        while snapshots.step < steps:
            x = torch.randn(32, 16)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), x.sum(1, keepdim=True)).backward()
            optimizer.step()
            schedule.step()
            if snapshots.step + 1 == stop_after:
                snapshots.stop()  # As SIGTERM to any rank would.
            if snapshots.after_step():
                break
    return optimizer.anchor


if "TORCHELASTIC_RUN_ID" in os.environ:
    tw.init_process_group("gloo")
    train(sys.argv[1], 400)
else:
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        calm = train(a, 100)
        train(b, 100, stop_after=50)
        print("the same bits:", torch.equal(train(b, 100), calm))
