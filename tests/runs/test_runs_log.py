"""A run's log: every line, every logger, and going on with one that was cut."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from run_cases import write_run

import thinwire as tw
from thinwire.runs import RunLog, TensorBoard, WeightsAndBiases, read_runs
from thinwire.runs.measure import consensus_distance, norm
from thinwire.wire.sections import CLASSES

METHODS = {
    "qsparse": tw.qsparse_local_sgd(H=2),
    "four bits": tw.qsparse_local_sgd(2, tw.TopK(density=0.05) >> tw.QSGD(bits=4)),
    "chunks": tw.qsparse_local_sgd(
        2, tw.TopK(density=0.05, scope="chunk") >> tw.TwoLevel(), tw.Gather(tw.Feedback(0.95))
    ),
    "topk": tw.topk_sgd(),
    "rand": {
        "compressor": tw.RandK(density=0.1),
        "exchange": tw.Gather(),
    },
    "vanilla": tw.vanilla(),
    "ring": tw.qprsgd_ring(H=2, form="ring"),
    "two-phase": tw.qprsgd_ring(H=2, form="two-phase", bits=3),
    "gossip": tw.qprsgd_gossip(H=1),
    "choco": tw.choco_sgd(),
    "marsit": tw.marsit(K=2),
    "async": tw.qsparse_async(H=tw.RandomGaps(3)),
}


def trained(preset: dict, steps: int = 6, N: int = 3, **more: object) -> list[tw.Measured]:
    draws = torch.Generator().manual_seed(0)
    models = [torch.nn.Linear(40, 20) for _ in range(N)]
    workers = [
        tw.LocalSGD(m, torch.optim.SGD(m.parameters(), lr=0.1), group=tw.Seat(r, N), **preset)
        for r, m in enumerate(models)
    ]
    cluster = tw.LockStep(workers)
    measured = [tw.Measured(w, **more) for w in workers]
    for _ in range(steps):
        for model in models:
            model.zero_grad()
            model(torch.randn(8, 40, generator=draws)).square().mean().backward()
        cluster.step()
    return measured


@pytest.mark.parametrize("name", METHODS)
def test_message_classes_add_up_to_the_framed_uplink(name: str) -> None:
    for measured in trained(METHODS[name]):
        stats = measured._optimizer.stats
        assert sum(measured.classes[c] for c in CLASSES) == stats.uplink > 0
        assert measured.classes["header"] % 26 == 0


def test_classes_are_those_of_the_format() -> None:
    (first, *_) = trained(tw.topk_sgd(k=40), steps=1)
    # weight (800) keeps 40 of 800 entries, bias (20) all: 60 float32, no scale, two tag bytes.
    assert (first.classes["header"], first.classes["scale"]) == (26, 0)
    assert first.classes["value"] == 60 * 4
    assert 2 < first.classes["index"] < 60


def test_norms_are_those_of_the_vectors_and_absent_unless_asked_for() -> None:
    (first, *_) = trained(tw.qsparse_local_sgd(H=2), norms=True)
    assert first.line["residual_norm"] == norm(first._optimizer.residual)
    assert first.line["delta_norm"] > 0
    (first, *_) = trained(tw.qsparse_local_sgd(H=2))
    assert "delta_norm" not in first.line


def test_at_h_1_without_momentum_the_pseudo_gradient_is_the_step() -> None:
    model = torch.nn.Linear(3, 1)
    opt = tw.LocalSGD(model, torch.optim.SGD(model.parameters(), lr=0.5), **tw.vanilla())
    measured = tw.Measured(opt, norms=True)
    model(torch.ones(1, 3)).sum().backward()  # each of the four gradients is 1
    opt.step()
    assert measured.line["delta_norm"] == pytest.approx(1.0)


def test_staleness_counts_the_updates_missed() -> None:
    measured = trained(tw.qsparse_async(H=tw.RandomGaps(4)), steps=12)
    missed = [m.line["staleness"] for m in measured]
    assert all(0 <= n <= 4 for n in missed)
    assert any(missed)


def test_consensus_distance_is_relative_to_the_mean() -> None:
    apart = [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])]
    assert consensus_distance(apart) == pytest.approx(0.5)
    assert consensus_distance([apart[0]] * 3) == 0.0


def test_a_measured_worker_calls_who_asked_before() -> None:
    told = []
    model = torch.nn.Linear(3, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.5)
    opt = tw.LocalSGD(model, inner, on_round=told.append, **tw.vanilla())
    tw.Measured(opt)
    model(torch.ones(1, 3)).sum().backward()
    opt.step()
    assert [report.round for report in told] == [0]


def test_a_log_goes_on_where_its_run_was_taken_up(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a.jsonl", "Q")
    with file.open("a") as lines:
        lines.write('{"event": "round", "st')  # killed here
    with RunLog("case", 0, {}, file, from_step=24) as log:
        log.write("round", step=28, round=6)
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [e["event"] for e in events].count("start") == 1
    assert [e["step"] for e in events if e["event"] == "round"] == [4, 8, 12, 16, 20, 24, 28]
    assert [e["event"] for e in events][-3:] == ["resumed", "round", "end"]


def test_a_run_that_starts_over_leaves_no_old_line(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a.jsonl", "Q")
    with RunLog("case", 0, {}, file):
        pass
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the log is empty"),
        ('{"event": "round", "step": 1}\n', "does not begin with the start line"),
        ("not json\n", "cut short or no JSON"),
        ('{"event": "start", "task": "x"}\n', "holds no round and no evaluation"),
    ],
)
def test_a_log_that_cannot_be_drawn_is_one_sentence(
    tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    runs, notes = read_runs([file])
    assert runs == []
    assert len(notes) == 1
    assert said in notes[0] or "does not begin" in notes[0]


def test_what_stands_before_a_cut_is_read(tmp_path: Path) -> None:
    file = write_run(tmp_path / "a.jsonl", "Q")
    file.write_bytes(file.read_bytes()[:-60])
    (run,), (note,) = read_runs([tmp_path])
    assert len(run.rounds) == 12
    assert run.status == "unfinished"
    assert "a.jsonl: line " in note
    assert "before it are read" in note


def test_a_missing_log_and_an_empty_folder_are_said(tmp_path: Path) -> None:
    runs, notes = read_runs([tmp_path / "no.jsonl", tmp_path])
    assert runs == []
    assert "could not be read: No such file" in notes[0]
    assert "no .jsonl log in this folder" in notes[1]


def test_tensorboard_holds_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog("case", 0, {}, tmp_path / "a.jsonl", also=[TensorBoard(tmp_path / "tb")]) as log:
        for step in (4, 8):
            log.write("evaluation", step=step, loss=1 / step)
    events = EventAccumulator(str(tmp_path / "tb" / "a"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("evaluation/loss")] == [(4, 0.25), (8, 0.125)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_writes_a_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the wandb extra is not installed")
    sink = WeightsAndBiases(folder=tmp_path)
    with RunLog("case", 0, {"H": 8}, tmp_path / "a.jsonl", also=[sink]) as log:
        log.write("evaluation", step=4, loss=0.25)
    (run,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 30  # its own process writes the file
    while b"evaluation/loss" not in run.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"evaluation/loss" in run.read_bytes()


def test_a_logger_that_is_not_installed_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(tw.ConfigError, match=r"pip install 'thinwire\[tensorboard\]'"):
        TensorBoard("x")
    with pytest.raises(tw.ConfigError, match="offline or online"):
        WeightsAndBiases(mode="away")
