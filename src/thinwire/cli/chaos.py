"""`thinwire chaos`: runs of four workers to which things happen, and what is left of them."""

from __future__ import annotations

import importlib.util
import json as json_format
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from thinwire.cli.chaos_net import check_allowed
from thinwire.cli.chaos_plan import KINDS, Story, plan
from thinwire.cli.chaos_verdict import balances, problem, show, spread, within
from thinwire.cli.gang import environment
from thinwire.cli.output import Bars, bars, document, logged, write_json
from thinwire.cli.signals import held
from thinwire.errors import ConfigError, ThinwireError
from thinwire.files import check_writable
from thinwire.runs import RunLog

GRACE = 5.0
"""Seconds for the nursery to end everybody."""


def chaos(
    stories: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="A story is its seed and its number.")] = 0,
    first: Annotated[int, typer.Option(min=0, help="The first one's number.")] = 0,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="sync, elastic, ring or gossip; may be repeated."),
    ] = None,
    namespaces: Annotated[
        bool, typer.Option("--namespaces", help="A host for each worker, its link cut; as root.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the results as JSON.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Log, JSON lines; by default in runs/.")
    ] = None,
) -> None:
    """Break training runs in ways drawn from a seed, and see what is lost: nothing may be.

    In each story four worker processes of this machine learn the digits while some are killed or
    stopped, links are slow or cut, disks full, snapshots altered. Each must end as accurate as the
    same run without any of it, within what lies between calm runs of other seeds; in the bits of
    a calm run with the same workers away; and with every update accounted for.
    """
    check_writable(json)
    kinds = _kinds(kind)
    if namespaces:
        check_allowed()
    for package, extra in (("sklearn", "demo"), ("torchft", "elastic")):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"chaos needs {package}; pip install 'thinwire[{extra}]'")
    settings = {"stories": stories, "first": first, "kinds": list(kinds), "hosts": namespaces}
    told = [plan(seed, first + number, kinds, namespaces) for number in range(stories)]
    with logged("chaos", seed, settings, log) as run, bars() as drawn:
        results = play(told, run, drawn)
    if json is not None:
        write_json(json, document("chaos", seed, results))
    show(results)
    typer.echo(f"Log: {run.file}")
    bad = [result for result in results if problem(result)]
    if bad:
        again = ["thinwire chaos --stories 1", f"--seed {seed} --first {bad[0]['story']}"]
        again += [f"--kind {name}" for name in kind or []] + ["--namespaces"] * namespaces
        raise ThinwireError(
            f"story {bad[0]['story']}: {problem(bad[0])}; replay it with `{' '.join(again)}`"
        )
    off = [balance.problem for balance in balances(results) if balance.problem]
    if off:
        raise ThinwireError("; ".join(off))


def play(told: list[Story], run: RunLog, drawn: Bars) -> list[dict[str, Any]]:
    """Plays stories one after another and returns their results.

    Args:
        told: the stories.
        run: is told of each.
        drawn: shows them.
    """
    results = []
    drawn.add("starting", 0)
    with _nursery() as nursery:
        _heard(nursery)
        drawn.finish("starting")
        for story in told:
            name = f"story {story.number}: {story.kind}, {story.form}"
            drawn.add(name, 1)
            result = _asked(nursery, story.as_dict())
            seeds = _asked(nursery, {"seeds_of": [story.kind, story.form]})
            result["calm_spread"] = spread(seeds["accuracies"])
            result["within_spread"] = result["ended"] and within(result)
            run.write("story", **result)
            results.append(result)
            drawn.advance(name, _note(result))
    return results


def _kinds(asked: list[str] | None) -> tuple[str, ...]:
    for kind in asked or []:
        if kind not in KINDS:
            raise ConfigError(f"--kind {kind}: choose from {', '.join(KINDS)}")
    return tuple(asked or KINDS)


def _note(result: dict[str, Any]) -> str:
    happened = ", ".join(event["what"] for event in result["events"])
    if problem(result):
        return f"{happened}: {problem(result)}"
    return (
        f"{happened}: {result['accuracy']:.1%}, calm {result['calm_accuracy']:.1%}, "
        f"conserved to {result['conservation_error']:.0e}, {result['seconds']:.1f} s"
    )


@contextmanager
def _nursery() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "thinwire.cli.chaos_nursery"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment(), "RUST_LOG": "off"},
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with held():
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()


def _asked(nursery: subprocess.Popen[str], what: dict[str, Any]) -> dict[str, Any]:
    assert nursery.stdin is not None
    nursery.stdin.write(json_format.dumps(what) + "\n")
    nursery.stdin.flush()
    return _heard(nursery)


def _heard(nursery: subprocess.Popen[str]) -> dict[str, Any]:
    assert nursery.stdout is not None
    line = nursery.stdout.readline()
    if not line:
        raise ThinwireError(f"the stories' own process ended with {nursery.wait()}")
    heard: dict[str, Any] = json_format.loads(line)
    return heard
