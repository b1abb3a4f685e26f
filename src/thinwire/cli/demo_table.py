"""What the demo prints: the table, what its columns count, and one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from thinwire.cli.output import size
from thinwire.link import Link

Result = dict[str, Any]

CAPTION = """\
Bytes are summed over workers. up, down: framed bytes that left for another
process, measured; set-up ({setup} for all methods) is not in them. DDP makes no
frames: its bytes are the gradient bytes it handed over, measured, times the
2(N-1)/N that a ring all-reduce sends, half under up and half under down.
ratio: DDP's bytes / the method's. {how}"""
HERE = """here: computing and talking on this machine,
without start and tests. 100 Mbit/s: bytes of the busiest rank alone, at that
rate, no latency and no computing: for DDP what it sends (a ring uses both
directions at once), as for any ring or gossip; with a master, what rank 0
hears and then answers."""
PACED = """on the line: computing, and talking
over links of {link} to each worker, measured;
without start and tests. Frames are held until such a line would have brought
them, headers of Ethernet, IP and TCP counted; DDP's all-reduce as long as a
ring over it takes, after the backward pass."""


def show(results: list[Result]) -> None:
    """Prints the table, its caption and the sentence."""
    console = Console(highlight=False)
    console.print(table(results))
    setup = size(sum(r["bytes_setup"] for r in results))
    link = results[0]["link"]
    how = HERE if link is None else PACED.format(link=Link.parse(link).say())
    console.print(CAPTION.format(setup=setup, how=how), style="dim")
    for result in results:
        for note in result["notes"]:
            console.print(f"{result['method']}: {note}.", style="dim")
    console.print()
    console.print(sentence(results), style="bold")


def table(results: list[Result]) -> Table:
    """Returns the results as a table that fits 80 columns."""
    first = results[0]
    drawn = Table(
        title=f"{first['workers']} workers, {first['epochs']} epochs, "
        f"{first['test_images']} test images",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    drawn.add_column("method", no_wrap=True)
    here = first["link"] is None
    seconds = ("s\nhere", "s, 100\nMbit/s") if here else ("s on\nthe line",)
    for name in ("test\nacc.", "\nrounds", "\nup", "\ndown", "\nratio", *seconds):
        drawn.add_column(name, justify="right", no_wrap=True)
    for r in results:
        drawn.add_row(
            r["method"],
            f"{r['accuracy']:.1%}",
            f"{r['rounds']}",
            size(r["bytes_up"]),
            size(r["bytes_down"]),
            times(r["ratio"]) + "x",
            f"{r['seconds_here']:.1f}",
            *([f"{r['seconds_at_100_mbit']:.2f}"] if here else []),
        )
    return drawn


def sentence(results: list[Result]) -> str:
    """Returns one sentence that sums up the table from its numbers, losses included."""
    dense, *others = results
    least = min(others, key=lambda r: r["bytes"])
    slowest = max(results, key=lambda r: r["seconds_here"])
    where = "here" if dense["link"] is None else "on the line"
    beside = "" if slowest is dense else f"; DDP {dense['seconds_here']:.1f} s"
    return (
        f"{least['method']} sent {times(least['ratio'])} times fewer bytes than DDP and "
        f"{_difference(least, dense)}; {_spread(results)}, one image being "
        f"{1 / dense['test_images']:.1%}; the slowest {where} was {slowest['method']} "
        f"({slowest['seconds_here']:.1f} s{beside})."
    )


def times(ratio: float) -> str:
    """Returns a ratio to three figures, never as a power of ten.

    Example:
        >>> times(8.479), times(34.14), times(1234.5)
        ('8.48', '34.1', '1234')
    """
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def _difference(result: Result, dense: Result) -> str:
    images = round((result["accuracy"] - dense["accuracy"]) * result["test_images"])
    if images == 0:
        return "got as many test images right"
    more = "more" if images > 0 else "fewer"
    return f"got {abs(images)} test image{'s' * (abs(images) > 1)} {more} right"


def _spread(results: list[Result]) -> str:
    low, high = _extreme(results, min), _extreme(results, max)
    if low == high:
        return f"all accuracies are {results[0]['accuracy']:.1%}"
    return f"accuracies lie between {low} and {high}"


def _extreme(results: list[Result], which: Callable[[Iterable[float]], float]) -> str:
    accuracy = which(r["accuracy"] for r in results)
    there = [r["method"] for r in results if r["accuracy"] == accuracy]
    return f"{accuracy:.1%} ({there[0] if len(there) == 1 else f'{len(there)} methods'})"
