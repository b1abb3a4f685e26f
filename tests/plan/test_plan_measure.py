"""What a plan measures is what is there, and what cannot be measured is refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from thinwire.cli import main
from thinwire.cli.gang import Gang
from thinwire.cli.plan_measure import step_seconds

FAST, SLOW = "40mbit,20ms", "10mbit,20ms,down=40mbit"


@pytest.mark.network
def test_the_line_is_measured_in_the_slower_direction_whichever_it_is(jobs) -> None:
    with Gang(2, jobs("measures"), {"lines": [[FAST, SLOW], [SLOW, FAST]]}) as gang:
        said = list(gang.messages())
    ranks = [[(m["bandwidth"], m["latency"]) for m in said if m["rank"] == r] for r in (0, 1)]
    assert ranks[0] == ranks[1]
    assert len(ranks[0]) == 2
    for bandwidth, latency in ranks[0]:
        assert 0.6 < bandwidth / 1e7 < 1.5
        assert 0.6 < latency / 0.02 < 1.5


@pytest.mark.network
@pytest.mark.slow
def test_a_job_of_two_processes_plans_for_itself(tmp_path) -> None:
    (tmp_path / "my_train.py").write_text("import time\ndef step():\n    time.sleep(0.05)\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "thinwire.cli", "plan", "--measure"]
    command += ["--params", "1e5", "--step-from", "my_train:step"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--json", "p.json"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Take ") == 1
    job = json.loads((tmp_path / "p.json").read_text())["job"]
    assert job["workers"] == 2
    assert 0.05 <= job["step_seconds"] < 0.5
    assert job["link"]["bandwidth"] > 1e7
    assert 0 < job["link"]["latency"] < 0.1
    assert "measured in rounds of this job" in done.stdout
    coding = job["coding"]
    assert all(0 < each["own"] < 1e-6 for each in coding.values())
    assert all((each["hear"] > 0) == ("all-reduce" not in name) for name, each in coding.items())


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("plan_no_syntax", "def step(:\n", "cannot be imported: SyntaxError"),
        ("plan_no_start", "1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero"),
        ("plan_no_step", "", "cannot be imported: AttributeError"),
        ("plan_no_function", "step = 5\n", "names a value of type int; name a function"),
        ("plan_no_data", "def step():\n    raise OSError('no data')\n", "failed: OSError: no data"),
        ("plan_no_model", "def step(model):\n    pass\n", "failed: TypeError"),
    ],
)
def test_a_step_that_cannot_be_taken_is_refused_in_one_line(
    name, source, said, tmp_path, monkeypatch, capsys
) -> None:
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--measure", "--params", "1e6", "--step-from", f"{name}:step"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"--step-from {name}:step {said}" in error
    assert error.count("\n") == 1


def test_a_step_is_timed_by_the_middle_of_five(tmp_path, monkeypatch) -> None:
    took = "import time\nsteps = iter((0.3, 0.3, 0.01, 0.3, 0.01, 0.01, 0.01))\n"
    (tmp_path / "plan_steps.py").write_text(f"{took}def step():\n    time.sleep(next(steps))\n")
    monkeypatch.chdir(tmp_path)
    assert 0.01 <= step_seconds("plan_steps:step") < 0.2
