"""One rank of a job that times rounds of a method: seconds, framed bytes, the model's prediction.

Run by bench/netlab/lab.py: `lab.py run -- bench/netlab/rounds.py --method ring --params 25600000`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time

import torch
import torch.distributed as dist
from lab import line, report

import thinwire as tw

METHODS = {
    "vanilla": tw.vanilla(),
    "delegate": tw.vanilla(delegate=True),
    "ring": tw.qprsgd_ring(H=1),
    "ring hops": tw.qprsgd_ring(H=1, form="ring"),
    "gossip": tw.qprsgd_gossip(H=1),
    "server": tw.qsparse_local_sgd(H=1),
    "gather": tw.qsparse_local_sgd(H=1, exchange=tw.Gather()),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=METHODS, default="ring")
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out")
    said = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(said.params))
    inner = torch.optim.SGD([weight], lr=0.1)
    delay = line()
    group = None if delay is None else tw.Paced(delay)
    optimizer = tw.LocalSGD([("w", weight)], inner, group=group, **METHODS[said.method])
    draw = torch.Generator().manual_seed(rank)
    took = []
    for _ in range(said.rounds + 1):
        with torch.no_grad():
            weight.add_(torch.randn(said.params, generator=draw), alpha=0.01)
        dist.barrier()
        began = time.perf_counter()
        optimizer.sync()
        took.append(time.perf_counter() - began)
    framed = sum(optimizer.stats.sent.values())
    report(framed=framed)
    # The first loads kernels.
    slowest = torch.tensor([statistics.median(took[1:])])
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    if rank == 0:
        result = {
            "method": said.method, "params": said.params, "workers": dist.get_world_size(),
            "seconds": float(slowest), "framed": framed, "rounds": said.rounds + 1,
        }  # fmt: skip
        print(json.dumps(result), flush=True)
        if said.out:
            with open(said.out, "w") as file:
                json.dump(result, file)
    del optimizer
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
