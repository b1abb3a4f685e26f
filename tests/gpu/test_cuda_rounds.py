"""Rounds on a CUDA device: the bits of the host, and nothing leaves it but what is said.

The kernels themselves are tried on the device by `tests/kernels/test_kernels_gpu.py`.
"""

from __future__ import annotations

import pytest
import torch

import thinwire as tw
from thinwire import host, kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

SHAPES = ((300, 70), (70,), (0,), (3,))
D = sum(torch.Size(shape).numel() for shape in SHAPES)


def trained(N: int, device: str, settings: dict, rounds: int = 3) -> tw.LockStep:
    shells, every = [], []
    for rank in range(N):
        draw = torch.Generator().manual_seed(0)
        tensors = [torch.randn(shape, generator=draw) for shape in SHAPES]
        params = [torch.nn.Parameter(t.to(device)) for t in tensors]
        inner = torch.optim.SGD(params, lr=0.125)
        shells.append(tw.LocalSGD(params, inner, group=tw.Seat(rank, N), **settings))
        every.append(params)
    cluster = tw.LockStep(shells)
    for round in range(rounds):
        for rank, params in enumerate(every):
            draw = torch.Generator().manual_seed(100 * round + rank)
            for p in params:
                p.grad = torch.randn(p.shape, generator=draw).to(device)
        cluster.step()
    return cluster


def ends(cluster: tw.LockStep) -> list[torch.Tensor]:
    return [t.cpu() for w in cluster.workers for t in (w.anchor, *w._state.mem.values())]


@pytest.mark.parametrize("name", tw.PRESETS)
def test_every_preset_ends_in_the_bits_of_the_host(name: str) -> None:
    settings = {**tw.PRESETS[name](), "H": 1}
    for a, b in zip(
        ends(trained(4, "cuda", settings)), ends(trained(4, "cpu", settings)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("table", kernels.NAMES[:2])
def test_another_table_may_be_forced(table: str) -> None:
    settings = {"compressor": tw.TopK(k=50) >> tw.QSGD(bits=4), "exchange": tw.Gather()}
    with kernels.use(table):
        forced = ends(trained(2, "cuda", settings))
    for a, b in zip(forced, ends(trained(2, "cuda", settings)), strict=True):
        assert torch.equal(a, b)


def test_only_what_is_said_is_brought_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[int] = []

    def bring(tensor: torch.Tensor) -> torch.Tensor:
        brought.append(tensor.numel() if tensor.is_cuda else 0)
        return tensor.to(host.CPU)

    monkeypatch.setattr(host, "bring", bring)
    compressor = tw.TopK(k=50, scope="global") >> tw.QSGD(bits=4)
    trained(2, "cuda", {"compressor": compressor, "exchange": tw.Gather()}, rounds=2)
    # The start, which all ranks compare, and then at most the kept entries.
    assert sorted(brought)[-2:] == [D, D]
    assert sorted(brought)[-3] <= 50
