"""The command line: demo, train, report, simulate, plan, hub, ... No algorithm lives here.

A command is one function in one file, named as the command; it imports what is heavy inside
itself, so that help answers at once. To add one: write the file, and register it below.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from thinwire.cli.bench import app as bench
from thinwire.cli.chaos import chaos
from thinwire.cli.demo import demo
from thinwire.cli.demo_hub import demo_hub
from thinwire.cli.doctor import doctor
from thinwire.cli.hub import hub
from thinwire.cli.hub_status import hub_status
from thinwire.cli.plan import plan
from thinwire.cli.report import report
from thinwire.cli.signals import Interrupted, heeded
from thinwire.cli.simulate import simulate
from thinwire.cli.topology import topology
from thinwire.cli.train import app as train
from thinwire.errors import ThinwireError
from thinwire.version import __version__

FAILED = 2

app = typer.Typer(
    help="Training over thin wires.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Train over thin wires: local steps, then what was learned in few bits."""
    if version:
        typer.echo(f"thinwire {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


app.command()(demo)
app.add_typer(train, name="train")
app.command()(report)
app.command()(hub)
app.command("hub-status")(hub_status)
app.command("demo-hub")(demo_hub)
app.command()(chaos)
app.command()(simulate)
app.command()(plan)
app.command()(topology)
app.add_typer(bench, name="bench")
app.command()(doctor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0; 2 after an error, said in one line; 130 after Ctrl-C."""
    command = typer.main.get_command(app)
    args = None if arguments is None else list(arguments)
    try:
        with heeded():
            sys.exit(command.main(args, prog_name="thinwire", standalone_mode=False))
    except Interrupted as stop:
        _last_words("; ".join(stop.notes))
        sys.exit(stop.code)
    except ThinwireError as error:
        _last_words(str(error))
    except Exception as error:
        # A wrong argument: the class is click's own, or typer's copy of it, by typer's version.
        if not hasattr(error, "format_message"):
            raise
        _last_words(_advice(error, error.format_message()))
    sys.exit(FAILED)


def _advice(error: Exception, message: str) -> str:
    context = getattr(error, "ctx", None)
    path = "thinwire" if context is None else context.command_path
    if message.startswith("No such command"):
        group = context.command if context is not None else typer.main.get_command(app)
        names = sorted(getattr(group, "commands", {}))
        message = f"{message.partition('.')[0]}; choose from {', '.join(names)}"
    return f"{message.rstrip('.')}; see `{path} --help`"


def _last_words(text: str) -> None:
    print("thinwire:", " ".join(text.split()), file=sys.stderr)
