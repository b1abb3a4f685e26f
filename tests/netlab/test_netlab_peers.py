"""Peers' cells: which are run, kept, tried again and shown; and predictions kept by method."""

from __future__ import annotations

import importlib
import json
import re
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
from mnist_files import write_digits
from netlab_hosts import BENCH, needs_root, program

from thinwire.errors import ConfigError

GIVEN = {
    "data": None, "peers": None, "rates": None, "seeds": None,
    "quick": True, "list": False, "quality": False,
}  # fmt: skip


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))

    def module(name: str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own hooks are made with what it deprecates.
            return importlib.import_module(name)

    return module


def stub(bench, outcome) -> list[list[str]]:
    """Puts `outcome` in a job's place, and returns the list of the peers that jobs are given."""
    given: list[list[str]] = []

    def job(cells, rate, limit) -> None:
        given.append([cell["peer"]["name"] for cell in cells])
        outcome(cells)

    bench._job = job
    return given


def write(cells) -> None:
    for cell in cells:
        Path(cell["file"]).write_text(json.dumps(measured(cell)))


def measured(cell, each=0.5):
    """A cell as a job leaves it; every step takes `each` seconds, and every round 8 MB."""
    H = cell["peer"].get("H", 1)
    sent = 8_000_000 * (cell["steps"] // H - 2 // H)
    curve = [(cell["steps"], 1.0, 0.91)] if cell["judge"] else []
    return {
        **cell, "task": "mlp", "each": [each] * cell["steps"], "done": cell["steps"],
        "sent_later": sent, "sent": sent, "framed": None, "curve": curve,
        "seconds": each * cell["steps"], "reached_at": None,
    }  # fmt: skip


def bench_of(load, runs: Path, **options):
    return load("peers").Bench(Namespace(**{**GIVEN, "runs": runs, **options}), "mlp")


def test_a_cell_that_failed_is_tried_once_a_call_and_again_by_the_next(load, tmp_path) -> None:
    failed = load("jobs").JobFailed

    def fail(cells) -> None:
        raise failed("rank 1 ended with 1")

    bench = bench_of(load, tmp_path, peers=["DDP"])
    cells = bench.quick("100mbit")
    given = stub(bench, fail)
    bench.run(cells, "100mbit")
    assert given == [["no communication", "DDP"], ["DDP"]]
    assert [cell["failed"] for cell in bench.cells] == ["rank 1 ended with 1"] * 2

    again = bench_of(load, tmp_path, peers=["DDP"])
    given = stub(again, write)
    again.run(cells, "100mbit")
    again.run(cells, "100mbit")
    assert given == [["no communication", "DDP"]]
    assert all("failed" not in cell for cell in again.cells)
    assert len(again.cells) == 2


def test_a_machine_that_makes_no_lab_fails_the_call_and_no_cell(load, tmp_path) -> None:
    def refuse(cells) -> None:
        raise ConfigError("network namespaces need root")

    bench = bench_of(load, tmp_path)
    stub(bench, refuse)
    with pytest.raises(ConfigError, match="need root"):
        bench.run(bench.quick("100mbit"), "100mbit")
    assert bench.cells == []


def test_quick_has_settings_for_every_peer_of_either_task(load) -> None:
    quick, methods = load("peer_quick"), load("peer_methods")
    known = methods.PEERS
    judged_every = load("tune").judged_every
    assert set(quick.NAMES) <= set(known)
    assert "DDP" in quick.NAMES
    for task in ("mlp", "gpt"):
        found = {p["name"]: (p, steps) for p, steps in quick.peers(task, [*known])}
        assert set(found) == {"no communication", *known}
        # Each ends at the end of a round, where it is judged.
        assert all(steps % judged_every(peer) == 0 for peer, steps in found.values())
        assert {steps for peer, steps in found.values() if peer["family"] == "ddp"} == {16}
        for peer, _ in found.values():
            if peer["kind"] == "thinwire":
                assert methods.preset(peer)["H"] == peer["H"]
        assert found["torchft LocalSGD"][0]["algorithm"] == "local_sgd"
        assert found["torchft DiLoCo"][0]["algorithm"] == "diloco"


def test_the_quick_table_has_a_line_a_cell_and_says_what_failed(load, tmp_path) -> None:
    quick = load("peer_quick")
    names = ["DDP", "torchft DiLoCo", "thinwire SignTopK"]
    bare, ddp, diloco, sign = bench_of(load, tmp_path, peers=names).quick("100mbit")
    cells = [measured(bare, 0.01), measured(ddp), {**diloco, "failed": "no"}, measured(sign, 0.02)]
    found = quick.table("mlp", cells).splitlines()
    assert found[2] == (
        "| no communication | lr 0.1, momentum 0.9 | 0 | 256 | 0.0100 | 8.000 | - | 100.0% |"
    )
    assert found[3] == (
        "| DDP | lr 0.2, momentum 0.9 | 0 | 16 | 0.5000 | 8.000 | 91.0% of the test set | 2.0% |"
    )
    assert found[-3].startswith("| thinwire SignTopK | H 16, density 0.03, lr 0.1, momentum 0.9 |")
    assert found[-3].endswith("| 256 | 0.0200 | 0.500 | 91.0% of the test set | 50.0% |")
    assert found[-1] == "torchft DiLoCo, seed 0: failed: no"
    assert not any("DiLoCo" in line for line in found[:-1])


def test_results_ignore_quick_cells(load, tmp_path) -> None:
    results = load("peer_results")
    bench = bench_of(load, tmp_path, peers=["DDP"])
    quick = [measured(cell) for cell in bench.quick("100mbit")]
    assert results.row("DDP", "100mbit", quick, [], []) is None
    whole = [
        {**cell, "how": how, "reached_at": 16, "each": [0.25] * 16}
        for cell, how in zip(quick, ("probe", "whole"), strict=True)
    ]
    row = results.row("DDP", "100mbit", [*quick, *whole], [], [])
    assert row.seconds == [8.0]
    assert row.busy == 0.25


def test_only_the_methods_that_lack_a_prediction_are_measured(load, tmp_path, monkeypatch) -> None:
    predict = load("predict")
    asked: list[list[str]] = []

    def in_lab(arguments, rate, burst):
        methods = arguments[arguments.index("--methods") + 1 :]
        asked.append(methods)
        return [{"method": method, "rate": rate, "coding": [0, 0]} for method in methods]

    said = Namespace(runs=tmp_path, params=1000, rounds=1, seconds=0.0, methods=["ring"])
    monkeypatch.setattr(predict, "in_lab", in_lab)
    # Of an older form, which is measured again.
    (tmp_path / "predict-1000-1gbit.json").write_text('[{"method": "ring"}]')
    predict.measured(said, "1gbit")
    said.methods = ["gossip", "ring", "server"]
    for _ in range(2):
        assert set(predict.measured(said, "1gbit")) == {"gossip", "ring", "server"}
    assert asked == [["ring"], ["gossip", "server"]]


PEERS = "import os; os.geteuid = lambda: {}; import peers, sys; sys.exit(peers.main())"


@pytest.mark.slow
def test_peers_refuses_without_root_and_writes_no_cell(tmp_path: Path) -> None:
    data, runs = write_digits(tmp_path, zipped=False), tmp_path / "runs"
    with program(PEERS.format(1), "--quick", "--data", data, "--runs", runs) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.startswith("peers: network namespaces need root on Linux")
    assert list(runs.glob("*.json")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "peers: name MNIST's folder: --data ../shared/data/mnist"),
        (("--data", "/nowhere"), "no such file; expected there the four IDX files"),
    ],
)
def test_peers_without_mnist_says_so_in_a_sentence(tmp_path: Path, options, said) -> None:
    with program(PEERS.format(0), "--quick", *options, "--runs", tmp_path / "runs") as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said in err
    assert len(err.splitlines()) == 1


@needs_root
@pytest.mark.slow
@pytest.mark.network
def test_peers_quick_runs_from_nothing_and_prints_its_table(tmp_path: Path) -> None:
    data, runs = write_digits(tmp_path, zipped=False), tmp_path / "runs"
    call = ("--quick", "--data", data, "--runs", runs, "--peers", "DDP", "thinwire SignTopK",
            "--rates", "1gbit")  # fmt: skip
    with program(PEERS.format(0), *call) as process:
        said, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    for name in ("no communication", "DDP", "thinwire SignTopK"):
        assert re.search(rf"^\| {name} \| .* \| \d+\.\d% \|$", said, re.MULTILINE)
    kept = [json.loads(file.read_text()) for file in runs.glob("*.json")]
    assert [cell["how"] for cell in kept] == ["quick"] * 3
