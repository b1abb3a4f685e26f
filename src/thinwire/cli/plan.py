"""`thinwire plan`: which method for this job over this link, what it costs, and the code."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinwire import units
from thinwire.cli.output import bars, document, size, write_json
from thinwire.errors import ConfigError
from thinwire.files import check_writable
from thinwire.link import Link

if TYPE_CHECKING:
    from thinwire.plan import Cost, Job

CAPTION = """\
sends: bytes of frames that the busiest worker sends or hears a round, the more.
talk: seconds of a round's frames over this link, headers of Ethernet, IP and
TCP in; of all-reduce, a ring's, not overlapped with the backward pass. code:
seconds of coding a round, {coding}.
round: seconds of a round of the method's usual H, its steps, talk and code;
busy: the part of them that machines compute.
H for {asked}: the fewest local steps a round with which they are busy so long;
never: the method takes one step a round, with which they are not.
memory: what the busiest worker needs beside the model while a round runs."""


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
    coding: Annotated[bool, typer.Option(help="Measure coding, on this machine.")] = True,
    cores: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of the one machine on which all workers run; by default each has its own."
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
    --step-from names one, and plans for the slowest.
    """
    check_writable(json)
    if cores is not None and not coding:
        raise ConfigError(
            f"--cores {cores} says where coding is done, which --no-coding leaves out"
        )
    d = units.count(params)
    asked = units.share(utilisation)
    step = None if step_time is None else units.seconds(step_time)
    if measure:
        said = {"--workers": workers, "--bandwidth": bandwidth, "--latency": latency}
        check_measured(said, step_time, step_from)
        from thinwire.cli.plan_measure import measured

        found = measured(d, asked, step, step_from, coding)
        if found is None:
            return  # another rank prints
        job = replace(found, cores=cores)
    else:
        job = given(d, asked, step, workers, bandwidth, latency, step_from)
        if coding:
            from thinwire.cli.plan_coding import measured_coding

            with bars() as drawn:
                drawn.add("coding", 0)
                job = replace(job, coding=measured_coding(), cores=cores)
                drawn.finish("coding", "measured on this machine")
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
        results = [record(c, job) for c in costs]
        chosen = {"method": best.option.name, "H": H, "reason": reason, "code": code(best, H)}
        write_json(json, {**document("plan", None, results), "job": facts(job), "take": chosen})
    how = "left out"
    if coding:
        how = "measured in rounds of this job" if measure else "measured on this machine, alone"
    show(job, costs, best, H, reason, how)


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
        "code": code(cost, cost.H),
    }


def code(cost: Cost, H: int) -> str:
    """Returns the line that makes the method."""
    line = cost.option.code.format(H=H)
    inner = line if line.startswith("H=") else f"**{line}"
    return f"optimizer = tw.LocalSGD(model, optimizer, {inner})"


def show(job: Job, costs: list[Cost], best: Cost, H: int, reason: str, coding: str) -> None:
    """Prints the table, what its columns are, what is known of quality, and the recommendation.

    Args:
        job: what is planned for.
        costs: of each method.
        best: the one to take.
        H: its local steps.
        reason: why.
        coding: how that was measured.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    asked = f"{job.utilisation:.0%}"
    drawn = Table(
        title=f"{job.params:,} parameters, {job.workers} workers, a step of "
        f"{units.say_seconds(job.step)};\n{job.link.say()}",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    drawn.add_column("\nmethod", no_wrap=True)
    seconds, needed = ("talk\ns", "code\ns", "\nH", "round\ns"), f"H for\n{asked}"
    for name in ("\nsends", *seconds, "\nbusy", needed, "\nmemory"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for c in costs:
        drawn.add_row(
            c.option.name,
            size(max(c.sent, c.heard)),
            figures(c.talk),
            figures(c.code) if job.coding else "-",
            f"{c.H}",
            figures(c.seconds(c.H, job.step)),
            busy(c.utilisation(c.H, job.step)),
            f"{c.H_needed}" if c.possible else "never",
            size(c.kept + c.peak),
        )
    console.print(drawn)
    if job.cores is not None:
        coding += f", {job.cores} cores for all workers"
    console.print(CAPTION.format(asked=asked, coding=coding), style="dim")
    console.print("\nWhat is known of quality:", style="dim")
    for c in costs:
        console.print(
            textwrap.fill(f"{c.option.name}: {c.option.quality}", 78, subsequent_indent="  "),
            style="dim",
        )
    console.print(f"\n{textwrap.fill(f'Take {best.option.name}, H = {H}: {reason}.', 78)}")
    console.print(f"\n    {code(best, H)}\n", markup=False, soft_wrap=True)


def figures(t: float) -> str:
    """Returns seconds to three figures and four decimals at most, never as a power of ten.

    Example:
        >>> figures(346.2), figures(29.23), figures(0.00412)
        ('346', '29.2', '0.0041')
    """
    if t >= 100:
        return f"{t:,.0f}"
    return f"{t:.3g}" if t >= 0.1 else f"{t:.4f}"


def busy(share: float) -> str:
    """Returns a utilisation with as many figures as it has.

    Example:
        >>> busy(0.934), busy(0.0123), busy(0.00071)
        ('93.4%', '1.2%', '0.071%')
    """
    return f"{share:.1%}" if share >= 0.1 else f"{100 * share:.2g}%"
