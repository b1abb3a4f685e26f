"""`thinwire plan`: which method for this job over this link, what it costs, and the code."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinwire import units
from thinwire.cli.output import bars, document, write_json
from thinwire.errors import ConfigError
from thinwire.files import check_writable
from thinwire.link import Link

if TYPE_CHECKING:
    from thinwire.plan import Cost, Job


def plan(
    params: Annotated[str, typer.Option(help="Parameters of the model: 1.1e9, 350M, 70B.")],
    step_time: Annotated[
        str | None, typer.Option(help="Of a local step without communication: 0.8, 350ms.")
    ] = None,
    workers: Annotated[str | None, typer.Option(help="N; --measure has torchrun's.")] = None,
    bandwidth: Annotated[
        str | None, typer.Option(help="Of each worker's line, each way: 200mbit, 25MB/s.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="From one worker to another, one way: 40ms.")
    ] = None,
    utilisation: Annotated[
        str, typer.Option(help="The part of the time that machines shall compute.")
    ] = "0.9",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this job's link first, under torchrun.")
    ] = False,
    step_from: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="With --measure: time this as a local step."),
    ] = None,
    coding: Annotated[
        bool, typer.Option(help="Measure coding: here, or with --measure in the job.")
    ] = True,
    cores: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65536,
            help="Of the one machine on which all workers run, if they do; --step-time is then "
            "that of a step while all take theirs.",
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the plan as JSON.")
    ] = None,
) -> None:
    """Say which method suits a job and a link, what it costs, and the code.

    With --measure run it on the real machines, as one process each: torchrun
    --nnodes 4 ... -m thinwire.cli plan --measure --params 1.1e9 ...; it then
    measures the lines between the first machine and each other, the step if
    --step-from names one, and coding in rounds of the job. It plans for the
    slowest line and the slowest step.
    """
    check_writable(json)
    if cores is not None and not coding:
        raise ConfigError(
            f"--cores {cores} has workers wait for each other's coding, which --no-coding leaves "
            "out; leave out one of the two"
        )
    d = units.count(params)
    asked = units.share(utilisation)
    step = None if step_time is None else units.seconds(step_time)
    if measure:
        said = {"--workers": workers, "--bandwidth": bandwidth, "--latency": latency}
        check_measured(said, step_time, step_from)
        found = measured_job(d, asked, step, step_from, coding)
        if found is None:
            return  # another rank prints
        job = replace(found, cores=cores)
    else:
        job = given(d, asked, step, workers, bandwidth, latency, step_from)
        job = replace(job, cores=cores)
        if coding:
            from thinwire.cli.plan_coding import measured_coding

            with bars() as drawn:
                drawn.add("coding", 0)
                job = replace(job, coding=measured_coding())
                drawn.finish("coding", "measured on this machine")
    from thinwire.cli.plan_table import code, show
    from thinwire.plan import advice, cost, options

    listed = options()
    costs = []
    with bars() as drawn:
        drawn.add("rounds in virtual time", len(listed))
        for option in listed:
            costs.append(cost(option, job))
            drawn.advance("rounds in virtual time", option.name)
    best, H, reason = advice(job, costs)
    if json is not None:
        results = [{**record(c, job), "code": code(c, c.H)} for c in costs]
        chosen = {"method": best.option.name, "H": H, "reason": reason, "code": code(best, H)}
        write_json(json, {**document("plan", None, results), "job": facts(job), "take": chosen})
    how = "left out"
    if coding:
        how = "measured in rounds of this job" if measure else "measured on this machine, alone"
    show(job, costs, best, H, reason, how)


def measured_job(
    d: int, asked: float, step: float | None, step_from: str | None, coding: bool
) -> Job | None:
    """Returns this job as it is measured, on rank 0, which shows progress; elsewhere None."""
    from thinwire.cli.plan_measure import measured
    from thinwire.plan import options

    if not coding:
        return measured(d, asked, step, step_from, None)
    if os.environ.get("RANK", "0") != "0":
        return measured(d, asked, step, step_from, lambda _: None)
    with bars() as drawn:
        drawn.add("coding", len(options()))
        return measured(d, asked, step, step_from, lambda name: drawn.advance("coding", name))


def check_measured(
    said: dict[str, str | None], step_time: str | None, step_from: str | None
) -> None:
    """Refuses options beside --measure that would be overruled without a word.

    Args:
        said: by option, what `--measure` finds out by itself.
        step_time: as given.
        step_from: as given.

    Raises:
        ConfigError: one of them is given, or both say how long a step takes.
    """
    for option, value in said.items():
        if value is not None:
            raise ConfigError(
                f"{option} {value} goes without --measure, which has the workers from torchrun and "
                "measures the lines between them; leave one of the two out"
            )
    if step_time is not None and step_from is not None:
        raise ConfigError(
            f"--step-time {step_time} and --step-from {step_from} both say how long a step takes; "
            "leave out one of them"
        )


def given(
    d: int,
    asked: float,
    step: float | None,
    workers: str | None,
    bandwidth: str | None,
    latency: str | None,
    step_from: str | None,
) -> Job:
    """Returns the job that the options say.

    Raises:
        ConfigError: something is missing, or only goes with --measure.
    """
    from thinwire.plan import Job

    if step_from is not None:
        raise ConfigError("--step-from is timed with --measure; without it write --step-time 0.8s")
    examples = {"step-time": "0.8s", "workers": "16", "bandwidth": "200mbit", "latency": "40ms"}
    said = dict(zip(examples, (step, workers, bandwidth, latency), strict=True))
    for name, value in said.items():
        if value is None:
            raise ConfigError(
                f"a plan needs --{name}, such as --{name} {examples[name]}; or --measure, "
                "which measures the link"
            )
    assert step is not None
    assert workers is not None
    assert bandwidth is not None
    assert latency is not None
    link = Link(units.rate(bandwidth), units.seconds(latency))
    return Job(d, step, units.count(workers), link, asked)


def facts(job: Job) -> dict[str, Any]:
    """Returns the job as plain data."""
    return {
        "params": job.params,
        "step_seconds": job.step,
        "workers": job.workers,
        "link": job.link.to_json()["Link"],
        "utilisation": job.utilisation,
        "message_seconds": job.message,
        "coding": {k: {"own": v.own, "hear": v.hear} for k, v in job.coding.items()},
        "cores": job.cores,
    }


def record(cost: Cost, job: Job) -> dict[str, Any]:
    """Returns one method's cost as plain data."""
    return {
        "method": cost.option.name,
        "sent_bytes": cost.sent,
        "heard_bytes": cost.heard,
        "sizes": "exact" if cost.exact else "expected",
        "talk_seconds": cost.talk,
        "code_seconds": cost.code,
        "H": cost.H,
        "seconds_per_round": cost.seconds(cost.H, job.step),
        "utilisation": cost.utilisation(cost.H, job.step),
        "H_needed": cost.H_needed if cost.possible else None,
        "kept_bytes": cost.kept,
        "peak_bytes": cost.peak,
        "quality": cost.option.quality,
    }
