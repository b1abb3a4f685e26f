"""What the processes of the hub's demo do: one serves, the others learn the digits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from thinwire.cli.demo_train import Digits, network
from thinwire.cli.hub import tell
from thinwire.hub.join import join, transport_of
from thinwire.hub.server import HubServer, Limits
from thinwire.hub.settings import HubSettings


@dataclass(frozen=True)
class HubJob:
    """What the hub's process is told.

    Args:
        settings: of the run, as `HubSettings.as_dict`.
        state: its folder.
        listen: "host:port".
        log: a file.
        seed: of the first model.
        timeout: seconds of silence until a worker is lost.
    """

    settings: dict[str, Any]
    state: str
    listen: str
    log: str
    seed: int
    timeout: float = 60.0


@dataclass(frozen=True)
class WorkerJob:
    """What a worker's process is told.

    Args:
        name: on the hub.
        address: of the hub.
        data: the file of digits.
        rank: which share of them.
        N: how many shares.
        seed: of the order in which it reads them.
        lr: of its SGD.
        pause: seconds it sleeps at each step, as a slower machine would compute.
        saves: the file of its checkpoint, one after each round; None for none.
        rounds: after so many on the hub it leaves; None for never.
    """

    name: str
    address: str
    data: str
    rank: int
    N: int
    seed: int
    lr: float
    pause: float = 0.0
    saves: str | None = None
    rounds: int | None = None


def serve(job: HubJob, said: Connection) -> None:
    """Runs a hub; says ("port", number) when it listens."""
    torch.set_num_threads(1)
    tell(Path(job.log), screen=False)
    model = list(network(job.seed).named_parameters())
    settings = HubSettings.from_dict(json.loads(json.dumps(job.settings)))
    server = HubServer(settings, model, Path(job.state), limits=Limits(timeout=job.timeout))

    async def main() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
        said.send(("port", await server.start(job.listen)))
        await server.serve()

    asyncio.run(main())


def learn(job: WorkerJob, said: Connection) -> None:
    """Trains until SIGTERM; says ("joined" | "sent" | "acknowledged", sequence number)."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    torch.set_num_threads(1)
    digits = Digits(job.data, job.rank, job.N, job.seed)
    model = network(job.seed)
    inner = torch.optim.SGD(model.parameters(), lr=job.lr)
    saved = None
    if job.saves is not None and os.path.exists(job.saves):
        saved = torch.load(job.saves, weights_only=True)
    optimizer = join(job.address, model, inner, worker=job.name, resume=saved, patience=120.0)
    transport = transport_of(optimizer)
    said.send(("joined", optimizer.round))
    transport.tell = lambda what, sequence: said.send((what, sequence))
    epoch, before = optimizer.round, optimizer.round
    while not stopped:
        epoch += 1
        for images, labels in digits.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            time.sleep(job.pause)
            if optimizer.round > before and job.saves is not None:
                save(optimizer.state_dict(), job.saves)
            before = optimizer.round
            if stopped or (job.rounds is not None and optimizer.round >= job.rounds):
                optimizer.leave()
                said.send(("left", optimizer.round))
                return


def save(state: dict[str, Any], file: str) -> None:
    """Writes a checkpoint whole or not at all."""
    torch.save(state, f"{file}.part")
    os.replace(f"{file}.part", file)
