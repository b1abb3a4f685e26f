"""`thinwire simulate`: a method on a thousand machines that are not there, in virtual time."""

from __future__ import annotations

import resource
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinwire import units
from thinwire.cli.output import Bars, bars, document, logged, size, write_json
from thinwire.errors import ConfigError
from thinwire.files import check_writable
from thinwire.link import Link
from thinwire.runs import RunLog

if TYPE_CHECKING:
    from thinwire.presets import Preset
    from thinwire.virtual import Compute, Spoken, Timeline

MOST = 10_000
LEARNING = {"lr": 0.1, "batch": 8}
"""What --lr and --batch are by default."""


def simulate(
    workers: Annotated[str, typer.Option(help="N, 1 to 10,000; all in this process.")] = "16",
    preset: Annotated[
        str, typer.Option(help="The method, by its preset's name.")
    ] = "qsparse_local_sgd",
    H: Annotated[
        int | None,
        typer.Option("--H", min=1, help="Local steps per round; by default the preset's."),
    ] = None,
    topology: Annotated[
        str | None, typer.Option(help="Who hears whom, where the preset gossips.")
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(help="Sizes only, of a model of so many parameters: 7850, 1.1e9, 70B."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each worker.")] = 50,
    link: Annotated[
        str,
        typer.Option(
            metavar="RATE,DELAY,...",
            help="Of each worker; then any of down=, jitter=, loss=, drop=, patience=.",
        ),
    ] = "100mbit,20ms",
    step_time: Annotated[str, typer.Option(help="Of a local step: 10ms, 0.8s.")] = "10ms",
    spread: Annotated[
        float, typer.Option(help="Of machines: each is exp(spread x normal) times as slow.")
    ] = 0.0,
    straggle: Annotated[str, typer.Option(help="Chance that a step takes 5 times as long.")] = "0",
    away: Annotated[
        str, typer.Option(help="Chance before a step to go away, for 30 s on average, exponential.")
    ] = "0",
    coding: Annotated[
        bool, typer.Option("--coding", help="Coding takes time, too, as measured on this machine.")
    ] = False,
    lr: Annotated[
        float | None,
        typer.Option(min=0, help="Of the local steps, without --params; by default 0.1."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Of each worker, without --params; by default 8.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of data, operators, links and steps.")] = 0,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the result as JSON.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw who computes, who talks, PNG.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Log, JSON lines; by default in runs/.")
    ] = None,
) -> None:
    """Run a method on many machines that are not there.

    The rounds are the library's own, answered when modelled links would have
    answered them. Without --params each worker trains a softmax regression
    (d = 7850) and sends real frames; with it, frames have a size only, and a
    model of any size takes no memory.
    """
    began = time.monotonic()
    check_writable(json)
    check_writable(picture)
    N, line = counted(workers), Link.parse(link)
    d = None if params is None else units.count(params)
    learning = learned_with(lr, batch, params)
    if picture is not None:
        from thinwire.cli.simulate_picture import check_installed

        check_installed()
    from thinwire.virtual import Compute, Timeline

    method = chosen(preset, H, topology)
    compute = Compute(
        units.seconds(step_time),
        spread=spread,
        straggle=units.share(straggle),
        away=units.share(away),
        seed=seed,
    )
    if coding:
        from thinwire.cli.plan_coding import coding_of
        from thinwire.virtual import Sizes

        compute = coding_of(method).on(compute, Sizes(method["compressor"], d or 7850))
    timeline = None if picture is None else Timeline()
    settings = {
        "workers": N,
        "preset": preset,
        "H": method["H"] if isinstance(method["H"], int) else repr(method["H"]),
        "compressor": repr(method["compressor"]),
        "exchange": repr(method["exchange"]),
        "params": d or 7850,
        "rounds": rounds,
        "link": line.to_json()["Link"],
        "compute": compute.to_json()["Compute"],
        **learning,
    }
    with logged("simulate", seed, settings, log) as run, bars() as drawn:
        drawn.add("rounds", rounds)
        if d is not None:
            spoken, learned = _sizes(method, d, N, line, rounds, compute, drawn, timeline)
        else:
            spoken, learned = _training(
                method, N, line, rounds, compute, drawn, timeline, learning, run
            )
        result = {**settings, **outcome(spoken, N, rounds), **learned}
        result["seconds_here"] = round(time.monotonic() - began, 2)
        result["peak_memory_bytes"] = _peak()
        run.write("result", **result)
    if json is not None:
        write_json(json, document("simulate", seed, [result]))
    show(result, line)
    if picture is not None and timeline is not None:
        from thinwire.cli.simulate_picture import draw

        draw(timeline, N, result, line, picture)
        typer.echo(f"Picture: {picture}")
    typer.echo(f"Log: {run.file}")


def counted(workers: str) -> int:
    """Returns N.

    Raises:
        ConfigError: it is no number of workers that fit here.
    """
    N = units.count(workers)
    if N > MOST:
        raise ConfigError(f"{N:,} workers are more than fit here; write --workers {MOST} at most")
    return N


def learned_with(lr: float | None, batch: int | None, params: str | None) -> dict[str, Any]:
    """Returns the settings of the local steps; none where frames have a size only.

    Raises:
        ConfigError: one of them is given there.
    """
    given = {"lr": lr, "batch": batch}
    if params is None:
        return {name: LEARNING[name] if value is None else value for name, value in given.items()}
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                f"--{name} {value} is of a model that is trained, and with --params none is; leave "
                f"out --{name}, or --params"
            )
    return {}


def chosen(name: str, H: int | None, topology: str | None) -> Preset:
    """Returns the preset of that name with the graph and the local steps asked for.

    Raises:
        ConfigError: there is no such preset or graph, or the preset takes none.
    """
    import inspect

    from thinwire.cli.topology import named
    from thinwire.presets import PRESETS

    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; choose from {', '.join(PRESETS)}")
    make: Any = PRESETS[name]
    takes = inspect.signature(make).parameters
    asked: dict[str, Any] = {"H": H, "topology": topology and named(topology, None)}
    asked = {key: value for key, value in asked.items() if value is not None}
    for key in asked:
        if key not in takes:
            able = [n for n, make in PRESETS.items() if key in inspect.signature(make).parameters]
            raise ConfigError(f"{name} takes no --{key}; these do: {', '.join(able)}")
    preset: Preset = make(**asked)
    return preset


def outcome(spoken: Spoken, N: int, rounds: int) -> dict[str, Any]:
    """Returns what a run came to, as plain data."""
    return {
        "virtual_seconds": spoken.now,
        "seconds_per_round": spoken.now / rounds,
        "utilisation": sum(spoken.busy) / (N * spoken.now) if spoken.now else 1.0,
        "sent_per_worker_and_round": sum(spoken.sent) / (N * rounds),
        "sent_by_the_busiest_and_round": max(spoken.sent) / rounds,
        "heard_by_the_busiest_and_round": max(spoken.received) / rounds,
        "frames": spoken.frames,
        "frames_lost": spoken.lost,
    }


def show(result: dict[str, Any], line: Link) -> None:
    """Prints what came of it."""
    what = {
        "real": "real frames",
        "exact": "frames of their exact size, no model",
        "expected": "frames of their expected size (normal values), no model",
    }[result["frames_are"]]
    typer.echo(
        f"{result['workers']:,} workers, {result['preset']}, H = {result['H']}, "
        f"d = {result['params']:,}: {what}"
    )
    typer.echo(f"links: {line.say()}, to each worker")
    busiest = max(result["sent_by_the_busiest_and_round"], result["heard_by_the_busiest_and_round"])
    computes = f"{result['utilisation']:.1%}"
    computes += ", coding in it" if "own" in result["compute"] else ""
    typer.echo(
        f"a round: {units.say_seconds(result['seconds_per_round'])}, of which machines compute "
        f"{computes}; a worker sends {size(result['sent_per_worker_and_round'])}, "
        f"the busiest sends or hears {size(busiest)}"
    )
    if result["frames_lost"]:
        typer.echo(f"{result['frames_lost']:,} of {result['frames']:,} frames never came")
    if result["frames_are"] == "real":
        typer.echo(
            f"test accuracy of the workers' mean model: {result['accuracy']:.1%} after "
            f"{units.say_seconds(result['virtual_seconds'])}; "
            f"workers are {result['apart']:.2g} of its length apart"
        )
    text = (
        f"{result['rounds']} rounds, {units.say_seconds(result['virtual_seconds'])} of virtual "
        f"time and {result['frames']:,} frames took {units.say_seconds(result['seconds_here'])} "
        f"and {size(result['peak_memory_bytes'])} of memory here"
    )
    typer.echo(textwrap.fill(text, 76))


def _sizes(
    method: Preset, d: int, N: int, line: Link, rounds: int, compute: Compute, drawn: Bars,
    timeline: Timeline | None,
) -> tuple[Spoken, dict[str, Any]]:  # fmt: skip
    from thinwire.virtual import Method, Sizes, run_sizes

    done = [0]

    def all_did(so_far: int) -> None:
        for _ in range(so_far - done[0]):
            drawn.advance("rounds")
        done[0] = max(done[0], so_far)

    sizes = Sizes(method["compressor"], d)
    what = Method(method["exchange"], sizes, method["H"])
    spoken = run_sizes(what, [line] * N, rounds, compute, all_did, timeline)
    return spoken, {"frames_are": "exact" if sizes.exact else "expected"}


def _training(
    method: Preset, N: int, line: Link, rounds: int, compute: Compute, drawn: Bars,
    timeline: Timeline | None, learning: dict[str, Any], run: RunLog,
) -> tuple[Spoken, dict[str, Any]]:  # fmt: skip
    from thinwire.cli.simulate_task import Clouds, train

    def on_round(number: int, t: float, accuracy: float) -> None:
        drawn.advance("rounds", f"{accuracy:.1%} at {units.say_seconds(t)}")
        run.write("round", round=number, virtual_seconds=t, accuracy=accuracy)

    clouds, lr = Clouds(compute.seed, learning["batch"]), learning["lr"]
    spoken, learned = train(method, clouds, [line] * N, rounds, compute, lr, on_round, timeline)
    return spoken, {"frames_are": "real", **learned}


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
