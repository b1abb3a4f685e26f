"""A run of four processes and the run in one process end in identical bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_worker as worker
import pytest
import torch

import thinwire as tw

N, STEPS = 4, 12
SIGNTOPK = tw.TopK(density=0.05) >> tw.Sign()
UNBIASED = tw.QSGD(bits=8, norm="max", bucket=64, scale="none")
CHUNKED = tw.TopK(density=0.1, scope="chunk", chunk=32) >> tw.Rotated(bucket=16)
CASES = [
    (4, SIGNTOPK, tw.Server(), tw.Average()),
    (4, SIGNTOPK, tw.Gather(), tw.Average()),
    (2, tw.TopK(k=9, scope="global") >> tw.QSGD(bits=4), tw.Server(), tw.Nesterov()),
    (
        1,
        tw.QSGD(bits=8, norm="max", bucket=64, scale="none"),
        tw.Gather(tw.NoFeedback()),
        tw.Average(),
    ),
    (3, tw.RandK(density=0.2) >> tw.Ternary(), tw.Server(), tw.Average()),
    (
        2,
        tw.TopK(density=0.1, scope="chunk", chunk=32) >> tw.Rotated(bucket=16),
        tw.Gather(),
        tw.Average(),
    ),
    (2, tw.Sign(), tw.Server(downlink=tw.Sign()), tw.Average()),
    (2, tw.Levels(levels=7), tw.Server(tw.Feedback(decay=0.9), root=3), tw.Average()),
    (4, tw.Identity(), tw.Server(tw.NoFeedback()), tw.Average()),
    (2, UNBIASED, tw.Ring("ring", pipeline=50), tw.Average()),
    (2, tw.Sign(), tw.Ring("ring", tw.Feedback()), tw.Nesterov()),
    (3, UNBIASED, tw.Ring("two-phase"), tw.Average()),
    (1, SIGNTOPK, tw.Ring("gather", tw.Feedback()), tw.Average()),
    (2, UNBIASED, tw.Gossip(), tw.Average()),
    (2, UNBIASED, tw.Gossip(tw.Hypercube(), mixing="before"), tw.Average()),
    (2, UNBIASED, tw.Gossip(correction=0.5), tw.Average()),
    (2, tw.TopK(density=0.1), tw.Choco(), tw.Average()),
    (1, SIGNTOPK, tw.Choco(tw.Complete(), gamma=0.5, trigger=1e-3), tw.Average()),
    (1, tw.QSGD(bits=8, norm="max"), tw.DeepSqueeze(), tw.Average()),
    (2, tw.Identity(), tw.DPSGD(tw.RandomMatching(), mixing="before"), tw.Average()),
    (2, tw.Identity(), tw.DPSGD(tw.OnePeerExponential()), tw.Average()),
    (2, UNBIASED, tw.EdgeGossip(tw.RandomMatching()), tw.Average()),
    (1, tw.Sign(), tw.Marsit(K=5), tw.Average()),
    (tw.RandomGaps(3), SIGNTOPK, tw.Asynchronous(), tw.Adopt()),
    (tw.RandomGaps(2), tw.Sign(), tw.Asynchronous(outer=tw.Nesterov(), root=2), tw.Adopt()),
]
OWN = (tw.Gossip, tw.EdgeGossip, tw.Choco, tw.DeepSqueeze, tw.DPSGD)
"""Exchanges after which each worker holds parameters of its own."""


def spec(H, compressor, exchange, outer):
    return {
        "H": H.to_json() if isinstance(H, tw.RandomGaps) else H,
        "compressor": compressor.to_json(),
        "exchange": exchange.to_json(),
        "outer": outer.to_json(),
        "steps": STEPS,
    }


def torchrun(*arguments: str, n: int = N, timeout: float = 240) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(n), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def in_one_process(s: dict) -> list[tuple[torch.Tensor, dict]]:
    """Returns each rank's anchor and what it counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    nets, draws = [worker.model() for _ in range(N)], [worker.draws_of(r) for r in range(N)]
    shells = [worker.shell(net, s, tw.Seat(rank, N)) for rank, net in enumerate(nets)]
    cluster = tw.LockStep(shells)
    for _ in range(s["steps"]):
        for net, optimizer, draw in zip(nets, shells, draws, strict=True):
            optimizer.zero_grad()
            worker.backward(net, draw)
        cluster.step()
    torch.set_num_threads(threads)
    own = isinstance(shells[0].exchange, OWN)
    for optimizer in shells[1:]:
        if isinstance(optimizer.exchange, tw.Asynchronous):
            continue  # Two that spoke last at the same tick hold the same.
        assert torch.equal(optimizer.anchor, shells[0].anchor) != own
    return [(o.anchor, o.stats.as_dict()) for o in shells]


@pytest.mark.network
def test_four_processes_and_one_process_end_in_the_same_bits_and_bytes(tmp_path: Path) -> None:
    specs = [spec(*case) for case in CASES]
    (tmp_path / "specs.json").write_text(json.dumps(specs))
    done = torchrun(worker.__file__, str(tmp_path / "specs.json"), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(N)]
    for number, s in enumerate(specs):
        for rank, (anchor, stats) in enumerate(in_one_process(s)):
            there, counted = ranks[rank][number]
            assert torch.equal(there.view(torch.int32), anchor.view(torch.int32)), (s, rank)
            assert counted == stats, (s, rank)
