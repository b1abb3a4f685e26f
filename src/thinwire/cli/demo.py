"""`thinwire demo`: five methods learn the handwritten digits, and their bytes are compared."""

from __future__ import annotations

import importlib.util
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from thinwire.cli.gang import Gang, Message
from thinwire.cli.output import Bars, bars, document, logged, write_json
from thinwire.errors import ConfigError
from thinwire.files import check_writable
from thinwire.link import Link
from thinwire.runs import RunLog

PATIENCE = 600.0
"""Seconds the workers wait for the one that compiles."""
LINK = 100e6
"""Bits per second of the link that the table asks about."""


def demo(
    workers: Annotated[
        int, typer.Option(min=2, max=16, help="Worker processes on this machine.")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the model and the order.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 30,
    preset: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Compare DDP with this preset instead; may be repeated."),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(metavar="RATE,DELAY", help="Hold all traffic to a line: 100mbit,20ms."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the results as JSON.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw accuracy against bytes, PNG.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Log, JSON lines; by default in runs/.")
    ] = None,
) -> None:
    """Train digits with five methods here, and see what the wire carried.

    Needs no network: worker processes talk over loopback, and the 1797
    handwritten digits come with scikit-learn. With --link each worker's frames
    are held until such a line would have brought them, so the seconds are a
    thin wire's; no root is needed.
    """
    if link is not None:
        Link.parse(link)
    _check_installed("sklearn")
    if picture is not None:
        _check_installed("matplotlib")
    check_writable(json)
    check_writable(picture)
    from thinwire.cli.demo_methods import chosen

    presets = preset or []
    chosen(presets)
    settings = {"workers": workers, "epochs": epochs, "presets": presets, "link": link}
    with logged("demo", seed, settings, log, task="handwritten digits") as run:
        results = compare(workers, seed, epochs, presets, run, link)
        for result in results:
            for p in result["curve"]:
                point = {"epoch": p["epoch"], "sent": p["bytes"], "accuracy": p["accuracy"]}
                run.write("evaluation", method=result["method"], **point)
            run.write("result", **result)
    if json is not None:
        write_json(json, document("demo", seed, results))
    from thinwire.cli.demo_table import show

    show(results)
    if picture is not None:
        from thinwire.cli.demo_picture import draw

        draw(results, picture)
        typer.echo(f"Picture: {picture}")
    typer.echo(f"Log: {run.file}")


def compare(
    N: int,
    seed: int,
    epochs: int,
    presets: list[str],
    run: RunLog,
    link: str | None = None,
) -> list[dict[str, Any]]:
    """Trains every method with a gang of N workers and returns one result each.

    Args:
        N: workers.
        seed: of the split, the model, the order and the compressors.
        epochs: passes over the training images.
        presets: compared with DDP, or none for the demo's own methods.
        run: is told of every worker's epochs.
        link: that all traffic is held to; None for this machine's own speed.
    """
    plan: list[Message] = []
    said: dict[str, list[Message]] = defaultdict(list)
    # This process stays light, so that Ctrl-C is heard at once: a worker loads and compiles.
    with bars() as drawn, tempfile.TemporaryDirectory(prefix="thinwire-demo-") as folder:
        drawn.add("starting", 0)
        data = str(Path(folder) / "digits.npz")
        args = {"data": data, "seed": seed, "epochs": epochs, "presets": presets, "link": link}
        with Gang(N, "thinwire.cli.demo_train:work", args, PATIENCE) as gang:
            run.write("gang", pids=gang.pids)
            for message in gang.messages():
                run.write(**message)
                if message["event"] == "plan":
                    plan = message["methods"]
                    _announce(drawn, [method["method"] for method in plan], epochs)
                    continue
                said[message["method"]].append(message)
                if message["rank"] == 0:
                    note = f"{message['accuracy']:.1%} in {message['seconds']:.1f} s"
                    drawn.advance(message["method"], note)
    results = [{**method, "workers": N, **summary(said[method["method"]])} for method in plan]
    for result in results:
        result["link"] = link
        result["ratio"] = results[0]["bytes"] / result["bytes"]
    return results


def summary(messages: list[Message]) -> dict[str, Any]:
    """Returns one method's result from what all its workers said after every epoch.

    Args:
        messages: "epoch" messages of all ranks, in any order between ranks.
    """
    epochs: dict[int, list[Message]] = defaultdict(list)
    for message in messages:
        epochs[message["epoch"]].append(message)
    curve = [
        {
            "epoch": epoch,
            "bytes": sum(m["up"] + m["down"] for m in epochs[epoch]),
            "accuracy": next(m["accuracy"] for m in epochs[epoch] if m["rank"] == 0),
        }
        for epoch in sorted(epochs)
    ]
    last = epochs[max(epochs)]
    root = next(m for m in last if m["rank"] == 0)
    return {
        "accuracy": root["accuracy"],
        "rounds": root["rounds"],
        "bytes_up": sum(m["up"] for m in last),
        "bytes_down": sum(m["down"] for m in last),
        "bytes": curve[-1]["bytes"],
        "bytes_setup": sum(m["setup"] for m in last),
        "bytes_busiest_link": max(m["link"] for m in last),
        "seconds_here": root["seconds"],
        "seconds_at_100_mbit": max(m["link"] for m in last) * 8 / LINK,
        "replicas_equal": len({m["digest"] for m in last}) == 1,
        "digest": root["digest"],
        "curve": curve,
    }


def _check_installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"the demo needs {package}: pip install 'thinwire[demo]'")


def _announce(drawn: Bars, names: list[str], epochs: int) -> None:
    drawn.finish("starting", "workers up, kernels ready")
    for name in names:
        drawn.add(name, epochs)
