"""Every preset trains a small problem through the shells, and each keeps what it promises."""

from __future__ import annotations

import pytest
import torch
from peer_talks import near, same_bits
from torch import Tensor

import thinwire as tw

N, ROUNDS, D = 4, 20, 12
SERVERLESS = ("qsparse_async", "qprsgd_gossip", "choco_sgd", "deep_squeeze", "d_psgd", "squarm_sgd")
"""Those whose workers hold parameters of their own."""


def data(rank: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(rank)
    x = torch.randn(64, D, generator=g)
    truth = torch.linspace(-1, 1, D)
    return x, x @ truth + 0.1 * rank + 0.05 * torch.randn(64, generator=g)


class Cluster:
    """N shells on linear least squares; the loss is over all workers' data."""

    def __init__(self, preset: tw.Preset, lr: float = 0.05) -> None:
        self.nets = [torch.nn.Linear(D, 1) for _ in range(N)]
        self.shells = []
        for rank, net in enumerate(self.nets):
            inner = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.5, nesterov=True)
            torch.nn.init.zeros_(net.weight)
            torch.nn.init.zeros_(net.bias)
            self.shells.append(tw.LocalSGD(net, inner, group=tw.Seat(rank, N), **preset))
        self.lockstep = tw.LockStep(self.shells)

    def loss(self) -> float:
        """The mean over workers of the loss of each one's parameters on all data."""
        with torch.no_grad():
            losses = [
                (net(x).squeeze(1) - y).square().mean()
                for net in self.nets
                for x, y in map(data, range(N))
            ]
        return float(torch.stack(losses).mean())

    def run(self, rounds: int = ROUNDS) -> Cluster:
        while self.shells[0].round < rounds:
            for rank, net in enumerate(self.nets):
                x, y = data(rank)
                net.zero_grad()
                (net(x).squeeze(1) - y).square().mean().backward()
            self.lockstep.step()
        return self


@pytest.mark.parametrize("name", tw.PRESETS)
def test_every_preset_brings_the_loss_down_in_twenty_rounds(name: str) -> None:
    preset = tw.topk_sgd(k=4) if name == "topk_sgd" else tw.PRESETS[name]()
    cluster = Cluster(preset)
    before = cluster.loss()
    after = cluster.run().loss()
    assert after < 0.7 * before, (before, after)
    least = ROUNDS if preset["exchange"].pace == "common" else ROUNDS // 2
    assert all(shell.round >= least for shell in cluster.shells)


@pytest.mark.parametrize("name", tw.PRESETS)
def test_replicas_agree_in_bits_or_are_each_workers_own(name: str) -> None:
    cluster = Cluster(tw.PRESETS[name]()).run(6)
    for shell in cluster.shells[1:]:
        if name in SERVERLESS:
            assert not torch.equal(shell.anchor, cluster.shells[0].anchor)
        else:
            same_bits(shell.anchor, cluster.shells[0].anchor)


def test_the_server_and_the_ring_of_exact_values_train_alike() -> None:
    vanilla = Cluster(tw.vanilla()).run()
    ring = Cluster({**tw.vanilla(), "exchange": tw.Ring("ring")}).run()
    near(ring.shells[0].anchor, vanilla.shells[0].anchor, 1e-5)


def test_eight_bits_on_a_ring_train_as_local_sgd_does() -> None:
    exact = Cluster(tw.local_sgd(H=5)).run()
    for form in ("ring", "two-phase"):
        coded = Cluster(tw.qprsgd_ring(form=form)).run()
        assert coded.loss() == pytest.approx(exact.loss(), rel=0.02)
        near(coded.shells[0].anchor, exact.shells[0].anchor, 0.02)


def test_gossip_on_a_complete_graph_trains_as_local_sgd_does() -> None:
    exact = Cluster(tw.local_sgd(H=5)).run()
    coded = Cluster(tw.qprsgd_gossip(topology=tw.Complete())).run()
    near(coded.shells[1].anchor, exact.shells[1].anchor, 0.02)


def test_d_psgd_on_a_complete_graph_is_vanilla_but_for_ones_own_last_step() -> None:
    mean = torch.stack([s.anchor for s in Cluster(tw.d_psgd(tw.Complete())).run().shells]).mean(0)
    near(mean, Cluster(tw.vanilla()).run().shells[0].anchor, 0.01)


def test_marsit_with_every_round_a_full_one_is_vanilla() -> None:
    vanilla, always = Cluster(tw.vanilla()).run(), Cluster(tw.marsit(K=1)).run()
    near(always.shells[0].anchor, vanilla.shells[0].anchor, 1e-5)


def test_squarm_says_nothing_once_there_is_too_little_to_say() -> None:
    cluster = Cluster(tw.squarm_sgd(trigger=1e-2)).run(40)
    assert all(shell.stats.sent["SAID"] > 0 for shell in cluster.shells)
    assert sum(shell.stats.sent["SILENCE"] for shell in cluster.shells) > 0


@pytest.mark.parametrize("name", tw.PRESETS)
def test_every_preset_goes_to_plain_data_and_back(name: str) -> None:
    preset = tw.PRESETS[name]()
    for part in ("compressor", "exchange", "outer"):
        assert type(preset[part]).from_json(preset[part].to_json()) == preset[part]
    assert set(preset) == {"H", "compressor", "exchange", "outer"}
