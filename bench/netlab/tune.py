"""Steps to the goal of every peer over its settings: counted in one process, no wire, no root.

    python bench/netlab/tune.py --data DIR --out DIR     # every cell, resumable
    python bench/netlab/tune.py --data DIR --out DIR --finalists    # the chosen, two seeds more
    python bench/netlab/tune.py --data DIR --out DIR --table

Steps do not depend on a link or on what else the machine does, so they are counted in lock-step,
by the same arithmetic as the real peers: DDP is one model with all workers' batches (and fp16 its
rounding), PowerSGD torch's own hook over them, for it is linear in the gradient; local SGD, by
whatever name, N models that are averaged every H steps; DiLoCo those and an outer step; thinwire
its own rounds under `LockStep`. A cell is a peer's settings and a seed: one JSON file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peer_costs import RATES, choose, probed
from peer_methods import PEERS, hooked, preset
from tasks import EVALUATE_EVERY, Task, task
from torch import Tensor, nn

import thinwire as tw
from thinwire.cli.output import write_atomically
from thinwire.cli.signals import ended

N = 4
MOST = 1536
"""Steps after which a run is given up."""
Run = tuple[nn.Module, Callable[[], None]]
"""The model that is judged, and one step of all workers."""


def gradients(what: Task, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    model.zero_grad()
    what.loss(model, *batch).backward()


def all_reduced(what: Task, peer: dict[str, Any], seed: int) -> Run:
    """DDP, and its hooks, as one worker with the batches of all."""
    model = what.model(seed)
    drawn = [what.batches(seed, rank, N) for rank in range(N)]
    if peer["algorithm"] == "powersgd" and not dist.is_initialized():
        file = tempfile.mktemp(prefix="tune-")
        dist.init_process_group("gloo", store=dist.FileStore(file, 1), rank=0, world_size=1)
    module = hooked(model, peer) if peer["algorithm"] == "powersgd" else model
    inner = what.inner(model, peer)

    def step() -> None:
        each = [next(batches) for batches in drawn]
        gradients(what, module, (torch.cat([x for x, _ in each]), torch.cat([y for _, y in each])))
        inner.step()

    return model, step


def averaged(what: Task, peer: dict[str, Any], seed: int) -> Run:
    """Local SGD, and DiLoCo: after H steps the mean, or an outer Nesterov step along it."""
    models = [what.model(seed) for _ in range(N)]
    inner = [what.inner(model, peer) for model in models]
    drawn = [what.batches(seed, rank, N) for rank in range(N)]
    anchor = what.model(seed)
    outer = None
    if peer["algorithm"] == "diloco":
        outer = torch.optim.SGD(
            anchor.parameters(), lr=peer["outer_lr"], momentum=peer["momentum"], nesterov=True
        )
    done = 0

    def step() -> None:
        nonlocal done
        for model, optimizer, batches in zip(models, inner, drawn, strict=True):
            gradients(what, model, next(batches))
            optimizer.step()
        done += 1
        if done % peer["H"]:
            return
        with torch.no_grad():
            each = [list(model.parameters()) for model in models]
            for held, *own in zip(anchor.parameters(), *each, strict=True):
                mean = torch.stack(own).mean(0)
                if outer is None:
                    held.copy_(mean)
                else:
                    held.grad = held - mean
        if outer is not None:
            outer.step()
        with torch.no_grad():
            for held, *own in zip(anchor.parameters(), *each, strict=True):
                for p in own:
                    p.copy_(held)

    return anchor, step


def rounds(what: Task, peer: dict[str, Any], seed: int) -> Run:
    """thinwire's, under LockStep."""
    models = [what.model(seed) for _ in range(N)]
    drawn = [what.batches(seed, rank, N) for rank in range(N)]
    cluster = tw.LockStep(
        [
            tw.LocalSGD(model, what.inner(model, peer), group=tw.Seat(rank, N), **preset(peer))
            for rank, model in enumerate(models)
        ]
    )

    def step() -> None:
        for model, batches in zip(models, drawn, strict=True):
            gradients(what, model, next(batches))
        cluster.step()

    return models[0], step


ALGORITHMS: dict[str, Callable[[Task, dict[str, Any], int], Run]] = {
    "all_reduce": all_reduced,
    "powersgd": all_reduced,
    "local_sgd": averaged,
    "diloco": averaged,
    "thinwire": rounds,
}


