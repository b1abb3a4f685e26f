"""`thinwire demo-hub`: three workers of different speed, a hub, and a kill -9 for one of each."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinwire.cli.output import Bars, bars, document, logged, size, write_json
from thinwire.errors import ConfigError, ThinwireError, TransportError
from thinwire.files import check_writable
from thinwire.runs import RunLog

if TYPE_CHECKING:
    from thinwire.cli.hub_gang import HubGang
    from thinwire.hub.settings import HubSettings

PAUSES = (0.0, 0.004, 0.016)
"""Seconds that each worker sleeps at a step, as slower machines would compute longer."""
PATIENCE = 180.0


def demo_hub(
    updates: Annotated[int, typer.Option(min=30, help="Updates the hub shall apply.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the model and the order.")] = 0,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the result as JSON.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Log, JSON lines; by default in runs/.")
    ] = None,
) -> None:
    """Train digits through a hub here, and kill it and a worker on the way.

    A hub and three workers of different speed are processes of this machine. One worker is killed
    and returns with its residual; the hub is killed and returns with its journal. At the end: the
    accuracy, the bytes, and the ledger of updates: sent, acknowledged, applied.
    """
    check_writable(json)
    check_installed()
    with logged("demo-hub", seed, {"updates": updates}, log) as run, bars() as drawn:
        result = play(updates, seed, run, drawn)
        run.write("result", **result)
    show(result)
    typer.echo(f"Log: {run.file}")
    if json is not None:
        write_json(json, document("demo-hub", seed, [result]))


def play(updates: int, seed: int, run: RunLog, drawn: Bars) -> dict[str, Any]:
    """Runs the demo and returns its result.

    Args:
        updates: that the hub shall apply.
        seed: of everything drawn.
        run: is told what happens.
        drawn: shows it.
    """
    from thinwire.cli.demo_train import save_digits
    from thinwire.cli.hub_gang import HubGang
    from thinwire.cli.hub_worker import HubJob, WorkerJob

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="thinwire-demo-hub-") as folder:
        data = f"{folder}/digits.npz"
        n_test = save_digits(data, seed)
        settings = demo_settings(seed)
        job = HubJob(
            settings.as_dict(), f"{folder}/state", "127.0.0.1:0", f"{folder}/hub.log", seed
        )
        names = [f"worker-{rank}" for rank in range(len(PAUSES))]
        jobs = [
            WorkerJob(name, "", data, rank, len(names), seed, 0.1, pause, f"{folder}/{name}.pt")
            for rank, (name, pause) in enumerate(zip(names, PAUSES, strict=True))
        ]
        drawn.add("starting", 0)
        with HubGang(job, jobs) as gang:
            gang.start_hub()
            drawn.finish("starting", f"a hub on {gang.address}")
            for name in names:
                gang.start_worker(name)
            _reach(gang, updates // 4, drawn, "three workers")
            gang.kill_worker(names[1])
            run.write("killed", who=names[1])
            _reach(gang, updates // 2, drawn, f"{names[1]} killed; two workers")
            gang.start_worker(names[1])
            run.write("returned", who=names[1])
            _reach(gang, updates * 3 // 4, drawn, f"{names[1]} has returned; three workers")
            before = _status(gang)
            gang.kill_hub()
            run.write("killed", who="hub")
            gang.start_hub()
            run.write("returned", who="hub")
            _reach(gang, updates, drawn, "hub killed and returned; three workers")
            gang.stop_workers()
            gang.settled()
            after = _status(gang)
            gang.stop_hub()
            sent, acknowledged = gang.ledger.counts()
        model = final_model(Path(folder) / "state")
        up, down = (before[k] + after[k] for k in ("bytes_up", "bytes_down"))
        return {
            "workers": len(names),
            "updates": {w["name"]: w["sequence"] for w in after["workers"]},
            "sent": sent,
            "acknowledged": acknowledged,
            "applied": after["applied"],
            "equal": sent == acknowledged == after["applied"],
            "bytes_up": up,
            "bytes_down": down,
            "dense_bytes": 4 * after["d"] * after["applied"],
            "staleness_histogram": after["staleness_histogram"],
            "accuracy": accuracy_of(model, data, seed),
            "test_images": n_test,
            "seconds": round(time.monotonic() - began, 1),
        }


def demo_settings(seed: int) -> HubSettings:
    """Returns the demo's settings: SignTopK both ways, random gaps up to 8."""
    from thinwire.compress import Sign, TopK
    from thinwire.exchange import Hub, LiveCount, Stream
    from thinwire.hub.settings import HubSettings
    from thinwire.schedule import RandomGaps

    C = TopK(density=0.02) >> Sign()
    exchange = Hub(counting=LiveCount(), downlink=Stream(C))
    return HubSettings(H=RandomGaps(8), compressor=C, exchange=exchange, seed=seed)


def final_model(state: Path) -> Any:
    """Returns the model of a hub that was drained, (d,) float32."""
    from thinwire.hub.journal import Journal
    from thinwire.hub.snapshot import decode

    journal = Journal(state)
    try:
        snapshot, records = journal.recover()
        if snapshot is None or any(True for _ in records):
            raise ThinwireError(f"the hub of {state} was not drained")
        return decode(snapshot, 1 << 62).model
    finally:
        journal.close()


def accuracy_of(model: Any, data: str, seed: int) -> float:
    """Returns the share of the test digits that a model gets right."""
    from thinwire.cli.demo_train import Digits, accuracy, network

    return accuracy(network(seed), model, Digits(data, 0, 1, seed).test)


def check_installed() -> None:
    """Raises a ConfigError unless the demo's packages are there."""
    import importlib.util

    for package, extra in (("sklearn", "demo"), ("grpc", "hub")):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"this needs {package}: pip install 'thinwire[{extra}]'")


def show(result: dict[str, Any]) -> None:
    """Prints what came of it."""
    ratio = result["dense_bytes"] / result["bytes_up"]
    typer.echo(
        f"accuracy {result['accuracy']:.1%} on {result['test_images']} test digits after "
        f"{result['seconds']:.0f} s; updates by worker: "
        + ", ".join(f"{name} {n}" for name, n in result["updates"].items())
    )
    typer.echo(
        f"{size(result['bytes_up'])} up ({ratio:.0f} times fewer than dense), "
        f"{size(result['bytes_down'])} down"
    )
    verdict = "equal" if result["equal"] else "NOT EQUAL"
    typer.echo(
        f"ledger: {result['sent']} updates sent, {result['acknowledged']} acknowledged, "
        f"{result['applied']} applied: {verdict}"
    )
    if not result["equal"]:
        raise ThinwireError("an update was lost or applied twice; please report this")


def _reach(gang: HubGang, applied: int, drawn: Bars, note: str) -> None:
    until = time.monotonic() + PATIENCE
    drawn.add(note, 0)
    while (status := _status(gang))["applied"] < applied:
        if time.monotonic() > until:
            raise ThinwireError(f"the hub did not reach {applied} updates in {PATIENCE:g} s")
        time.sleep(0.1)
    live = sum(w["live"] for w in status["workers"])
    drawn.finish(note, f"{status['applied']} updates applied, {live} workers live")


def _status(gang: HubGang) -> dict[str, Any]:
    from thinwire.hub.dial import Dial

    try:
        return Dial(gang.address, patience=20.0).status()
    except TransportError as error:
        raise ThinwireError(f"the hub is gone: {error}") from error
