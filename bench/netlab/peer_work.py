"""One rank of a job of bench/netlab/peers.py: runs its cells one after another.

A start takes longer than most cells, so one job holds many; each leaves its file when it is done.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lab import report
from peer_costs import SKIPPED
from peer_methods import KINDS
from tasks import Task, task
from tune import judged_every

import thinwire as tw
from thinwire.cli.output import write_atomically

EACH = ("probe", "quick")
"""The cells whose every step is kept, for what a step and a round cost."""


def run(what: Task, cell: dict[str, Any]) -> dict[str, Any]:
    """Runs one cell on this rank and returns what came of it, on all ranks together.

    Seconds are of zero_grad, forward, backward and step, with all that `step` waits for; drawing
    batches, judging and starting are left out for every peer alike.
    """
    peer, seed = cell["peer"], cell["seed"]
    rank, N = dist.get_rank(), dist.get_world_size()
    model = what.model(seed)
    module, optimizer, close = KINDS[peer["kind"]](model, lambda m: what.inner(m, peer), peer)
    batches = what.batches(seed, rank, N)
    every, reached, curve, each = judged_every(peer), None, [], []
    framed = _framed(optimizer)
    dist.barrier()
    before = started = interface()
    for step in range(1, cell["steps"] + 1):
        if step == SKIPPED + 1:
            started = interface()
        x, y = next(batches)
        began = time.perf_counter()
        optimizer.zero_grad()
        what.loss(module, x, y).backward()
        optimizer.step()
        each.append(time.perf_counter() - began)
        if cell["judge"] and step % every == 0:
            score = torch.zeros(1, dtype=torch.float64)
            if rank == 0:
                score[0] = what.score(model)
            dist.broadcast(score, 0)
            curve.append((step, round(sum(each), 4), float(score)))
            if reached is None and what.reached(float(score)):
                reached = step
                if cell["stop"]:
                    break
    now = interface()
    own = [sum(each), now - before, _framed(optimizer) - framed, now - started]
    facts = [torch.tensor(own, dtype=torch.float64) for _ in range(N)]
    dist.all_gather(facts, facts[rank].clone())
    sent, said, later = (int(sum(float(f[i]) for f in facts)) for i in (1, 2, 3))
    close()
    return {
        **cell, "task": what.name, "workers": N, "done": step, "reached_at": reached,
        "seconds": max(float(f[0]) for f in facts), "sent": sent, "framed": said or None,
        "sent_later": later,
        "each": [round(s, 6) for s in each] if cell["how"] in EACH else None, "curve": curve,
    }  # fmt: skip


def _framed(optimizer: torch.optim.Optimizer) -> int:
    return sum(optimizer.stats.sent.values()) if isinstance(optimizer, tw.LocalSGD) else 0


def interface() -> int:
    """Returns the bytes that this host has sent on eth0; 0 where it has none."""
    found = re.search(r"eth0:\s*(.*)", Path("/proc/net/dev").read_text())
    return 0 if found is None else int(found[1].split()[8])


def warm_up(what: Task, cells: list[dict[str, Any]]) -> None:
    """Loads kernels and opens connections: two rounds of each of thinwire's methods, and DDP's."""
    seen = []
    for cell in cells:
        peer = {**cell["peer"], "H": 1}
        method = (peer["kind"], peer.get("method"), peer.get("density"))
        if peer["kind"] in ("ddp", "thinwire") and method not in seen:
            seen.append(method)
            run(what, {**cell, "peer": peer, "steps": 2, "judge": False, "stop": False})


def main() -> None:
    said = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    what = task(said["task"], Path(said["data"]) if said["data"] else None)
    warm_up(what, said["cells"])
    for cell in said["cells"]:
        result = run(what, cell)
        gc.collect()
        if dist.get_rank() == 0:
            write_atomically(Path(cell["file"]), json.dumps(result).encode())
        dist.barrier()
    report(framed=0)
    dist.barrier()
    # Peers leave threads behind that hold the interpreter.
    os._exit(0)


if __name__ == "__main__":
    main()
