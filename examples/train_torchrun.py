"""A plain training loop on thin wires: run it alone, or `torchrun --nproc-per-node 4` it."""

import os

import torch
import torch.distributed as dist
from torch import nn

import thinwire as tw

if "RANK" in os.environ:
    dist.init_process_group("gloo")
rank = dist.get_rank() if dist.is_initialized() else 0

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
optimizer = tw.LocalSGD(model, optimizer, **tw.qsparse_local_sgd(H=8))

task = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
draws = torch.Generator().manual_seed(100 + rank)
for _ in range(200):
    x = torch.randn(64, 32, generator=draws)
    loss = nn.functional.cross_entropy(model(x), (x @ task).argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

if rank == 0:
    said, dense = optimizer.stats.uplink, 4 * optimizer.spans.d * 200
    print(f"loss {loss.item():.3f} after {optimizer.round} rounds; said {said} bytes,")
    print(f"{dense / said:.0f} times less than a dense gradient every step")
if dist.is_initialized():
    dist.destroy_process_group()
