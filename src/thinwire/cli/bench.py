"""`thinwire bench`: what a claim of speed or size is measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from thinwire.cli.output import bars, document, size, write_json
from thinwire.errors import ConfigError
from thinwire.files import check_writable
from thinwire.runs import cores, machine

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

SIZES = ("1e5", "1e6", "resnet50", "gpt2")
COLUMNS = 120


@app.callback()
def bench() -> None:
    """Measure this machine."""


@app.command()
def kernels(
    json: Annotated[Path | None, typer.Option(help="Also write the results to this file.")] = None,
    sizes: Annotated[
        str, typer.Option(help=f"Of {', '.join(SIZES)}, separated by commas.")
    ] = ",".join(SIZES),
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1,2",
    repeats: Annotated[int, typer.Option(min=1, max=999, help="Timings of each; of plain torch, "
                                         "at most three.")] = 7,
    seed: Annotated[int, typer.Option(min=0, help="Of the vectors and of the rounding.")] = 0,
) -> None:  # fmt: skip
    """Time every operation against a memory copy and plain torch, its bytes against entropy."""
    check_writable(json)
    chosen = [name.strip() for name in sizes.split(",")]
    wrong = [name for name in chosen if name not in SIZES]
    if wrong:
        raise ConfigError(f"no size {wrong[0]!r}; choose from {', '.join(SIZES)}")
    counts = _threads(threads)
    from thinwire.cli.bench_kernels import measure

    results: list[dict[str, Any]] = []
    with bars() as drawn:
        for name in chosen:
            for count in counts:
                part = f"{name}, {count} thread{'s' * (count > 1)}"
                drawn.add(part, 0)
                results += measure(name, count, repeats, seed)
                drawn.finish(part, "measured")
    if json is not None:
        write_json(json, document("bench kernels", seed, results))
    show(results, repeats, seed)


def _threads(text: str) -> list[int]:
    counts = []
    for part in text.split(","):
        if not part.strip().isdigit() or not 1 <= int(part) <= cores():
            raise ConfigError(
                f"{part.strip()!r} threads; give whole numbers from 1 to {cores()}, such as 1,2"
            )
        counts.append(int(part))
    return counts


def show(results: list[dict[str, Any]], repeats: int, seed: int) -> None:
    """Prints the results as a table, and what was measured on what."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("operation", "elements", "threads", "ms", "copies", "torch", "bytes", "entropy"):
        drawn.add_column(column, justify="left" if column == "operation" else "right")
    for r in results:
        peer, entropy = r["torch_seconds"], r["entropy_bytes"]
        drawn.add_row(
            r["op"],
            f"{r['elements']:,}",
            str(r["threads"]),
            f"{1e3 * r['seconds']:.2f}",
            f"{r['seconds'] / r['copy_seconds']:.2f}x",
            "" if peer is None else f"{peer / r['seconds']:.1f}x slower",
            "" if r["bytes"] is None else size(r["bytes"]),
            "" if entropy is None else f"{100 * (r['bytes'] / entropy - 1):+.1f} %",
        )
    console, here = Console(width=COLUMNS), machine()
    console.print(drawn)
    console.print(
        f"Medians of {repeats}; copies: beside a copy of the same vector in the same run; entropy: "
        f"bytes beside the least any code could have. {here['cpu']}, {here['cores']} cores, "
        f"torch {here['torch']}, numba {here['numba']}, seed {seed}."
    )
