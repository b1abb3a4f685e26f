"""What is owed, on a device: torch's own operations there, each rounded by itself."""

from __future__ import annotations

import torch

from thinwire import host
from thinwire.kernels import checks
from thinwire.kernels.gpu_decode import accumulate
from thinwire.kernels.gpu_select import gather, topk
from thinwire.kernels.owed import Owed


def owe(owed: Owed) -> torch.Tensor:
    """Agrees bit for bit with `reference.owe`."""
    checks.check_owed(owed)
    out = torch.empty_like(owed.anchor)
    at = 0
    for p in owed.params:
        a, u = owed.anchor[at : at + p.numel()], out[at : at + p.numel()]
        values = p.detach().reshape(-1).to(torch.float32)
        if p.dtype != torch.float32:
            values = a - (a.to(p.dtype).to(torch.float32) - values)
        torch.sub(a, values, out=u)
        at += p.numel()
    if owed.residual is not None:
        decay = host.float_(owed.decay).item()
        out += owed.residual if owed.decay == 1 else owed.residual * decay
    return out


def pick(
    owed: Owed, starts: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Agrees bit for bit with `reference.pick`."""
    u = owe(owed)
    index = topk(u, starts, counts)
    return index, gather(u, index)


def settle(owed: Owed, index: torch.Tensor, said: torch.Tensor) -> None:
    """Agrees bit for bit with `reference.settle`."""
    assert owed.residual is not None
    owed.residual.copy_(owe(owed))
    accumulate(owed.residual, index, said, -1.0)


def scatter(tensors: tuple[torch.Tensor, ...], index: torch.Tensor, values: torch.Tensor) -> None:
    """Agrees bit for bit with `reference.scatter`."""
    checks.check_plain(tensors)
    checks.check_inside(index, sum(t.numel() for t in tensors))
    low = 0
    for t in tensors:
        own = (index >= low) & (index < low + t.numel())
        accumulate(t.view(-1), index[own] - low, values[own], 1.0)
        low += t.numel()


def land(anchor: torch.Tensor, sums: tuple[torch.Tensor, ...], count: int, lr: float) -> None:
    """Agrees bit for bit with `reference.land`."""
    checks.check_plain(sums)
    at, rate = 0, host.float_(lr).item()
    for total in sums:
        piece = anchor[at : at + total.numel()]
        # By a tensor: a device divides by a plain number through its reciprocal.
        mean = total.view(-1) / torch.full_like(total.view(-1)[:1], count) + 0.0
        piece -= mean if lr == 1 else mean * rate
        total.view(-1).copy_(piece)
        at += total.numel()
