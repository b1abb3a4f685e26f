"""The worker program of the engine tests: every case in its own group, one result each.

`engines_program.py CASES FOLDER` runs the named cases in order in every rank and writes what
happened on this rank to FOLDER/rankR.pt: for each case {"error", "message", "seconds", ...}.
A case that hangs ends by its group's timeout and does not spoil the others.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import thinwire as tw
from thinwire.transport import Post, Turn

PATIENCE = 8.0
IN, OUT, STEPS = 6, 3, 6
SIGNTOPK = tw.TopK(density=0.1) >> tw.Sign()
Result = dict[str, Any]


def net(seed: int = 0, width: int = 5) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(IN, width), nn.Tanh(), nn.Linear(width, OUT))


def wide() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(IN, 60000), nn.Tanh(), nn.Linear(60000, OUT))


def backward(model: nn.Module, rank: int, step: int, scale: float = 1.0) -> None:
    draws = torch.Generator().manual_seed(1000 * rank + step)
    x = torch.randn(8, IN, generator=draws)
    y = torch.randint(OUT, (8,), generator=draws)
    model.zero_grad()
    (scale * nn.functional.cross_entropy(model(x), y)).backward()


def shell(model: nn.Module, group: Any, **arguments: Any) -> tw.LocalSGD:
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    return tw.LocalSGD(model, inner, group=group, **arguments)


def vector(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def train(model: nn.Module, optimizer: tw.LocalSGD, rank: int, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        backward(model, rank, step)
        optimizer.step()


def run_in_group(group: Any, model: nn.Module, steps: int = STEPS, **arguments: Any) -> Result:
    """Trains and returns what must be equal on all ranks, and in one process."""
    optimizer = shell(model, group, **arguments)
    train(model, optimizer, optimizer.place[0], steps)
    return {
        "place": optimizer.place,
        "anchor": optimizer.anchor,
        "params": vector(model),
        "round": optimizer.round,
    }


# Ranks that disagree: every one must raise the same.


def differing(**of_rank_1: Any) -> Callable[[Any, int], Result]:
    """A case in which rank 1 alone is given other arguments."""
    common = {"H": 4, "compressor": SIGNTOPK, "exchange": tw.Server(), "seed": 5}

    def case(group: Any, rank: int) -> Result:
        shell(net(), group, **{**common, **(of_rank_1 if rank == 1 else {})})
        return {}

    return case


def broken_on(culprit: int, **arguments: Any) -> Callable[[Any, int], Result]:
    def case(group: Any, rank: int) -> Result:
        shell(net(), group, **(arguments if rank == culprit else {}))
        return {}

    return case


def late_zero(round: int) -> int:
    return 2 if round == 0 else 0


def other_shape(group: Any, rank: int) -> Result:
    shell(net(width=4 if rank == 2 else 5), group)
    return {}


def fewer_tensors(group: Any, rank: int) -> Result:
    model = net()
    if rank == 1:
        model[2].bias.requires_grad_(False)
    shell(model, group)
    return {}


def other_inner(group: Any, rank: int) -> Result:
    """Rank 1's inner optimizer steps another model's parameters."""
    model, other = net(), net()
    inner = torch.optim.SGD((other if rank == 1 else model).parameters(), lr=0.1)
    tw.LocalSGD(model, inner, group=group)
    return {}


def other_version(group: Any, rank: int) -> Result:
    module = sys.modules["thinwire.shell"]
    true = module.__version__
    if rank == 1:
        module.__version__ = "0.0.of-rank-1"
    try:
        shell(net(), group)
    finally:
        module.__version__ = true
    return {}


def other_start(group: Any, rank: int) -> Result:
    model = net(seed=rank)
    before = vector(model)
    optimizer = shell(model, group, compressor=SIGNTOPK, exchange=tw.Server())
    start = vector(model)
    train(model, optimizer, rank, STEPS)
    return {"before": before, "start": start, "anchor": optimizer.anchor, "params": vector(model)}


# A NaN, a skipped step, a stop.


def nan_under(
    exchange: tw.Exchange, compressor: tw.Compressor, make: Callable[[], Any] = net
) -> Callable[[Any, int], Result]:
    def case(group: Any, rank: int) -> Result:
        model = make()
        optimizer = shell(model, group, exchange=exchange, compressor=compressor, H=2)
        train(model, optimizer, rank, 3)
        anchor, round = optimizer.anchor.clone(), optimizer.round
        backward(model, rank, 3)
        good = model[2].weight.detach().clone()
        if rank == 1:
            model[2].weight.grad[0, 0] = float("nan")
        began = time.monotonic()
        try:
            optimizer.step()
            found, told = None, ""
        except tw.NonFiniteError as error:
            found, told = error.found, str(error)
        seconds = time.monotonic() - began
        kept = bool(torch.equal(optimizer.anchor, anchor)) and optimizer.round == round
        if rank == 1:
            with torch.no_grad():
                model[2].weight.copy_(good)
            optimizer.inner.state.clear()
        train(model, optimizer, rank, 3, first=4)
        return {
            "found": found,
            "told": told,
            "nan_seconds": seconds,
            "kept": kept,
            "round": optimizer.round,
            "params": vector(model),
        }

    return case


def scaler_skips(group: Any, rank: int) -> Result:
    """Rank 1's GradScaler finds an infinity in step 2; the others' do not."""
    model = net()
    optimizer = shell(model, group, compressor=SIGNTOPK, exchange=tw.Server(), H=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for step in range(STEPS):
        backward(model, rank, step, scale=scaler.get_scale())
        scaler.scale(torch.zeros(()))  # a scaler is made on first use
        if rank == 1 and step == 2:
            model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    return {"round": optimizer.round, "params": vector(model), "scale": scaler.get_scale()}


def silent(group: Any, rank: int) -> Result:
    """Rank 2 stays silent for longer than the group's patience."""
    model = net()
    optimizer = shell(model, group, compressor=SIGNTOPK, exchange=tw.Gather())
    train(model, optimizer, rank, 1)
    if rank == 2:
        time.sleep(4 * SILENT_PATIENCE)
        return {}
    train(model, optimizer, rank, 1, first=1)
    return {}


