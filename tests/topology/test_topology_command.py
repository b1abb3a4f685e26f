"""`thinwire topology`, called as the command line calls it."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from thinwire import ConfigError
from thinwire.cli.topology import adjacency, named, topology
from thinwire.topology import TOPOLOGIES, Complete, OnePeerExponential, RandomMatching, RingGraph
from thinwire.value import Value

app = typer.Typer()
app.command()(topology)


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_topology_prints_a_table_within_80_columns(name):
    said = run(name, "--workers", 16).output
    assert max(map(len, said.splitlines())) <= 80
    assert repr(TOPOLOGIES[name]()) in said
    assert "without headers" in " ".join(said.split())


def test_the_table_and_the_file_say_what_the_topology_says(tmp_path):
    file = tmp_path / "t.json"
    said = run(
        "ring", "--workers", 12, "--weights", "lazy", "--params", "1e5", "--bits", 4, "--json", file
    ).output
    data = json.loads(file.read_text())
    graph = RingGraph(weights="lazy")
    assert data["command"] == "topology"
    assert [r["workers"] for r in data["results"]] == [2, 4, 8, 12]
    for r in data["results"]:
        N = r["workers"]
        assert Value.from_json(r["topology"]) == graph
        assert (r["degree"], r["links"]) == (graph.degree(N), graph.links(N))
        assert r["spectral_gap"] == graph.spectral_gap(N)
        assert r["rounds_to_halve"] == graph.rounds_to_halve(N)
        assert r["payload_bytes"] == graph.degree(N) * 100_000 * 4 // 8
    last = next(line.split() for line in said.splitlines() if line.split()[:1] == ["12"])
    assert last == [
        "12",
        "2",
        "12",
        f"{graph.spectral_gap(12):.3g}",
        f"{graph.rounds_to_halve(12)}",
        "100",
        "kB",
    ]


def test_one_worker_needs_no_one():
    assert "1        0       0     1       0     0 B" in run("ring", "--workers", 1).output


def test_the_drawn_graph_shows_who_hears_whom():
    assert adjacency(RingGraph(), 4, 0)[1:] == [
        "0 \\ # . #",
        "1 # \\ # .",
        "2 . # \\ #",
        "3 # . # \\",
    ]
    assert adjacency(OnePeerExponential(), 4, 0)[1:] == [
        "0 \\ 0 1 .", "1 . \\ 0 1", "2 1 . \\ 0", "3 0 1 . \\"
    ]  # fmt: skip
    for N in range(2, 90):
        lines = adjacency(Complete(), N, 0)
        assert max(map(len, lines), default=0) <= 80
        assert bool(lines) == (N <= 77)


def test_the_seed_draws_another_matching():
    assert adjacency(RandomMatching(), 16, 1) != adjacency(RandomMatching(), 16, 2)
    assert run("random-matching", "--workers", 16, "--seed", 1).output != (
        run("random-matching", "--workers", 16, "--seed", 2).output
    )


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("N", [1, 2, 8])
def test_a_picture_is_a_png(name, N, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "t.png"
    run(name, "--workers", N, "--picture", file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_wrong_arguments_are_refused_before_the_work(tmp_path):
    with pytest.raises(ConfigError, match="no topology is called 'rign'; choose from ring, torus"):
        run("rign", "--workers", 3)
    with pytest.raises(ConfigError, match="nearest are 8 and 16"):
        run("hypercube", "--workers", 12)
    with pytest.raises(ConfigError, match="weights is 'lasy'; choose one of 'metropolis'"):
        named("ring", "lasy")
    with pytest.raises(ConfigError, match="random-matching has no weights to choose"):
        named("random-matching", "lazy")
    with pytest.raises(ConfigError, match="there is no folder"):
        run("ring", "--workers", 3, "--picture", tmp_path / "none" / "t.png")
    with pytest.raises(ConfigError, match="a picture of 500 workers shows nothing"):
        run("ring", "--workers", 500, "--picture", tmp_path / "t.png")
    with pytest.raises(ConfigError, match="inf parameters of 8 bits are no message"):
        run("ring", "--workers", 3, "--params", "inf")
    assert run("ring", "--workers", 0).exit_code == 2
    assert not list(tmp_path.iterdir())
