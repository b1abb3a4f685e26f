"""`thinwire topology`: what a graph of workers costs a round, and how fast it agrees."""

from __future__ import annotations

import math
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinwire.cli.output import document, size, write_atomically, write_json
from thinwire.errors import ConfigError
from thinwire.files import check_writable

if TYPE_CHECKING:
    from thinwire.topology import Topology

COLUMNS = 80
MOST_PICTURED = 128
"""Workers up to which a picture can be read."""

CAPTION = (
    "gap: 1 - rho, where rho is how much of the consensus error a round leaves at most{how}. "
    "halve: rounds that halve it. bytes: of payload that the busiest rank sends a round, "
    "degree x {params:,} parameters x {bits:g} bits, without headers, scales and indices."
)


def topology(
    name: Annotated[str, typer.Argument(help="The graph; a wrong name lists the choices.")],
    workers: Annotated[int, typer.Option(min=1, max=1 << 20, help="Workers, N.")],
    weights: Annotated[
        str | None, typer.Option(help="metropolis (the default), lazy or fastest.")
    ] = None,
    params: Annotated[float, typer.Option(min=1, help="Parameters of the model, d.")] = 1e6,
    bits: Annotated[float, typer.Option(min=0, max=32, help="Bits sent a parameter.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the rounds that random-matching draws.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Also draw the graph as PNG.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the table to this file.")] = None,
) -> None:
    """Show what a graph of workers costs a round, and how fast it agrees."""
    check_writable(json)
    check_writable(picture)
    if not math.isfinite(params * bits):
        raise ConfigError(f"{params:g} parameters of {bits:g} bits are no message; give numbers")
    graph = named(name, weights)
    graph.check_workers(workers)
    if picture is not None:
        draw(graph, workers, seed, picture)
    counts = [n for n in (2**j for j in range(1, 20)) if n < workers]
    results = [record(graph, N, int(params), bits) for N in (*counts, workers)]
    if json is not None:
        write_json(json, document("topology", seed, results))
    show(graph, results, seed)


def named(name: str, weights: str | None) -> Topology:
    """Returns the topology of that name.

    Raises:
        ConfigError: there is no such topology, or it has no such weights.
    """
    from thinwire.topology import TOPOLOGIES

    if name not in TOPOLOGIES:
        raise ConfigError(f"no topology is called {name!r}; choose from {', '.join(TOPOLOGIES)}")
    kind = TOPOLOGIES[name]
    if weights is None:
        return kind()
    if "weights" not in {field.name for field in fields(kind)}:
        raise ConfigError(f"{name} has no weights to choose: its pairs take their mean")
    return kind(**{"weights": weights})


def record(graph: Topology, N: int, params: int, bits: float) -> dict[str, Any]:
    """Returns the plain facts of a topology of N workers."""
    degree, rounds = graph.degree(N), graph.rounds_to_halve(N)
    return {
        "topology": graph.to_json(),
        "workers": N,
        "degree": degree,
        "links": graph.links(N),
        "spectral_gap": graph.spectral_gap(N),
        "rounds_to_halve": None if math.isinf(rounds) else rounds,
        "params": params,
        "bits": bits,
        "payload_bytes": math.ceil(degree * params * bits / 8),
    }


