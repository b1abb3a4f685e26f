"""Load on one hub: 64 clients, d = 10 M, SignTopK 0.1 %, beside a plain gRPC echo.

The echo has the same shape (one stream a client, the same messages, cut alike) and answers with
the sizes that the hub's answers had, but decodes, adds, compresses and syncs nothing. Hub and
echo take turns in one run, each a process of its own on the same cores as the clients.

    python bench/hub_load.py

Each pair of runs is two lines of `--log`; a second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import statistics
import sys
import time
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import torch
from published import publish

import thinwire as tw
from thinwire.flat import Spans
from thinwire.hub import rpc
from thinwire.hub.hub_pb2 import Down, Hello, Piece, Up
from thinwire.hub.server import HubServer, Limits
from thinwire.hub.service import send
from thinwire.hub.settings import HubSettings
from thinwire.kernels import cpu
from thinwire.memory import keep_freed, set_aside
from thinwire.runs import ran_on
from thinwire.wire.body import pack
from thinwire.wire.frame import Address, Kind, seal

C = tw.TopK(density=0.001) >> tw.Sign()
DOWNLINKS: dict[str, Any] = {
    "stream": tw.Stream(C),
    "exact": tw.Exact(),
}
GOAL = 2.0
SPAWN = multiprocessing.get_context("spawn")


def settings_of(downlink: str, clients: int) -> HubSettings:
    exchange = tw.Hub(counting=tw.FixedN(clients), downlink=DOWNLINKS[downlink])
    return HubSettings(compressor=C, exchange=exchange)


def serve_hub(downlink: str, clients: int, d: int, state: str, says: Connection) -> None:
    torch.set_num_threads(1)
    cpu.warm()
    logging.getLogger("thinwire.hub").setLevel(logging.ERROR)
    server = HubServer(
        settings_of(downlink, clients),
        [("x", torch.nn.Parameter(torch.zeros(d)))],
        Path(state),
        limits=Limits(timeout=600.0),
    )

    async def main() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
        says.send(await server.start("127.0.0.1:0"))
        await server.serve(2.0)
        says.send((server.service.meter.updates, server.commits.batches, server.commits.records))

    asyncio.run(main())


def serve_echo(sizes: list[int], says: Connection) -> None:
    async def train(requests: Any, context: Any) -> None:
        at = 0
        async for up in requests:
            if up.piece.last:
                await send((b"x" * sizes[at % len(sizes)],), context)
                at += 1

    class Methods(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(
                train, Up.FromString, Down.SerializeToString
            )

    keep_freed()
    set_aside()

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        server = grpc.aio.server(options=rpc.OPTIONS)
        server.add_generic_rpc_handlers((Methods(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        says.send(port)
        await stop.wait()
        await server.stop(0)
        says.send(None)

    asyncio.run(main())


class Client:
    """One simulated worker: says an update, waits for the answer, says the next."""

    def __init__(self, number: int, port: int, body: bytes) -> None:
        self.number, self.body = number, body
        options = (*rpc.OPTIONS, ("grpc.use_local_subchannel_pool", 1))
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        self.call = self.channel.stream_stream(rpc.TRAIN, Up.SerializeToString, Down.FromString)()
        self.run, self.rank, self.sequence, self.version = 0, number, 0, 0
        self.seconds: list[float] = []
        self.sizes: list[int] = []

    async def join(self, description: str) -> None:
        hello = Hello(
            protocol=rpc.PROTOCOL, worker=f"w{self.number}", weight=1.0, description=description
        )
        await self.call.write(Up(hello=hello))
        welcome = (await self.call.read()).welcome
        self.run, self.rank, self.sequence = welcome.run, welcome.number, welcome.sequence
        frame = await self.frame()
        self.version = int.from_bytes(frame[34:42], "little")

    async def frame(self) -> bytes:
        parts = []
        while True:
            down = await self.call.read()
            parts.append(down.piece.data)
            if down.piece.last:
                return b"".join(parts)

    async def update(self) -> None:
        frame = seal(Kind.SAID, Address(self.run, self.sequence, self.rank), self.body)
        began = time.perf_counter()
        for data, last in rpc.pieces(frame):
            await self.call.write(Up(piece=Piece(data=data, last=last, base=self.version)))
        answer = await self.frame()
        self.seconds.append(time.perf_counter() - began)
        self.sizes.append(len(answer))
        self.sequence += 1
        if answer[:2] == b"tw":
            self.version = int.from_bytes(answer[34:42], "little")

    async def until(self, end: float) -> None:
        while time.perf_counter() < end:
            await self.update()


async def load(port: int, bodies: list[bytes], seconds: float, description: str | None) -> Any:
    clients = [Client(n, port, body) for n, body in enumerate(bodies)]
    if description is not None:
        for client in clients:
            await client.join(description)
    await asyncio.gather(*(c.until(time.perf_counter() + 2.0) for c in clients))
    for client in clients:
        client.seconds, client.sizes = [], []
    began = time.perf_counter()
    await asyncio.gather(*(c.until(began + seconds) for c in clients))
    took = time.perf_counter() - began
    for client in clients:
        await client.channel.close()
    times = sorted(t for c in clients for t in c.seconds)
    sizes = [s for c in clients for s in c.sizes]
    return {
        "updates_per_second": len(times) / took,
        "p50_ms": 1e3 * times[len(times) // 2],
        "p99_ms": 1e3 * times[int(0.99 * len(times))],
        "reply_bytes": statistics.mean(sizes),
        "slowest_to_fastest": min(len(c.seconds) for c in clients)
        / max(len(c.seconds) for c in clients),
    }, sizes


def one(
    loop: asyncio.AbstractEventLoop,
    target: Any,
    args: tuple[Any, ...],
    bodies: list[bytes],
    seconds: float,
    about: Any,
) -> Any:
    hears, says = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=target, args=(*args, says), daemon=True)
    process.start()
    says.close()  # so that a server that dies at its start is an error, not a wait
    port = hears.recv()
    result, sizes = loop.run_until_complete(load(port, bodies, seconds, about))
    process.terminate()
    said = hears.recv() if hears.poll(60.0) else None
    process.join(60.0)
    if said:
        result["updates_per_sync"] = said[2] / max(1, said[1])
    return result, sizes


def measure(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    spans = Spans(("x",), ((chosen.d,),))
    u, bodies = torch.randn(chosen.d), []
    for n in range(chosen.clients):
        u = u.roll(12345)
        bodies.append(pack(C.compress(u, tw.Key(0, 0, n + 1), spans), C))
    del u
    tensors = [["x", f"({chosen.d},)", "float32", "parameter"]]
    chosen.log.parent.mkdir(parents=True, exist_ok=True)
    lines = chosen.log.read_text().splitlines() if chosen.log.exists() else []
    results = [json.loads(line) for line in lines]
    done = {(r["downlink"], r["turn"]) for r in results if r["what"] == "echo"}
    # One loop for all: gRPC's clients stand still for good now and then when a second one begins.
    loop = asyncio.new_event_loop()
    for downlink in chosen.downlink:
        settings = settings_of(downlink, chosen.clients).as_dict()
        about = json.dumps({"settings": settings, "tensors": tensors})
        for turn in range(chosen.turns):
            if (downlink, turn) in done:
                continue
            state = chosen.state / f"{downlink}-{turn}"
            shutil.rmtree(state, ignore_errors=True)
            args = (downlink, chosen.clients, chosen.d, str(state))
            hub, sizes = one(loop, serve_hub, args, bodies, chosen.seconds, about)
            shutil.rmtree(state)
            echo, _ = one(loop, serve_echo, (sizes[:5000],), bodies, chosen.seconds, None)
            for what, result in (("hub", hub), ("echo", echo)):
                result.update(what=what, downlink=downlink, turn=turn, up_bytes=len(bodies[0]) + 26)
                results.append(result)
                with chosen.log.open("a") as out:
                    out.write(json.dumps(result) + "\n")
                print(json.dumps(result), flush=True)
    return results


def table(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| downlink | turn | bytes up | bytes down | hub: updates/s | p50 ms | p99 ms | a sync | "
        "echo: updates/s | p50 ms | p99 ms | echo / hub |",
        "|" + "---|" * 12,
    ]
    pairs: dict[tuple[str, int], dict[str, Any]] = {}
    for r in results:
        pairs.setdefault((r["downlink"], r["turn"]), {})[r["what"]] = r
    for (downlink, turn), pair in pairs.items():
        hub, echo = pair["hub"], pair["echo"]
        ratio = echo["updates_per_second"] / hub["updates_per_second"]
        lines.append(
            f"| {downlink} | {turn} | {hub['up_bytes']} | {hub['reply_bytes']:.0f} | "
            f"{hub['updates_per_second']:.0f} | {hub['p50_ms']:.1f} | {hub['p99_ms']:.1f} | "
            f"{hub['updates_per_sync']:.1f} | {echo['updates_per_second']:.0f} | "
            f"{echo['p50_ms']:.1f} | {echo['p99_ms']:.1f} | {ratio:.2f} |"
        )
    return lines


def verdict(results: list[dict[str, Any]]) -> list[str]:
    lines = ["| downlink | goal, echo / hub | worst | mean | |", "|---|---|---|---|---|"]
    for downlink in dict.fromkeys(r["downlink"] for r in results):
        rates: dict[str, list[float]] = {"hub": [], "echo": []}
        for r in results:
            if r["downlink"] == downlink:
                rates[r["what"]].append(r["updates_per_second"])
        ratios = [echo / hub for hub, echo in zip(rates["hub"], rates["echo"], strict=True)]
        met = "met" if max(ratios) <= GOAL else "MISSED"
        mean = statistics.mean(ratios)
        lines.append(f"| {downlink} | {GOAL} | {max(ratios):.2f} | {mean:.2f} | {met} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--d", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--downlink", nargs="+", choices=DOWNLINKS, default=list(DOWNLINKS))
    parser.add_argument("--state", type=Path, default=Path("runs/hub_load"))
    parser.add_argument("--log", type=Path, default=Path("runs/hub_load.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("bench/RESULTS-hub_load.md"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()
    results = measure(chosen)
    about = ran_on(grpcio=grpc.__version__)
    command = shlex.join(("python", "bench/hub_load.py", *sys.argv[1:]))
    text = "\n".join(
        [
            "# Load on one hub, beside a plain gRPC echo",
            "",
            f"{datetime.now(timezone.utc):%Y-%m-%d}, `{command}`, "
            f"{chosen.clients} clients, d = {chosen.d:,}, SignTopK 0.1 %, {chosen.seconds:g} s a "
            f"turn after 2 s of warm-up. {about}.",
            "",
            "Clients and server share the cores. An update is decoded, checked, applied, written "
            "and synced before its answer leaves. `a sync`: updates that one sync of the disk made "
            "durable. The echo answers with the sizes of the hub's answers and does nothing else. "
            "Where other work shares the machine, a pair's ratio moves with it: see the load "
            f"average, which was {os.getloadavg()[0]:.1f} at the end.",
            "",
            *table(results),
            "",
            *verdict(results),
            "",
        ]
    )
    publish(text, chosen.out)


if __name__ == "__main__":
    main()
