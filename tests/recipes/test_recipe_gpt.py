"""The GPT recipe in small: every method at equal tokens, stopped and taken up, its table."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import gpt_data
import pytest
import torch
from gpt_cell import Cell, finished, run, step_size
from gpt_methods import METHODS, Method, grid, variants
from gpt_model import GPT, Shape, parameters
from programs import program

import thinwire as tw

gpt_run = program("gpt")
TINY = Shape(layers=1, heads=2, width=16, context=16)
CELL = Cell(METHODS["ddp"], tokens=2 * 4 * 16 * 12, workers=2, batch=4, shape=TINY,
            evaluations=3, windows=64)  # fmt: skip


SOURCES = sorted(Path(gpt_data.__file__).parent.glob("*.py"))


@pytest.fixture(scope="module")
def text() -> gpt_data.Text:
    return gpt_data.load(SOURCES, 16)


def cell(name: str) -> Cell:
    method = METHODS[name]
    return replace(CELL, method=replace(method, density=min(method.density, 0.25)))


@pytest.mark.parametrize("name", ["ddp", "diloco-h4", "sparseloco-h4", "qsparse-h4", "qprsgd-h5"])
def test_every_method_sees_the_same_tokens_and_leaves_one_log(
    name: str, text: gpt_data.Text, tmp_path: Path
) -> None:
    log = tmp_path / "a.jsonl"
    result = run(cell(name), text, log, norms=True)
    assert (result["step"], result["tokens"]) == (12, CELL.tokens)
    assert result["bits_per_byte"] < 8.05
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["step"] for e in lines if e["event"] == "evaluation"][-1] == 12
    assert list(tmp_path.iterdir()) == [log]
    if name == "ddp":
        assert result["uplink"] == 4 * parameters(TINY) * 2 * 12
        assert result["ratio"] == 1.0
    else:
        assert result["ratio"] > 2.4
    assert run(cell(name), text, log) == finished(log)


def test_ddp_is_adamw_on_the_mean_gradient(text: gpt_data.Text, tmp_path: Path) -> None:
    # One worker with all windows, against H = 1, exact means of two workers' models: AdamW's first
    # step depends on the sign of the gradient alone, so only the mean gradient gives the same.
    dense = Method("diloco", H=1, dense=12)
    with_mean = run(replace(CELL, method=dense), text, tmp_path / "a.jsonl")
    with_ddp = run(CELL, text, tmp_path / "b.jsonl")
    assert with_mean["bits_per_byte"] == pytest.approx(with_ddp["bits_per_byte"], rel=1e-4)
    assert with_mean["uplink"] == with_ddp["uplink"]


def test_a_stopped_run_ends_in_the_bits_of_one_that_was_not(
    text: gpt_data.Text, tmp_path: Path
) -> None:
    whole = run(cell("sparseloco-h4"), text, tmp_path / "a.jsonl")

    def stop(step: int, *rest: object) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(cell("sparseloco-h4"), text, tmp_path / "b.jsonl", stop)
    assert finished(tmp_path / "b.jsonl") is None
    again = run(cell("sparseloco-h4"), text, tmp_path / "b.jsonl")
    for key in ("bits_per_byte", "uplink", "train_loss"):
        assert again[key] == whole[key]
    steps = [json.loads(e)["step"] for e in (tmp_path / "b.jsonl").read_text().splitlines()
             if '"evaluation"' in e]  # fmt: skip
    assert steps == sorted(set(steps))


def test_the_model_is_the_size_it_says_and_looks_at_no_later_byte() -> None:
    assert parameters(Shape()) == 837_888
    model = GPT(TINY, 0)
    x = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    later = x.clone()
    later[:, 9:] = 7
    assert torch.equal(model(x)[:, :9], model(later)[:, :9])
    later = (7 * x + 5) % 256
    assert float(model.loss(x, later).detach()) / math.log(2) == pytest.approx(8, abs=0.2)


def test_workers_read_different_parts_and_the_held_out_text_is_apart() -> None:
    text = gpt_data.Text(
        torch.arange(256, dtype=torch.uint8), torch.zeros(99, dtype=torch.uint8), ""
    )
    draws = torch.Generator().manual_seed(0)
    for rank in range(4):
        x, y = text.batch(rank, 4, 50, 8, draws)
        assert x.min() >= 64 * rank
        assert y.max() < 64 * (rank + 1)
        assert torch.equal(x[:, 1:], y[:, :-1])
    x, _ = text.judged(5, 8)
    assert x.shape == (5, 8)


def test_the_standard_library_is_there_without_its_tests() -> None:
    names = {file.name for file in gpt_data.standard_library()}
    assert {"argparse.py", "typing.py"} <= names
    assert "test_argparse.py" not in names


def test_text_that_is_missing_or_too_short_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(tw.ConfigError, match=r"no\.txt: cannot be read: No such file"):
        gpt_data.load([tmp_path / "no.txt"], 16)
    (tmp_path / "short").write_text("abc")
    with pytest.raises(tw.ConfigError, match="too few for windows of 16"):
        gpt_data.load([tmp_path / "short"], 16)


def test_the_step_size_rises_then_falls_to_a_tenth() -> None:
    factors = [step_size(CELL, step) for step in range(CELL.steps + 1)]
    assert max(factors) == 1.0
    assert factors[-1] == pytest.approx(0.1)


def test_levers_change_one_setting_at_a_time() -> None:
    for name, method in METHODS.items():
        for lever in grid(name):
            assert all(replace(m, **{lever: getattr(method, lever)}) == method
                       for m in variants(method, lever))  # fmt: skip


def test_a_plan_tunes_lever_by_lever_and_tabulates_what_it_trained(tmp_path: Path, text) -> None:
    plan = gpt_run.Plan(tmp_path, replace(CELL, tokens=CELL.tokens // 2), 2, ("ddp",))
    assert gpt_run.listed(plan) == ["ddp: tuning, 0 of 4 runs done"]
    stages = plan.tuned("ddp")
    for c, log in next(stages):
        run(c, text, log)
    assert gpt_run.listed(plan) == ["ddp: final, 0 of 2 runs done"]
    final = next(stages)
    best = min((finished(log) or {})["bits_per_byte"] for log in (tmp_path / "tuning").iterdir())
    kept = run(replace(final[0][0], tokens=plan.cell.tokens // 4), text, tmp_path / "x.jsonl")
    assert kept["bits_per_byte"] == best
    for c, log in final:
        run(c, text, log)
    ended = {"ddp": final}
    gpt_run.publish(ended, plan, "the command", tmp_path / "RESULTS.md")
    said = (tmp_path / "RESULTS.md").read_text()
    assert "| DDP | lr " in said
    assert "seeds 0 to 1" in said


def test_a_goal_is_held_or_missed_as_the_means_say() -> None:
    def runs(bits: float, uplink: float) -> list[dict[str, float]]:
        each = {"uplink": uplink, "ratio": 4e4 / uplink}
        return [{"bits_per_byte": bits + spread, **each} for spread in (-0.01, 0.01)]

    found = {"ddp": runs(2.0, 4e4), "diloco-h4": runs(2.2, 1e4), "qsparse-h4": runs(2.08, 200.0),
             "sparseloco-h4": runs(2.21, 100.0), "sparseloco-h15": runs(2.3, 1.0)}  # fmt: skip
    said = [line.split("| ")[2:] for line in gpt_run.verdict(found)[2:]]
    assert [line[-1] for line in said] == [
        "held |", "held |", "**MISSED** |", "**MISSED** |", "**MISSED** |",
    ]  # fmt: skip
    assert said[0][0] == "2.0800 and 2.2000 bits per byte, 50x "
    assert said[1][0] == "+4.0 %, 200x "


def test_asking_for_nothing_or_for_no_tokens_says_so(capsys) -> None:
    for wrong in ([], ["--all", "--tokens", "0"], ["--method", "sgd"]):
        with pytest.raises(SystemExit):
            gpt_run.main(wrong)
    assert "it must be at least 1" in capsys.readouterr().err