def judged_every(peer: dict[str, Any]) -> int:
    """Returns the steps between two looks: where there are rounds, at the end of one."""
    H = peer.get("H", 1)
    return int(H * -(-EVALUATE_EVERY // H))


def count(what: Task, peer: dict[str, Any], seed: int, most: int) -> dict[str, Any]:
    """Returns the steps to the goal, or None in their place where `most` do not lead there."""
    began = time.process_time()
    model, step = ALGORITHMS[peer["algorithm"]](what, peer, seed)
    every, reached, curve = judged_every(peer), None, []
    for at in range(1, most + 1):
        step()
        if at % every:
            continue
        curve.append((at, what.score(model)))
        score = curve[-1][1]
        if what.reached(score):
            reached = at
            break
        if score != score or (at >= most / 2 and score < what.far):
            break
    return {"task": what.name, "peer": peer, "seed": seed, "reached_at": reached, "given": most,
            "curve": curve, "cpu_seconds": time.process_time() - began}  # fmt: skip


def trained(what: Task, peer: dict[str, Any], seed: int) -> dict[str, Any]:
    """Returns how good the model is after the task's `steps`."""
    model, step = ALGORITHMS[peer["algorithm"]](what, peer, seed)
    for _ in range(what.steps):
        step()
    score = what.score(model)
    return {"task": what.name, "peer": peer, "seed": seed, "steps": what.steps, "score": score}


def stem(what: Task, peer: dict[str, Any], seed: int) -> str:
    """Returns a cell's file name."""
    text = json.dumps({k: v for k, v in peer.items() if k != "family"}, sort_keys=True)
    return f"{what.name}-{peer['family']}-{hashlib.sha256(text.encode()).hexdigest()[:10]}-{seed}"


def read(out: Path, what: str) -> list[dict[str, Any]]:
    """Returns the cells so far."""
    return [json.loads(file.read_text()) for file in sorted(out.glob(f"{what}-*.json"))]


INNER: dict[str, list[dict[str, Any]]] = {
    "mlp": [
        *({"lr": lr, "beta": 0.9} for lr in (0.1, 0.05, 0.2)),
        *({"lr": lr, "beta": 0.0} for lr in (0.5, 1.0, 0.3)),
    ],
    "gpt": [{"lr": lr, "beta": 0.9} for lr in (1e-3, 5e-4, 2e-3, 3e-3, 2.5e-4)],
}
"""Inner steps: SGD with and without Nesterov momentum for the MLP, AdamW for the GPT."""
KEPT = 2
"""Beyond an algorithm's anchors, so many of the inner steps that were best at any of them."""
HS = {"mlp": (8, 256, 512, 128, 64, 32, 16), "gpt": (8, 64, 32, 16, 128)}
OWN_HS = {"mlp": (8, 16, 4, 32), "gpt": (16, 8, 32, 64)}
DILOCO_HS = {"mlp": (64, 128, 32, 256, 16, 8, 512), "gpt": (32, 16, 8, 64, 128)}
OUTER = ((0.7, 0.9), (0.9, 0.5))


def grid(what: str) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yields every peer's settings that are tried, and whether with every inner step."""
    own = {"algorithm": "thinwire"}
    averaged = {"family": "local_sgd", "algorithm": "local_sgd"}
    for n, H in enumerate(HS[what][:5]):
        yield {**averaged, "H": H}, n < 2
    for n, H in enumerate(OWN_HS[what]):
        yield {"family": "signtopk", **own, "method": "signtopk", "H": H, "density": 0.01}, n < 1
    for H in OWN_HS[what][:2]:
        yield {"family": "signtopk", **own, "method": "signtopk", "H": H, "density": 0.03}, False
    yield {"family": "ddp", "algorithm": "all_reduce"}, True
    for rank in (1, 2, 4):
        powersgd = {"algorithm": "powersgd", "hook": "powersgd", "rank": rank}
        yield {"family": "powersgd", **powersgd}, rank == 1
    for n, H in enumerate(OWN_HS[what]):
        yield {"family": "ring8", **own, "method": "ring8", "H": H}, n < 1
    for H in HS[what][5:]:
        yield {**averaged, "H": H}, False
    for H in DILOCO_HS[what]:
        for outer_lr, momentum in OUTER:
            yield {"family": "diloco", "algorithm": "diloco", "H": H, "outer_lr": outer_lr,
                   "momentum": momentum}, (H, momentum) == (DILOCO_HS[what][0], 0.9)  # fmt: skip
    for H in OWN_HS[what][:2]:
        yield {"family": "topk4", **own, "method": "topk4", "H": H, "density": 0.01}, False
        yield {"family": "gossip8", **own, "method": "gossip8", "H": H}, False


def promising(cells: list[dict[str, Any]], shape: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the inner steps that came best so far, of that algorithm at an H not far from it."""
    best: dict[tuple[float, float], float] = {}
    for cell in cells:
        peer = cell["peer"]
        near = 0.25 <= peer.get("H", 1) / shape.get("H", 1) <= 4
        if cell["reached_at"] and near and peer["algorithm"] == shape["algorithm"]:
            inner = peer["lr"], peer["beta"]
            best[inner] = min(best.get(inner, MOST), cell["reached_at"])
    first = sorted(best, key=lambda inner: best[inner])[:KEPT]
    return [{"lr": lr, "beta": beta} for lr, beta in first]


def table(cells: list[dict[str, Any]]) -> str:
    """Returns each peer's best inner step, in Markdown."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        peer = {k: v for k, v in cell["peer"].items() if k not in ("lr", "beta", "algorithm")}
        groups.setdefault(json.dumps(peer), []).append(cell)
    lines = [
        "| peer | tried | best lr, momentum | steps to the goal, by seed |",
        "|---|---|---|---|",
    ]
    for key, found in groups.items():
        by: dict[tuple[float, float], list[dict[str, Any]]] = {}
        for cell in found:
            by.setdefault((cell["peer"]["lr"], cell["peer"]["beta"]), []).append(cell)
        there = {k: v for k, v in by.items() if all(c["reached_at"] for c in v)}
        best = min(
            there,
            key=lambda k: (
                -len(there[k]), sum(c["reached_at"] for c in there[k]) / len(there[k])
            ),
            default=None,
        )  # fmt: skip
        steps = "-" if best is None else " ".join(str(c["reached_at"]) for c in there[best])
        said = " ".join(f"{v}" for v in json.loads(key).values() if v is not None)
        lines.append(f"| {said} | {len(by)} | {best or 'none reached it'} | {steps} |")
    return "\n".join(lines)


def tune(what: Task, shape: dict[str, Any], full: bool, said: argparse.Namespace) -> None:
    """Counts the steps of one peer with every inner step, or with the promising ones."""
    best = said.most
    known = promising(read(said.out, what.name), shape)
    for inner in INNER[what.name] if full or not known else known:
        peer = {**shape, **inner}
        file = said.out / f"{stem(what, peer, said.seed)}.json"
        if not file.exists():
            # What its own best is far behind has lost.
            most = min(said.most, max(best + best // 8, judged_every(peer)))
            found = count(what, peer, said.seed, most)
            print(
                found["reached_at"], json.dumps(peer), f"{found['cpu_seconds']:.0f} s", flush=True
            )
            write_atomically(file, json.dumps(found).encode())
        best = min(best, json.loads(file.read_text())["reached_at"] or best)


def finalists(what: Task, said: argparse.Namespace) -> None:
    """Counts the best settings with two more seeds, until none is the best by one seed alone."""
    costs = probed(read(said.out.parent, what.name))
    while True:
        cells = read(said.out, what.name)
        found = [choose(name, rate, cells, costs) for name in PEERS for rate in RATES]
        left = {
            said.out / f"{stem(what, peer, seed)}.json": (peer, seed)
            for best in found if best is not None
            for peer in (json.loads(best[3]),)
            for seed in (1, 2)
        }  # fmt: skip
        left = {file: cell for file, cell in left.items() if not file.exists()}
        if not left:
            return
        for file, (peer, seed) in left.items():
            again = count(what, peer, seed, said.most)
            print(again["reached_at"], seed, json.dumps(peer), flush=True)
            write_atomically(file, json.dumps(again).encode())


def main() -> int:
    parser = argparse.ArgumentParser(description="Steps to the goal, over each peer's settings.")
    parser.add_argument("--task", choices=("mlp", "gpt"), default="mlp")
    parser.add_argument("--data", type=Path, help="folder of MNIST's IDX files")
    parser.add_argument("--out", type=Path, default=Path("runs/netlab/tuning"))
    parser.add_argument("--families", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=MOST)
    parser.add_argument("--finalists", action="store_true")
    parser.add_argument("--table", action="store_true")
    said = parser.parse_args()
    torch.set_num_threads(1)

    def work() -> None:
        if not said.table:
            what = task(said.task, said.data)
            said.out.mkdir(parents=True, exist_ok=True)
            if said.finalists:
                finalists(what, said)
            for shape, full in () if said.finalists else grid(said.task):
                if not said.families or shape["family"] in said.families:
                    # The GPT's inner steps are few, and its algorithms differ in the best.
                    tune(what, shape, full or said.task == "gpt", said)
        print(table(read(said.out, said.task)))

    return ended("tune", work, "the cells so far are kept")


if __name__ == "__main__":
    sys.exit(main())
