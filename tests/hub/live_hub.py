"""A hub on loopback in a thread of the test, and what a rude caller can say to it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import torch
from hub_cases import same_state  # noqa: F401  (handed on to the tests)

import thinwire as tw
from thinwire.hub import rpc
from thinwire.hub.entry import Entry
from thinwire.hub.hub_pb2 import Down, Hello, Up
from thinwire.hub.server import HubServer, Limits
from thinwire.hub.settings import HubSettings

SETTINGS = HubSettings(
    H=2,
    compressor=tw.TopK(k=3) >> tw.Sign(),
    exchange=tw.Hub(downlink=tw.Stream(tw.TopK(density=0.3) >> tw.Sign())),
)


def net(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))


class Live:
    """One hub process's life, in a thread."""

    def __init__(self, folder: Path, listen: str = "127.0.0.1:0", **more: Any) -> None:
        settings = more.pop("settings", SETTINGS)
        self.metrics = more.pop("metrics", None)
        model = list((more.pop("model", None) or net()).named_parameters())
        self.server = HubServer(settings, model, folder, **more)
        self.listen, self.port = listen, 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def _run(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            try:
                self.port = await self.server.start(self.listen, self.metrics)
            finally:
                self._ready.set()
            await self.server.serve(2.0)

        asyncio.run(main())

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    @property
    def state(self):
        return self.server.core.state

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def live(folder: Path, **more: Any) -> Iterator[Live]:
    hub = Live(folder, **more)
    try:
        yield hub
    finally:
        hub.stop()


def join(hub: Live | str, seed: int = 1, model: torch.nn.Module | None = None, **more: Any):
    model = net(seed) if model is None else model
    address = hub if isinstance(hub, str) else hub.address
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    more.setdefault("patience", 20.0)
    return tw.join(address, model, inner, **more), model


def train(optimizer: tw.LocalSGD, model: torch.nn.Module, rounds: int, seed: int = 0) -> None:
    g = torch.Generator().manual_seed(seed)
    until = optimizer.round + rounds
    while optimizer.round < until:
        optimizer.zero_grad()
        model(torch.randn(4, 6, generator=g)).square().mean().backward()
        optimizer.step()


class Rude:
    """A caller that says whatever it is told to."""

    def __init__(self, address: str, metadata: tuple = ()) -> None:
        self.channel = grpc.insecure_channel(address, options=rpc.OPTIONS)
        self.metadata = metadata

    def say(self, *words: Up | bytes, answers: int = 0) -> tuple[str, str]:
        """Says the words on one stream; returns the status code's name and the sentence."""
        stream = self.channel.stream_stream(
            rpc.TRAIN, lambda w: w if isinstance(w, bytes) else w.SerializeToString(),
            Down.FromString,
        )  # fmt: skip
        call = stream(iter(words), metadata=self.metadata, timeout=20)
        try:
            for _ in call:
                pass
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return "OK", ""

    def close(self) -> None:
        self.channel.close()


def hello(hub: Live, name: str = "rude", **more: Any) -> Up:
    """The first word of a worker that joins."""
    about = json.dumps(hub.server.description)
    fields = {"protocol": rpc.PROTOCOL, "worker": name, "weight": 1.0, "description": about}
    return Up(hello=Hello(**{**fields, **more}))


class Lines(logging.Handler):
    """Keeps the hub's log lines."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def certificates(folder: Path) -> dict[str, Path]:
    """Writes an authority, a hub's and two workers' certificates, and a stranger's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now, files = datetime.datetime.now(datetime.timezone.utc), {}

    def make(name: str, signer: tuple | None) -> tuple:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if signer is None else signer[0].subject
        names = [x509.DNSName("localhost" if name == "hub" else name)]
        if name == "hub":
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), False)
            .add_extension(x509.BasicConstraints(signer is None, None), True)
            .sign(key if signer is None else signer[1], hashes.SHA256())
        )
        files[name] = folder / f"{name}.pem"
        files[f"{name}.key"] = folder / f"{name}.key"
        files[name].write_bytes(built.public_bytes(serialization.Encoding.PEM))
        files[f"{name}.key"].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return built, key

    authority = make("authority", None)
    for name in ("hub", "alice", "bob"):
        make(name, authority)
    make("stranger", make("other", None))
    return files


__all__ = [
    "Entry", "Limits", "Lines", "Live", "Rude", "certificates", "hello", "join", "live", "train",
]  # fmt: skip
