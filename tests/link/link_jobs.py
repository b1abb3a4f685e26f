"""Jobs that the tests of paced links run inside worker processes."""

import hashlib
import time

import torch
import torch.distributed as dist

import thinwire as tw
from thinwire.link import Link
from thinwire.transport import Post, Take, Turn
from thinwire.wire.frame import HEADER, Address, Kind, length, seal


def frame(rank: int, n: int) -> bytes:
    return seal(Kind.SAID, Address(1, 0, rank, 0), bytes(n - HEADER))


def paced(link, seed=0):
    return tw.Paced(Link.parse(link), seed=seed).over(HEADER, length)


def everybody_to_rank_0(rank, N, args, say):
    """The others post one frame at once; rank 0 says how long it took to have them all."""
    n, wire = args["bytes"], paced(args["link"])
    for _ in range(args.get("rounds", 1)):
        # Before the barrier: nobody posts until rank 0 is there.
        began = time.monotonic()
        dist.barrier()
        if rank:
            wire.turn(Turn((Post(0, frame(rank, n), n),)))
        else:
            got = wire.turn(Turn((), tuple(Take(r, n) for r in range(1, N))))
            whole = [g == frame(r + 1, n) for r, g in enumerate(got)]
            say("took", seconds=time.monotonic() - began, whole=whole)
        wire.flush()


def sums(rank, N, args, say):
    wire, vector = paced(args["link"]), torch.full((args["d"],), float(rank))
    began = time.monotonic()
    dist.barrier()
    total = wire.reduce(vector)
    say("took", seconds=time.monotonic() - began, right=bool((total == sum(range(N))).all()))


def trains(rank, N, args, say):
    """Three rounds of a preset, over the group as it is and over a link."""
    for line in (None, tw.Paced(Link.parse(args["link"]))):
        torch.manual_seed(0)
        net = torch.nn.Linear(40, 10)
        inner = torch.optim.SGD(net.parameters(), lr=0.1)
        optimizer = tw.LocalSGD(net, inner, group=line, **tw.PRESETS[args["preset"]]())
        for step in range(3):
            x = torch.linspace(-1, 1 + rank + step, 40)
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.sync()
        digest = hashlib.sha256(optimizer.anchor.numpy().tobytes()).hexdigest()
        say("trained", digest=digest, sent=sum(optimizer.stats.sent.values()))