SILENT_PATIENCE = 2.0


# Whole runs.


def run_of(**arguments: Any) -> Callable[[Any, int], Result]:
    return lambda group, rank: run_in_group(group, net(), **arguments)


def large_under(exchange: tw.Exchange, compressor: tw.Compressor) -> Callable[[Any, int], Result]:
    """d = 600003: dense frames of 2.4 MB, of many messages, which go round; sparse ones do not."""
    return lambda group, rank: run_in_group(
        group, wide(), steps=2, exchange=exchange, compressor=compressor
    )


SUBGROUP = (1, 2)


def many_pieces(group: Any, rank: int) -> Result:
    """A ring of 60 pieces, each frame two messages: far more posts than takes at any time."""
    held = nn.Parameter(torch.zeros(1_200_000))
    ring = tw.Ring(pipeline=20_000)
    optimizer = tw.LocalSGD([held], torch.optim.SGD([held], lr=0.1), exchange=ring, group=group)
    with torch.no_grad():
        held.fill_(rank + 1.0)
    optimizer.sync()
    return {"anchor": optimizer.anchor[::1000].clone()}


LONG = 3 << 20


def long_coded(group: Any, rank: int) -> Result:
    """Coded segments of 1 MiB, 4 pieces each, held back; the last entry of round 1 is a NaN's."""
    held = nn.Parameter(torch.zeros(LONG))
    optimizer = tw.LocalSGD(
        [("held", held)],
        torch.optim.SGD([held], lr=0.1),
        group=group,
        **{**tw.qprsgd_ring(H=1), "exchange": tw.Ring(pipeline=1 << 18)},
    )
    found = None
    for round in range(3):
        with torch.no_grad():
            held.add_(drawn(rank, round))
            held[-1] = torch.nan if (rank, round) == (1, 1) else 0.5
        try:
            optimizer.sync()
        except tw.NonFiniteError as error:
            found = error.found
            optimizer.write_anchor()
    return {"found": found, "anchor": optimizer.anchor.clone(), "round": optimizer.round}


def drawn(rank: int, round: int) -> torch.Tensor:
    return torch.randn(LONG, generator=torch.Generator().manual_seed(10 * rank + round))


