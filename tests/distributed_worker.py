"""A worker program that the tests launch with torchrun: trains a little and writes its bits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import thinwire as tw
from thinwire.value import Value


def model() -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4))


def backward(net: nn.Module, draws: torch.Generator) -> None:
    x = torch.randn(8, 20, generator=draws)
    y = torch.randint(4, (8,), generator=draws)
    nn.functional.cross_entropy(net(x), y).backward()


def draws_of(rank: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + rank)


def arguments(spec: dict) -> dict:
    return {
        "H": Value.from_json(spec["H"]) if isinstance(spec["H"], dict) else spec["H"],
        "compressor": Value.from_json(spec["compressor"]),
        "exchange": Value.from_json(spec["exchange"]),
        "outer": Value.from_json(spec["outer"]),
        "seed": 5,
    }


def shell(net: nn.Module, spec: dict, group=None) -> tw.LocalSGD:
    inner = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return tw.LocalSGD(net, inner, group=group, **arguments(spec))


def main() -> None:
    torch.set_num_threads(1)
    specs = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    dist.init_process_group("gloo")
    rank, bits = dist.get_rank(), []
    for spec in specs:
        net, draws = model(), draws_of(rank)
        optimizer = shell(net, spec)
        for _ in range(spec["steps"]):
            optimizer.zero_grad()
            backward(net, draws)
            optimizer.step()
        bits.append((optimizer.anchor.clone(), optimizer.stats.as_dict()))
    torch.save(bits, out / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
