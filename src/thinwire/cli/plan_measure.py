"""What a plan can measure: the link between the processes of a job, its step, and coding here."""

from __future__ import annotations

import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from thinwire.errors import ConfigError
from thinwire.flat import Spans
from thinwire.keys import Key
from thinwire.link import Link
from thinwire.plan import Coding, Job, options
from thinwire.seat import Seat
from thinwire.shell import LocalSGD
from thinwire.simulate import LockStep
from thinwire.transport import DistributedTransport, Post, Take, Turn
from thinwire.virtual.sizes import normal
from thinwire.wire.body import Reader, pack, unpack
from thinwire.wire.frame import HEADER, Address, Kind, length, seal

ENTRIES = 1 << 20
"""Of the vector that coding is measured on."""
PINGS = 15
SMALL = 64
LONG = 0.5
"""Seconds that the longest message shall take at least, so that its rate is the line's."""
MOST_BYTES = 64_000_000


def measured(d: int, asked: float, step: float | None, step_from: str | None) -> Job | None:
    """Returns this job with the link measured between its processes, on rank 0; elsewhere None.

    Args:
        d: parameters.
        asked: utilisation.
        step: seconds of a local step, where it is known.
        step_from: "package.module:function" that takes one.

    Raises:
        ConfigError: this is no process of a torchrun job of two or more, or no step is named.
    """
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2:
        raise ConfigError(
            "--measure needs a job of two or more processes, one on each machine; write "
            "torchrun --nnodes 4 --nproc-per-node 1 ... -m thinwire.cli plan --measure ..."
        )
    if step is None and step_from is None:
        raise ConfigError("a plan needs the step: --step-time 0.8s, or --step-from module:function")
    took = step if step_from is None else step_seconds(load_step(step_from))
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    try:
        slowest = torch.tensor([took or 0.0], dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        link, message = measured_link()
        if dist.get_rank():
            return None
        return Job(d, float(slowest), dist.get_world_size(), link, asked, message)
    finally:
        dist.barrier()
        dist.destroy_process_group()


def measured_link() -> tuple[Link, float]:
    """Returns the link of the slowest pair of ranks, and seconds of software in its latency.

    Rank 0 and each other rank in turn: half the median round trip of a small frame, and the rate
    of long ones, headers counted, in the slower direction. What software adds to a latency cannot
    be told from it from outside, so it is 0 here and in the latency.
    """
    wire = DistributedTransport(None, HEADER, length)
    found = []
    for other in range(1, wire.size):
        dist.barrier()
        if wire.rank not in (0, other):
            continue
        peer = other if wire.rank == 0 else 0
        trip = statistics.median(_there_and_back(wire, peer, SMALL) for _ in range(PINGS))
        n, took = 1 << 16, 0.0
        while took < LONG and n < MOST_BYTES:
            n *= 2
            took = _same(wire, peer, _there_and_back(wire, peer, n) - trip)
        found.append((trip / 2, 2 * 8 * Link().wire_bytes(n) / max(took, 1e-9)))
    worst = torch.tensor(
        [max((t for t, _ in found), default=0.0), -min((r for _, r in found), default=1e18)],
        dtype=torch.float64,
    )
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return Link(bandwidth=float(-worst[1]), latency=float(worst[0])), 0.0


def _there_and_back(wire: DistributedTransport, peer: int, n: int) -> float:
    """Sends a frame of n bytes to a peer and back, or answers one; returns the seconds."""
    frame = seal(Kind.SAID, Address(0, 0, wire.rank, 0), bytes(n - HEADER))
    post, take = Post(peer, frame, n), Take(peer, n)
    began = time.perf_counter()
    for turn in (Turn((post,)), Turn((), (take,)))[:: 1 if wire.rank == 0 else -1]:
        wire.turn(turn)
    wire.flush()
    return time.perf_counter() - began


def _same(wire: DistributedTransport, peer: int, took: float) -> float:
    """Returns rank 0's figure on both ranks, so that both go on, or end, together."""
    import struct

    n = HEADER + 8
    if wire.rank == 0:
        frame = seal(Kind.NUMBER, Address(0, 0, 0, 0), struct.pack("<d", took))
        wire.turn(Turn((Post(peer, frame, n),)))
        wire.flush()
        return took
    (heard,) = wire.turn(Turn((), (Take(peer, n),)))
    (said,) = struct.unpack("<d", heard[HEADER:])
    return float(said)


def load_step(source: str) -> Callable[[], Any]:
    """Returns the function that takes one local step.

    Raises:
        ConfigError: there is none.
    """
    module, colon, name = source.partition(":")
    if not colon:
        raise ConfigError(f"{source!r} names no function; write --step-from my_train:one_step")
    sys.path.insert(0, "")
    try:
        step: Callable[[], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--step-from {source} cannot be called: {error}") from error
    finally:
        sys.path.remove("")
    return step


def step_seconds(step: Callable[[], Any]) -> float:
    """Returns the median of five steps after two that warm up."""
    return statistics.median(_took(step, 7)[2:])


def measured_coding() -> dict[str, Coding]:
    """Returns what coding costs on this machine, by method, from a vector of 2^20 entries.

    `own` is a whole round of a worker that is alone: reading parameters, forming and coding the
    message, remembering what is owed, the outer step. `hear` is decoding one message and adding it.
    Each is the fastest of five, since another program can only slow them down.
    """
    found = {}
    for option in options():
        model = torch.nn.Linear(ENTRIES // 1024, 1024, bias=False)
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        cluster = LockStep([LocalSGD(model, inner, group=Seat(0, 1), **option.preset)])
        spans, C, key = Spans.of(ENTRIES), option.preset["compressor"], Key(0)
        u = normal(ENTRIES, key)
        body = pack(C.compress(u, key, spans), C)
        total = torch.zeros(ENTRIES)

        def sync(model: Any = model, u: Any = u, cluster: LockStep = cluster) -> None:
            with torch.no_grad():
                model.weight.view(-1).add_(u, alpha=1e-3)
            cluster.sync()

        def hear(body: bytes = body, C: Any = C, spans: Spans = spans, into: Any = total) -> None:
            C.accumulate(into, unpack(Reader(body, "measured"), C, spans, Key(0)))

        found[option.name] = Coding(
            min(_took(sync, 6)[1:]) / ENTRIES, min(_took(hear, 6)[1:]) / ENTRIES
        )
    return found


def _took(action: Callable[[], Any], times: int) -> list[float]:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return took