def subgroup(group: Any, rank: int) -> Result:
    """Ranks 1 and 2 of the gang are ranks 0 and 1 of a group of their own."""
    own = dist.new_group(list(SUBGROUP), timeout=timedelta(seconds=PATIENCE))
    if rank not in SUBGROUP:
        return {}
    return {
        name: run_in_group(own, net(), exchange=exchange, compressor=compressor, H=2)
        for name, exchange, compressor in (
            ("server", tw.Server(), SIGNTOPK),
            ("server, root 1", tw.Server(root=1), SIGNTOPK),
            ("gather", tw.Gather(), SIGNTOPK),
            ("all-reduce", tw.AllReduce(), tw.Identity()),
        )
    }


# Altered on the wire.


class Altering:
    """A transport that changes one byte of this rank's next post to another rank."""

    def __init__(self, inner: Any, at: int) -> None:
        self.inner, self.at, self.armed = inner, at, False
        self.rank, self.size = inner.rank, inner.size

    def turn(self, turn: Turn) -> list[bytes]:
        posts = tuple(self._altered(post) for post in turn.posts)
        return self.inner.turn(Turn(posts, turn.takes))

    def reduce(self, vector: torch.Tensor) -> torch.Tensor:
        return self.inner.reduce(vector)

    def flush(self) -> None:
        self.inner.flush()

    def _altered(self, post: Post) -> Post:
        if not self.armed or post.to == self.rank:
            return post
        self.armed = False
        frame = bytearray(post.frame)
        frame[self.at] ^= 0x10
        return Post(post.to, bytes(frame), post.bound)


def altered(at: int, speaker: int) -> Callable[[Any, int], Result]:
    """The byte `at` of one frame of `speaker` is changed, in round 1, under Server(root=0)."""

    def case(group: Any, rank: int) -> Result:
        model = net()
        optimizer = shell(model, group, compressor=SIGNTOPK, exchange=tw.Server())
        wire = Altering(optimizer._transport, at)
        optimizer._transport = wire
        train(model, optimizer, rank, 1)
        wire.armed = rank == speaker
        anchor = optimizer.anchor.clone()
        began = time.monotonic()
        try:
            train(model, optimizer, rank, 1, first=1)
            refused, told = None, ""
        except tw.ThinwireError as error:
            refused, told = type(error).__name__, str(error)
        seconds = time.monotonic() - began
        kept = bool(torch.equal(optimizer.anchor, anchor)) and optimizer.round == 1
        result = {"refused": refused, "told": told, "refused_seconds": seconds, "kept": kept}
        if refused == "FrameError":
            optimizer.sync()  # the same round, said again
            result |= {"again": optimizer.round, "params": vector(model)}
        return result

    return case


FRAMED = {"exchange": tw.Server(tw.NoFeedback()), "compressor": tw.Identity()}
CASES: dict[str, Callable[[Any, int], Result]] = {
    "many pieces": many_pieces,
    "long coded": long_coded,
    "other H": differing(H=8),
    "other compressor": differing(compressor=tw.TopK(density=0.2) >> tw.Sign()),
    "other exchange": differing(exchange=tw.Gather()),
    "other outer": differing(outer=tw.Nesterov()),
    "other seed": differing(seed=6),
    "other buffers": differing(buffers="average"),
    "other function H": differing(H=lambda round: 4 if round < 100 else 5),
    "other shape": other_shape,
    "fewer tensors": fewer_tensors,
    "other version": other_version,
    "H=0 on rank 0": broken_on(0, H=0),
    "H=0 on rank 1": broken_on(1, H=0),
    "no contraction on rank 2": broken_on(2, compressor=tw.TopK(k=1)),
    "root beyond N on rank 1": broken_on(1, exchange=tw.Server(root=9)),
    "late zero H on rank 1": broken_on(1, H=late_zero),
    "no setting on rank 1": broken_on(1, compressor=0.01),
    "other inner on rank 1": other_inner,
    "other start": other_start,
    "nan, server": nan_under(tw.Server(), SIGNTOPK),
    "nan, server, root 2": nan_under(tw.Server(root=2), SIGNTOPK),
    "nan, gather": nan_under(tw.Gather(), SIGNTOPK),
    "nan, large, gather": nan_under(tw.Gather(), tw.Identity(), wide),
    "nan, all-reduce": nan_under(tw.AllReduce(), tw.Identity()),
    "scaler skips": scaler_skips,
    "vanilla": run_of(**tw.vanilla()),
    "vanilla delegated": run_of(**tw.vanilla(delegate=True)),
    "large, server": large_under(tw.Server(), tw.Identity()),
    "large, server, root 2": large_under(tw.Server(root=2), tw.Identity()),
    "large, gather": large_under(tw.Gather(), tw.Identity()),
    "large, ring": large_under(tw.Ring(), tw.Identity()),
    "large, sparse": large_under(tw.Gather(), tw.TopK(k=5)),
    "subgroup": subgroup,
    "altered body": altered(-1, speaker=1),
    "altered round": altered(8, speaker=2),
    "altered magic": altered(0, speaker=1),
    "altered length": altered(16, speaker=1),
    "silent": silent,
}


