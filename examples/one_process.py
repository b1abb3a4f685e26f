"""Eight workers in one process: the same rounds, the same frames, the same bits, no wire."""

import torch
from torch import nn

import thinwire as tw

N = 8
models = [nn.Linear(16, 1) for _ in range(N)]
workers = [
    tw.LocalSGD(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05),
        H=4,
        compressor=tw.TopK(k=4) >> tw.QSGD(bits=4),
        exchange=tw.Gather(),
        group=tw.Seat(rank, N),
    )
    for rank, model in enumerate(models)
]
cluster = tw.LockStep(workers)  # all start from rank 0's parameters

task = torch.arange(16.0)
draws = torch.Generator().manual_seed(0)
for _ in range(400):
    for model, worker in zip(models, workers, strict=True):
        x = torch.randn(8, 16, generator=draws)
        worker.zero_grad()
        (model(x).squeeze(1) - x @ task).square().mean().backward()
    cluster.step()

error = (models[0].weight.detach().squeeze(0) - task).abs().max().item()
same = all(torch.equal(model.weight, models[0].weight) for model in models)
print(f"greatest error {error:.4f}; all replicas equal to the last bit: {same}")
