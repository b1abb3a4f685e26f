"""`thinwire hub-status`: a live table of a hub's workers, rates, staleness and bytes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinwire.cli.output import document, size, write_json
from thinwire.files import check_writable

if TYPE_CHECKING:
    from rich.console import Group


def hub_status(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the hub listens.")],
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures here, once.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File of the hub's secret.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Who signed its certificate; TLS.")] = None,
    cert: Annotated[Path | None, typer.Option(help="One's own certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
) -> None:
    """Watch a hub: who is there, how fast, how stale, how many bytes."""
    check_writable(json)
    from rich.console import Console
    from rich.live import Live

    from thinwire.hub.dial import Dial
    from thinwire.hub.entry import read, read_token

    token = read_token(token_file)
    authority, own, secret = (None if f is None else read(f) for f in (ca, cert, key))
    dial = Dial(address, token, authority, own, secret, patience=5.0)
    status = dial.status()
    if json is not None:
        write_json(json, document("hub-status", None, [status]))
    console = Console()
    if once or json is not None or not console.is_terminal:
        console.print(table(status))
        return
    with Live(table(status), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(table(dial.status()), refresh=True)


def table(status: dict[str, Any]) -> Group:
    """Returns what is shown of a status."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    workers = Table("worker", box=None, header_style="bold", pad_edge=False)
    for name in ("updates", "applied", "a second", "silent", "stale", "up", "down"):
        workers.add_column(name, justify="right")
    for w in sorted(status["workers"], key=lambda w: (not w["live"], w["number"])):
        workers.add_row(
            w["name"],
            str(w["sequence"]),
            str(w["applied"]),
            f"{w['rate']:.1f}",
            "-" if w["silent"] is None else f"{w['silent']:.1f} s",
            str(w["staleness"]),
            size(w["bytes_up"]),
            size(w["bytes_down"]),
            style=None if w["live"] else "dim",
        )
    live = sum(w["live"] for w in status["workers"])
    head = (
        f"run {status['run']}, d = {status['d']:,}, up {status['seconds']:.0f} s"
        f"{', draining' if status['closing'] else ''}\n"
        f"{live} of {len(status['workers'])} workers live; {status['applied']:,} updates applied, "
        f"{status['refused_as_stale']} refused as stale; version {status['version']:,}\n"
        f"{size(status['bytes_up'])} up, {size(status['bytes_down'])} down since it started\n"
    )
    return Group(Text(head), workers, Text(f"\nstaleness: {histogram(status)}"))


def histogram(status: dict[str, Any]) -> str:
    """Returns the staleness counts in words.

    Example:
        >>> histogram({"staleness_histogram": [5, 2, 0, 1]})
        '0: 5, 1: 2, 4-7: 1'
    """
    said = []
    for bucket, count in enumerate(status["staleness_histogram"]):
        low, high = (0, 0) if bucket == 0 else (1 << (bucket - 1), (1 << bucket) - 1)
        if count:
            said.append(f"{low if low == high else f'{low}-{high}'}: {count}")
    return ", ".join(said) or "no update yet"
