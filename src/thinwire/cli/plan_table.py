"""A plan as a person reads it: the table, what its columns are, and the recommendation."""

from __future__ import annotations

import textwrap

from rich import box
from rich.console import Console
from rich.table import Table

from thinwire import units
from thinwire.cli.output import size
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
