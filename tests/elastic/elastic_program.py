"""A worker of an elastic group: `elastic_program.py ADDRESS NAME H ROUNDS`."""

from __future__ import annotations

import hashlib
import sys

import torch

import thinwire as tw
from thinwire.elastic import Quorum


def main(address: str, name: str, H: int, rounds: int) -> None:
    torch.set_num_threads(1)
    model = torch.nn.Linear(20, 3)
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    group = Quorum(address, N=4, name=name, deadline=10.0, host="127.0.0.1", mean="configured")
    optimizer = tw.LocalSGD(
        model, inner, H=H, compressor=tw.TopK(density=0.1), exchange=tw.Gather(), group=group
    )
    while optimizer.round < rounds:
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
    optimizer.leave()
    print("digest", hashlib.sha256(optimizer.anchor.numpy().tobytes()).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