def show(graph: Topology, results: list[dict[str, Any]], seed: int) -> None:
    """Prints the table, what its columns count and, for few workers, the graph."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    drawn = Table(title=repr(graph), box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    names = ("workers", "degree", "arrows" if graph.directed else "edges", "gap", "halve", "bytes")
    for column in names:
        drawn.add_column(column, justify="right", no_wrap=True)
    for r in results:
        rounds = r["rounds_to_halve"]
        drawn.add_row(
            f"{r['workers']}",
            f"{r['degree']}",
            f"{r['links']}",
            f"{r['spectral_gap']:.3g}",
            "never" if rounds is None else f"{rounds}",
            size(r["payload_bytes"]),
        )
    console.print(drawn)
    last = results[-1]
    changing = ", a period's mean" if graph.period(2) else ", in the mean square"
    said = CAPTION.format(**last, how="" if graph.fixed else changing)
    console.print(textwrap.fill(said, 76), style="dim")
    lines = adjacency(graph, last["workers"], seed)
    if lines:
        console.print()
        console.print("\n".join(lines), markup=False, no_wrap=True)


def rounds_of(graph: Topology, N: int, most: int) -> range:
    """Returns the rounds that are worth drawing: a period, or the first few where drawn."""
    return range(min(graph.period(N) or 4, most))


def adjacency(graph: Topology, N: int, seed: int) -> list[str]:
    r"""Returns who hears whom as lines of at most 80 characters; none where N is too large.

    Example:
        >>> from thinwire.topology import RingGraph
        >>> print("\n".join(adjacency(RingGraph(), 4, 0)))
        row: who hears; column: whom
        0 \ # . #
        1 # \ # .
        2 . # \ #
        3 # . # \
    """
    label = len(str(N - 1))
    gap = " " if label + 2 * N <= COLUMNS else ""
    if N < 2 or label + 1 + N * (1 + len(gap)) - len(gap) > COLUMNS:
        return []
    cells = [["\\" if i == j else "." for j in range(N)] for i in range(N)]
    # The first round wins, so they are written from the last.
    for round in reversed(rounds_of(graph, N, 10)):
        for i in range(N):
            for j in graph.neighbours(i, N, round, seed):
                cells[i][j] = "#" if graph.fixed else str(round)
    said = "row: who hears; column: whom" + ("" if graph.fixed else "; digit: in which round first")
    return [said, *(f"{i:>{label}} {gap.join(row)}" for i, row in enumerate(cells))]


def draw(graph: Topology, N: int, seed: int, file: Path) -> None:
    """Draws the graph into a PNG file, one panel a round.

    Raises:
        ConfigError: matplotlib is not installed, there are too many workers to see
            anything, or the file cannot be written.
    """
    import io

    if N > MOST_PICTURED:
        raise ConfigError(
            f"a picture of {N} workers shows nothing; --picture takes {MOST_PICTURED}"
        )
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError(f"--picture needs {error.name}: pip install 'thinwire[demo]'") from error

    places = layout(graph, N)
    rounds = rounds_of(graph, N, 4)
    size_in = (max(6.0, 4.0 * len(rounds)), 6.6 if graph.fixed else 4.8)
    figure = Figure(figsize=size_in, dpi=130, layout="constrained")
    for axes, round in zip(figure.subplots(1, len(rounds), squeeze=False)[0], rounds, strict=True):
        _panel(axes, graph, N, round, seed, places)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.margins(0.12)
        if not graph.fixed:
            axes.set_title(f"round {round}", fontsize=11)
    facts = (
        f"{graph!r}, {N} workers{'; an arrow leads to who hears' if graph.directed else ''}",
        f"degree {graph.degree(N)}, spectral gap {graph.spectral_gap(N):.3g}, "
        f"rounds to halve the error {graph.rounds_to_halve(N):g}",
    )
    figure.suptitle("\n".join(facts), fontsize=11)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_atomically(file, drawn.getvalue())


def layout(graph: Topology, N: int) -> list[tuple[float, float]]:
    """Returns where each worker stands in the picture: a grid, a cube's shadow, or a circle."""
    from thinwire.topology import Hypercube, Star, Torus

    if isinstance(graph, Torus) and min(graph.sides(N)) > 1:
        _, cols = graph.sides(N)
        return [(rank % cols, -(rank // cols)) for rank in range(N)]
    if isinstance(graph, Hypercube) and N > 2:
        # One direction a bit, each a little longer than the last, so that no two corners meet.
        bits = graph.degree(N)
        sides = [(1 + 0.4 * b, math.pi * b / bits) for b in range(bits)]
        return [
            (
                sum(long * math.cos(turn) for b, (long, turn) in enumerate(sides) if rank >> b & 1),
                sum(long * math.sin(turn) for b, (long, turn) in enumerate(sides) if rank >> b & 1),
            )
            for rank in range(N)
        ]
    middle = [(0.0, 0.0)] if isinstance(graph, Star) and N > 1 else []
    turns = [2 * math.pi * k / (N - len(middle)) for k in range(N - len(middle))]
    return middle + [(math.sin(turn), math.cos(turn)) for turn in turns]


def _panel(
    axes: Any, graph: Topology, N: int, round: int, seed: int, places: list[tuple[float, float]]
) -> None:
    from matplotlib.patches import FancyArrowPatch

    radius = 9 if N <= 32 else 5
    for i in range(N):
        for j in graph.neighbours(i, N, round, seed):
            if i > j and not graph.directed:
                continue
            # A link that runs through other workers' places is bent around them.
            bent = 0.22 if _passes(places[i], places[j], places) else 0.0
            axes.add_patch(
                FancyArrowPatch(
                    places[j], places[i], arrowstyle="-|>" if graph.directed else "-",
                    connectionstyle=f"arc3,rad={bent}", mutation_scale=12, color="#0072B2",
                    linewidth=1.2 if N <= 32 else 0.6, shrinkA=radius, shrinkB=radius, zorder=1,
                    alpha=0.8,
                )
            )  # fmt: skip
    x, y = zip(*places, strict=True)
    axes.scatter(x, y, s=(2 * radius) ** 2, color="white", edgecolor="black", zorder=2)
    for rank, (a, b) in enumerate(places):
        if N <= 64:
            fontsize = 8 if N <= 32 else 5
            axes.text(a, b, str(rank), ha="center", va="center", fontsize=fontsize, zorder=3)


def _passes(
    a: tuple[float, float], b: tuple[float, float], places: list[tuple[float, float]]
) -> bool:
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy)
    for x, y in places:
        along = ((x - a[0]) * dx + (y - a[1]) * dy) / length**2
        across = abs((x - a[0]) * dy - (y - a[1]) * dx) / length
        if 1e-3 < along < 1 - 1e-3 and across < 1e-3 * length:
            return True
    return False
