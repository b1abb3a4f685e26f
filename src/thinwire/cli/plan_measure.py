"""What a plan can measure in a job: the link between its processes, its step, and coding."""

from __future__ import annotations

import importlib
import os
import statistics
import struct
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from thinwire.cli.plan_coding import coding_in_job, took
from thinwire.errors import ConfigError
from thinwire.link import Link
from thinwire.plan import Job, options
from thinwire.transport import DistributedTransport, Post, Take, Transport, Turn
from thinwire.wire.frame import HEADER, Address, Kind, length, seal

PINGS = 15
SMALL = 64
LONG = 0.5
"""Seconds that the longest message shall take at least, so that its rate is the line's."""
SHORTEST = 1 << 16
"""Bytes of which twice as many are sent first, and then twice as many again."""
MOST_BYTES = 64_000_000


def measured(
    d: int,
    asked: float,
    step: float | None,
    step_from: str | None,
    tell: Callable[[str], None] | None,
) -> Job | None:
    """Returns this job with the link measured between its processes, on rank 0; elsewhere None.

    Args:
        d: parameters.
        asked: utilisation.
        step: seconds of a local step, where it is known.
        step_from: "package.module:function" that takes one, where it is to be timed.
        tell: is told of each method when its coding is measured; None to leave that out.

    Raises:
        ConfigError: this is no process of a torchrun job of two or more, or no step is named, or
            the one that is named cannot be taken.
    """
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2:
        raise ConfigError(
            "--measure needs a job of two or more processes, one on each machine; write "
            "torchrun --nnodes 4 --nproc-per-node 1 ... -m thinwire.cli plan --measure ..."
        )
    if step is None and step_from is None:
        raise ConfigError("a plan needs the step: --step-time 0.8s, or --step-from module:function")
    took = step if step_from is None else step_seconds(step_from)
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    try:
        slowest = torch.tensor([took or 0.0], dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        link = measured_link()
        coding = {}
        if tell is not None:
            for option in options():
                coding[option.name] = coding_in_job(option, d, link)
                tell(option.name)
        if dist.get_rank():
            return None
        return Job(d, float(slowest), dist.get_world_size(), link, asked, coding=coding)
    finally:
        dist.barrier()
        dist.destroy_process_group()


def measured_link(wire: Transport | None = None) -> Link:
    """Returns the slowest of the lines between rank 0 and each other rank, alike on all ranks.

    One pair after the other. The latency is half the median round trip of a small frame; what
    software adds to it cannot be told from it from outside. The rate is that of a long frame,
    headers counted: each direction is measured by itself, and the slower of the two is meant. Lines
    between two ranks other than 0 are not measured.

    Args:
        wire: between two ranks or more; None for the default process group.
    """
    wire = DistributedTransport(None, HEADER, length) if wire is None else wire
    slowest = torch.zeros(2, dtype=torch.float64)
    for other in range(1, wire.size):
        dist.barrier()
        if wire.rank in (0, other):
            pair = _pair(wire, other if wire.rank == 0 else 0)
            slowest = slowest.maximum(torch.tensor(pair, dtype=torch.float64))
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    latency, per_bit = slowest.tolist()
    return Link(bandwidth=1 / per_bit, latency=latency)


def _pair(wire: Transport, peer: int) -> tuple[float, float]:
    """Returns seconds of latency to a peer, and seconds a bit takes in the slower direction."""
    trips = [_there_and_back(wire, peer, SMALL, SMALL) for _ in range(PINGS)]
    trip, per_bit = _same(wire, peer, statistics.median(trips)), 0.0
    for outwards in (True, False):
        n, took = SHORTEST, 0.0
        while took < LONG and n < MOST_BYTES:
            n *= 2
            there, back = (n, SMALL) if outwards else (SMALL, n)
            took = _same(wire, peer, _there_and_back(wire, peer, there, back) - trip)
        bits = 8 * (Link().wire_bytes(n) - Link().wire_bytes(SMALL))
        per_bit = max(per_bit, max(took, 1e-9) / bits)
    return trip / 2, per_bit


def _there_and_back(wire: Transport, peer: int, there: int, back: int) -> float:
    """Returns the seconds in which rank 0 says so many bytes and hears so many; the peer answers.

    Args:
        wire: between the two.
        peer: the other of the two.
        there: bytes of rank 0's frame.
        back: bytes of the peer's.
    """
    leads = wire.rank == 0
    says, hears = (there, back) if leads else (back, there)
    frame, ready = (
        seal(Kind.SAID, Address(0, 0, wire.rank, 0), bytes(n - HEADER)) for n in (says, SMALL)
    )
    # A peer that still makes a long frame would look like a slow line.
    wire.turn(Turn((), (Take(peer, SMALL),)) if leads else Turn((Post(peer, ready, SMALL),)))
    turns = Turn((Post(peer, frame, says),)), Turn((), (Take(peer, hears),))
    began = time.perf_counter()
    for turn in turns if leads else turns[::-1]:
        wire.turn(turn)
    wire.flush()
    return time.perf_counter() - began


def _same(wire: Transport, peer: int, took: float) -> float:
    """Returns rank 0's figure on both ranks, so that both go on, or end, together."""
    n = HEADER + 8
    if wire.rank == 0:
        frame = seal(Kind.NUMBER, Address(0, 0, 0, 0), struct.pack("<d", took))
        wire.turn(Turn((Post(peer, frame, n),)))
        wire.flush()
        return took
    (heard,) = wire.turn(Turn((), (Take(peer, n),)))
    (said,) = struct.unpack("<d", heard[HEADER:])
    return float(said)


def step_seconds(source: str) -> float:
    """Returns the median seconds of five local steps after two that warm up.

    Args:
        source: "package.module:function" that takes one.

    Raises:
        ConfigError: there is no such function, or it raises.
    """
    step = load_step(source)
    try:
        return statistics.median(took(step, 7)[2:])
    except Exception as error:
        raise ConfigError(f"--step-from {source} failed: {_said(error)}") from error


def load_step(source: str) -> Callable[[], Any]:
    """Returns the function that takes one local step.

    Raises:
        ConfigError: there is none, or its module cannot be imported.
    """
    module, colon, name = source.partition(":")
    if not colon:
        raise ConfigError(f"{source!r} names no function; write --step-from my_train:one_step")
    sys.path.insert(0, "")
    try:
        step: Callable[[], Any] = getattr(importlib.import_module(module), name)
    except Exception as error:
        # The module is the user's: as it is read it may raise anything.
        raise ConfigError(f"--step-from {source} cannot be imported: {_said(error)}") from error
    finally:
        sys.path.remove("")
    if not callable(step):
        raise ConfigError(
            f"--step-from {source} names a value of type {type(step).__name__}; name a function "
            "that takes one local step"
        )
    return step


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
