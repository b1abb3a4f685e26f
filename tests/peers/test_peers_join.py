"""Ranks that are given the same settings join, whatever those settings hold."""

from __future__ import annotations

import pytest
import torch

import thinwire as tw
from thinwire import QSGD, TopK

UNBIASED = QSGD(bits=8, norm="max", scale="none")


@pytest.mark.parametrize(
    ("exchange", "C"),
    [
        (tw.Gossip(tw.Graph(((0, 1), (1, 2))), correction=0.5), UNBIASED),
        (tw.Gossip(tw.Graph(((0, 1), (1, 2)), weights="fastest"), "before"), UNBIASED),
        (tw.Choco(trigger=((0, 1e-2), (3, 1e-4))), TopK(density=0.5)),
        (tw.EdgeGossip(tw.Graph(((0, 1), (1, 2)))), UNBIASED),
        (tw.Ring("ring", pipeline=2), UNBIASED),
    ],
    ids=repr,
)
def test_the_same_settings_on_all_ranks_are_the_same(exchange, C) -> None:
    nets = [torch.nn.Linear(3, 2) for _ in range(3)]
    shells = [
        tw.LocalSGD(
            net, torch.optim.SGD(net.parameters(), lr=0.1), compressor=C, exchange=exchange,
            H=((0, 1), (2, 2)), group=tw.Seat(rank, 3),
        )
        for rank, net in enumerate(nets)
    ]  # fmt: skip
    cluster = tw.LockStep(shells)
    for net in nets:
        net(torch.ones(1, 3)).sum().backward()
    cluster.step()
    assert [shell.round for shell in shells] == [1, 1, 1]
    held = shells[1].state_dict()
    shells[1].load_state_dict(held)
