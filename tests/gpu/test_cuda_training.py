"""Models on a CUDA device: over Gloo, over NCCL, and with mixed precision."""

from __future__ import annotations

import copy
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import thinwire as tw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def train(rank: int, N: int, backend: str, port: int, folder: str, preset: str) -> None:
    dist.init_process_group(backend, f"tcp://127.0.0.1:{port}", rank=rank, world_size=N)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 300), nn.ReLU(), nn.Linear(300, 4)).cuda()
    inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = tw.LocalSGD(model, inner, **tw.PRESETS[preset]())
    scaler = torch.amp.GradScaler("cuda")
    draws = torch.Generator().manual_seed(rank)
    task = torch.randn(32, 4, generator=torch.Generator().manual_seed(9))
    for _ in range(40):
        x = torch.randn(64, 32, generator=draws)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = nn.functional.cross_entropy(model(x.cuda()), (x @ task).argmax(1).cuda())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.save((optimizer.anchor, float(loss.detach())), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("backend", "N", "preset"),
    [
        ("gloo", 2, "qsparse_local_sgd"),
        ("gloo", 2, "qprsgd_ring"),
        ("gloo", 2, "local_sgd"),
        ("nccl", 1, "qsparse_local_sgd"),
        ("nccl", 1, "vanilla"),
    ],
)
def test_replicas_on_a_device_agree_to_the_last_bit_and_learn(backend, N, preset, tmp_path) -> None:
    mp.spawn(train, (N, backend, free_port(), str(tmp_path), preset), nprocs=N)
    ends = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(N)]
    for anchor, loss in ends:
        assert torch.equal(anchor, ends[0][0])
        assert loss < 1.2


def test_what_is_said_does_not_depend_on_where_the_model_lives() -> None:
    torch.manual_seed(0)
    here = nn.Linear(50, 20)
    there = copy.deepcopy(here).cuda()
    ends = []
    for model in (here, there):
        inner = torch.optim.SGD(model.parameters(), lr=0.5)
        optimizer = tw.LocalSGD(model, inner, **tw.qsparse_local_sgd(H=1))
        for p in model.parameters():
            p.grad = torch.linspace(-1, 1, p.numel(), device=p.device).view_as(p)
        optimizer.step()
        assert optimizer.anchor.device == model.weight.device
        ends.append((optimizer.anchor.cpu(), optimizer.residual.cpu()))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
