"""`thinwire hub`: the hub of asynchronous workers."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinwire.errors import ConfigError
from thinwire.files import check_writable

if TYPE_CHECKING:
    from thinwire.hub.server import HubServer
    from thinwire.hub.settings import HubSettings

LOG = logging.getLogger("thinwire.hub")
GRACE = 10.0
"""Seconds that answers have to leave once the hub is told to stop."""


def hub(
    model_from: Annotated[
        str, typer.Option(help="Checkpoint of {name: parameter}, or package.module:function.")
    ],
    state: Annotated[Path, typer.Option(help="Folder of its journal; the same one to go on.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:7077",
    H: Annotated[int, typer.Option("--H", min=1, help="Local steps of a round, at most.")] = 8,
    random_gaps: Annotated[
        bool, typer.Option(help="Each worker's steps are drawn from 1 to H.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(help="End a round after so long, with fewer steps.")
    ] = None,
    density: Annotated[float, typer.Option(help="SignTopK's kept fraction, up.")] = 0.01,
    down: Annotated[
        float, typer.Option(help="Kept fraction of what comes down; 0: exact replies.")
    ] = 0.01,
    per_worker: Annotated[
        bool, typer.Option(help="A residual for each worker in place of the shared stream.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(help="Bytes kept to repeat what was said (64MiB), or of residuals (1GiB)."),
    ] = None,
    count: Annotated[
        str, typer.Option(help="Divide an update by: live, weight, or a number N.")
    ] = "live",
    stale: Annotated[
        int | None, typer.Option(help="Staleness up to which an update counts in full.")
    ] = None,
    policy: Annotated[str, typer.Option(help="And beyond: accept, scale or refuse.")] = "accept",
    outer: Annotated[str, typer.Option(help="average, nesterov or delayed-nesterov.")] = "average",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    settings: Annotated[
        Path | None, typer.Option(help="All of these as JSON, in place of the options above.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Authority that workers' certificates need.")
    ] = None,
    client_name: Annotated[
        list[str] | None, typer.Option(help="Whose certificate may enter; may be repeated.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File of a secret all share.")] = None,
    most_workers: Annotated[int, typer.Option(min=1, help="Live at once.")] = 1024,
    rate: Annotated[float | None, typer.Option(help="Updates a worker may send a second.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds of silence until it is lost.")] = 60.0,
    linger: Annotated[
        float, typer.Option(help="Seconds an answer may wait for a shared sync of the disk.")
    ] = 0.0,
    snapshot: Annotated[
        str, typer.Option(help="Bytes of journal after which a snapshot replaces it.")
    ] = "1GiB",
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Prometheus' text, over HTTP, to whoever asks."),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Also write the log to this file.")] = None,
) -> None:
    """Run the hub that asynchronous workers join with thinwire.join.

    An update is on the disk before it is answered: after any crash, start it with the same
    --state, and the workers go on by themselves. SIGTERM drains it.
    """
    import torch

    from thinwire import units
    from thinwire.cli.hub_model import load_model
    from thinwire.hub.entry import Entry, host_of, is_loopback, read_token
    from thinwire.hub.server import HubServer, Limits

    torch.set_num_threads(1)
    tell(log)
    kept = {} if memory is None else {"memory": units.size(memory)}
    if settings is not None:
        chosen = read_settings(settings)
    else:
        chosen = chosen_settings(
            H,
            random_gaps,
            seconds,
            density,
            down,
            per_worker,
            kept,
            count,
            stale,
            policy,
            outer,
            seed,
        )
    names = tuple(client_name or ())
    entry = Entry(tls_cert, tls_key, client_ca, names, read_token(token_file))
    entry.check_address(listen)
    if metrics is not None and not is_loopback(host_of(metrics)):
        LOG.warning(
            "metrics know no TLS and no token: whoever reaches %s reads workers' names and figures",
            metrics,
        )
    limits = Limits(
        workers=most_workers,
        rate=rate,
        timeout=timeout,
        linger=linger,
        snapshot=units.size(snapshot),
    )
    server = HubServer(chosen, load_model(model_from), state, entry, limits)
    warm()
    asyncio.run(run(server, listen, metrics))


def warm() -> None:
    """Compiles the kernels, or loads them, so that no update waits for it."""
    from thinwire.cli.doctor import examine_kernels
    from thinwire.kernels import cpu

    found = examine_kernels(False)
    if found["compiled"] < found["kernels"]:
        LOG.info("compiling kernels, once on this machine: half a minute or so until it listens")
    cpu.warm()


async def run(server: HubServer, listen: str, metrics: str | None) -> None:
    """Serves until SIGTERM or Ctrl-C, then drains."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await server.start(listen, metrics)
    await server.serve(GRACE)


def tell(file: Path | None, screen: bool = True) -> None:
    """Writes the hub's log, one line an event, to standard error, to a file, or both.

    Raises:
        ConfigError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()] if screen else []
    check_writable(file)
    if file is not None:
        try:
            handlers.append(logging.FileHandler(file, encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    form = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    LOG.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(form)
        LOG.addHandler(handler)


def read_settings(file: Path) -> HubSettings:
    """Returns the settings that a JSON file holds."""
    from thinwire.hub.settings import HubSettings

    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    return HubSettings.from_dict(data)


def chosen_settings(
    H: int,
    random_gaps: bool,
    seconds: float | None,
    density: float,
    down: float,
    per_worker: bool,
    kept: dict[str, int],
    count: str,
    stale: int | None,
    policy: Any,
    outer: str,
    seed: int,
) -> HubSettings:
    """Returns the settings that the options ask for."""
    from thinwire.compress import Sign, TopK
    from thinwire.exchange import (
        ByWeight,
        Exact,
        FixedN,
        Hub,
        LiveCount,
        PerWorker,
        Staleness,
        Stream,
    )
    from thinwire.hub.settings import HubSettings
    from thinwire.outer import Average, DelayedNesterov, Nesterov
    from thinwire.schedule import RandomGaps
    from thinwire.value import one_of

    one_of(hub, "outer", outer, ("average", "nesterov", "delayed-nesterov"))
    outers = {"average": Average, "nesterov": Nesterov, "delayed-nesterov": DelayedNesterov}
    if count.isdigit():
        counting: Any = FixedN(int(count))
    else:
        one_of(hub, "count", count, ("live", "weight"))
        counting = LiveCount() if count == "live" else ByWeight()
    if per_worker and not down:
        raise ConfigError("--down 0 asks for exact replies, and --per-worker for compressed ones")
    downlink: Any = Exact(**kept)
    if down:
        kind = PerWorker if per_worker else Stream
        downlink = kind(TopK(density=down) >> Sign(), **kept)
    return HubSettings(
        H=RandomGaps(H) if random_gaps else H,
        seconds=seconds,
        compressor=TopK(density=density) >> Sign(),
        exchange=Hub(
            outer=outers[outer](),
            counting=counting,
            staleness=Staleness(stale, policy),
            downlink=downlink,
        ),
        seed=seed,
    )