def main(names: list[str], folder: Path) -> None:
    rank, results = dist.get_rank(), {}
    for name in names:
        patience = SILENT_PATIENCE if name == "silent" else PATIENCE
        dist.barrier()  # a rank may come late from the last case, by that case's patience
        group = dist.new_group(timeout=timedelta(seconds=patience))
        result: Result = {"error": None, "message": ""}
        began = time.monotonic()
        try:
            result |= CASES[name](group, rank)
        except Exception as error:
            result |= {"error": type(error).__name__, "message": str(error)}
        results[name] = {**result, "seconds": time.monotonic() - began}
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def die(folder: Path) -> None:
    """Ranks 0 to 2 talk to a server, ranks 3 to 5 gather; the last of each dies mid-run."""
    rank = dist.get_rank()
    patience = timedelta(seconds=60)
    groups = [dist.new_group(members, timeout=patience) for members in ([0, 1, 2], [3, 4, 5])]
    exchange = tw.Server() if rank < 3 else tw.Gather()
    model = net()
    optimizer = shell(model, groups[rank // 3], compressor=SIGNTOPK, exchange=exchange)
    place = optimizer.place[0]
    train(model, optimizer, place, 2)
    anchor = optimizer.anchor.clone()
    dist.barrier()
    if place == 2:
        os._exit(0)  # no goodbye: its sockets close, as when a process is killed
    began = time.monotonic()
    result: Result = {"error": None, "message": "", "lost": None}
    try:
        train(model, optimizer, place, 3, first=2)
    except tw.ThinwireError as error:
        result |= {
            "error": type(error).__name__,
            "message": str(error),
            "lost": getattr(error, "rank", None),
        }
    result["seconds"] = time.monotonic() - began
    result["kept"] = bool(torch.equal(optimizer.anchor, anchor)) and optimizer.round == 2
    torch.save(result, folder / f"rank{rank}.pt")
    os._exit(0)  # as a program that the error ends


LATE = 2.5


def gossip(folder: Path) -> None:
    """Four ranks on a ring graph: rank 2 comes late to its third round, rank 3 dies in its fifth.

    The one is waited for, and the bits are as if it had been in time; the other is lost.
    """
    rank, model = dist.get_rank(), net()
    reports: list[tw.RoundReport] = []
    optimizer = shell(model, None, on_round=reports.append, **tw.qprsgd_gossip(H=1))
    train(model, optimizer, rank, 2)
    began = time.monotonic()
    if rank == 2:
        time.sleep(LATE)
    train(model, optimizer, rank, 2, first=2)
    result: Result = {
        "waited": time.monotonic() - began,
        "anchor": optimizer.anchor.clone(),
        "lost": sum(r.lost for r in reports),
    }
    dist.barrier()
    if rank == 3:
        torch.save(result, folder / f"rank{rank}.pt")
        os._exit(0)
    began = time.monotonic()
    try:
        train(model, optimizer, rank, 3, first=4)
    except tw.TransportError as error:
        result |= {"error": type(error).__name__, "of": getattr(error, "rank", None)}
    result |= {"seconds": time.monotonic() - began, "done": optimizer.round}
    torch.save(result, folder / f"rank{rank}.pt")
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=90))
    if sys.argv[1] == "die":
        die(Path(sys.argv[2]))
    if sys.argv[1] == "gossip":
        gossip(Path(sys.argv[2]))
    main(sys.argv[1].split(";"), Path(sys.argv[2]))
