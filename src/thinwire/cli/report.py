"""`thinwire report`: logs of runs become one page that opens anywhere, or one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thinwire.errors import ConfigError


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Logs (.jsonl), or folders of logs.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="A .html page or a .png picture.")
    ] = Path("report.html"),
) -> None:
    """Draw runs: quality against epochs, bytes and seconds; what the bytes were; a table.

    Runs of one method that differ by their seed alone become one curve with a
    band. A page needs no network, no script and no colour to be read.
    """
    from thinwire.cli.output import write_atomically
    from thinwire.files import check_writable
    from thinwire.runs import read_runs

    if output.suffix not in (".html", ".png"):
        raise ConfigError(f"{output}: name a .html page or a .png picture")
    check_writable(output)
    _check_matplotlib()
    found, notes = read_runs(runs)
    for note in notes:
        typer.echo(note, err=True)
    if not found:
        raise ConfigError(f"nothing to draw in {', '.join(str(run) for run in runs)}")
    from thinwire.cli.report_series import tasks_of

    tasks = tasks_of(found)
    if len(tasks) > 1:
        notes.append(
            f"These runs are of {len(tasks)} tasks, which do not compare: "
            f"{'; '.join(tasks)}. Each has figures of its own."
        )
        typer.echo(notes[-1], err=True)
    if output.suffix == ".html":
        from thinwire.cli.report_page import page

        write_atomically(output, page(tasks, notes).encode())
    else:
        from thinwire.cli.report_figures import picture

        write_atomically(output, picture(tasks))
    typer.echo(f"{output}: {len(found)} {'runs' if len(found) > 1 else 'run'}")


def _check_matplotlib() -> None:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the report draws with matplotlib: pip install 'thinwire[report]'")
