"""One rank of a job that times rounds of methods: seconds, framed bytes, and how the time splits.

Run by bench/netlab/lab.py, lines.py and predict.py, as in
`lab.py run -- bench/netlab/rounds.py --methods ring --params 25600000`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from lab import line, report

import thinwire as tw
from thinwire.cli.plan_coding import Work, agreed_coding
from thinwire.cli.plan_measure import measured_link
from thinwire.compress import QSGD
from thinwire.stats import Stats
from thinwire.virtual import Sizes

EIGHT = QSGD(bits=8, norm="max", bucket=1024, coding="fixed")
METHODS: dict[str, Any] = {
    "vanilla": tw.vanilla(),
    "delegate": tw.vanilla(delegate=True),
    "exact gather": {**tw.vanilla(), "exchange": tw.Gather(tw.NoFeedback())},
    "exact ring": {**tw.vanilla(), "exchange": tw.Ring()},
    "ring": tw.qprsgd_ring(H=1),
    "ring hops": tw.qprsgd_ring(H=1, form="ring"),
    "gossip": tw.qprsgd_gossip(H=1),
    "server": tw.qsparse_local_sgd(H=1),
    "gather": tw.qsparse_local_sgd(H=1, exchange=tw.Gather()),
    "server 8 bits": tw.qsparse_local_sgd(1, EIGHT, tw.Server(tw.Feedback(), downlink=EIGHT)),
    "gather 8 bits": tw.qsparse_local_sgd(1, EIGHT, tw.Gather()),
}
ALL_REDUCE = "torch's all_reduce"
MOST = 40
"""The most rounds of one kind that are timed."""


class Bare:
    """torch's own all_reduce of the same vector, as a round."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.stats = Stats()

    def sync(self) -> None:
        dist.all_reduce(self.weight)
        self.weight /= dist.get_world_size()


def agreed(seconds: float) -> float:
    """Returns the most that any rank says."""
    most = torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return float(most)


@dataclass(frozen=True)
class Took:
    """What one round took on one rank.

    Args:
        local: seconds of its local steps.
        sync: seconds of the rest.
        step: seconds on a core of one of those steps.
    """

    local: float
    sync: float
    step: float


def flowing(one: Callable[[int, bool], Took], H: int, rounds: int) -> float:
    """Returns the median seconds of rounds that follow each other freely."""
    dist.barrier()
    ends = []
    for _ in range(rounds + 1):
        one(H, False)
        ends.append(time.perf_counter())
    return statistics.median(b - a for a, b in pairwise(ends))


def timed(method: str, said: argparse.Namespace) -> dict[str, Any]:
    """Returns what rounds of a method took on the slowest rank, local steps between them."""
    rank, N = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(said.params))
    inner = torch.optim.SGD([weight], lr=0.1)
    delay = line()
    group = None if delay is None else tw.Paced(delay)
    optimizer: Any = Bare(weight.detach())
    if method != ALL_REDUCE:
        optimizer = tw.LocalSGD([("w", weight)], inner, group=group, **METHODS[method])
    work = None if method == ALL_REDUCE else Work(optimizer.transport)
    draw = torch.Generator().manual_seed(rank)

    def one(H: int, together: bool = True) -> Took:
        dist.barrier() if together else None
        began, worked = time.perf_counter(), time.thread_time()
        for _ in range(H):
            with torch.no_grad():
                weight.add_(torch.randn(said.params, generator=draw), alpha=0.01)
        stepped, step = time.perf_counter(), (time.thread_time() - worked) / H
        dist.barrier() if together and said.apart else None
        talked = time.perf_counter()
        optimizer.sync() if work is None else work.note(optimizer.sync)
        return Took(stepped - began, time.perf_counter() - talked, step)

    # The first round loads kernels, the second says how long one takes.
    one(said.hs[0])
    began = time.perf_counter()
    one(said.hs[0])
    alone = agreed(time.perf_counter() - began)
    before = optimizer.stats.totals()
    if work is not None:
        work.rounds.clear()
    rounds = max(said.rounds, min(MOST, int(said.seconds / alone)))
    took: dict[int, list[Took]] = {H: [] for H in said.hs}
    for _ in range(rounds):
        for H in said.hs:
            took[H].append(one(H))
    _, sent, received = (
        (b - a) / (rounds * len(said.hs))
        for a, b in zip(before, optimizer.stats.totals(), strict=True)
    )
    medians = None if work is None else work.medians()
    coding = None
    if medians is not None:
        found = agreed_coding(medians, received, Sizes(optimizer.compressor, said.params))
        coding = [found.own, found.hear]
    freely = {H: flowing(one, H, rounds) for H in said.hs} if said.freely else {}
    # What the busiest line carries: a master answers when it has heard all.
    exchange = METHODS.get(method, {}).get("exchange")
    busy = sent + received if isinstance(exchange, tw.Server) else max(sent, received)
    own = [busy, sum(optimizer.stats.sent.values())]
    for H in said.hs:
        own += [statistics.median(each.local for each in took[H])]
        own += [statistics.median(each.sync for each in took[H])]
        own += [statistics.median(each.local + each.sync for each in took[H])]
    own += [statistics.median(each.step for each in took[said.hs[-1]])]
    every = [torch.zeros(len(own), dtype=torch.float64) for _ in range(N)]
    dist.all_gather(every, torch.tensor(own, dtype=torch.float64))
    most = torch.stack(every).max(0).values.tolist()
    parts = ("local", "sync", "round")
    times = {
        H: dict(zip(parts, most[2 + 3 * n : 5 + 3 * n], strict=True)) for n, H in enumerate(said.hs)
    }
    for H, seconds in freely.items():
        times[H]["freely"] = agreed(seconds)
    worked: list[Any] = [None] * N
    dist.all_gather_object(worked, medians)
    return {"method": method, "params": said.params, "workers": N, "busiest": most[0],
            "framed": own[1], "times": times, "step": most[-1], "rounds": rounds,
            "work": worked, "coding": coding}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, ALL_REDUCE), default=["ring"])
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--hs", type=int, nargs="+", default=[1], help="local steps of a round")
    parser.add_argument("--rounds", type=int, default=3, help="of each H, at least")
    parser.add_argument("--seconds", type=float, default=0.0, help="so many more as fill them")
    parser.add_argument("--latency", action="store_true", help="measure that, too")
    parser.add_argument("--apart", action="store_true", help="steps over, all wait for all")
    parser.add_argument("--freely", action="store_true", help="also rounds that wait for none")
    parser.add_argument("--out")
    said = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    latency = measured_link().latency if said.latency else None
    results = []
    for method in said.methods:
        results.append({**timed(method, said), "latency": latency})
        gc.collect()
        if dist.get_rank() == 0:
            print(json.dumps(results[-1]), flush=True)
    report(framed=int(sum(result["framed"] for result in results)))
    if said.out and dist.get_rank() == 0:
        with open(said.out, "w") as file:
            json.dump(results, file)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
