import json
import os
import signal
import subprocess
import sys
import time

import pytest

from thinwire.cli import main

PNG = b"\x89PNG\r\n\x1a\n"


def run(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["simulate", *arguments])
    said = capsys.readouterr()
    return stop.value.code or 0, said.out, said.err


def test_it_trains_for_real_and_draws_who_computes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "--workers 4 --rounds 5 --H 2 --spread 0.3 --json r.json --picture p.png"
    code, out, _ = run(said.split(), capsys)
    assert code == 0
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert result["frames_are"] == "real"
    assert (result["lr"], result["batch"]) == (0.1, 8)
    assert len(result["curve"]) == 5
    assert result["accuracy"] > 0.2
    assert result["apart"] < 1e-6
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)
    assert "machines compute" in out


def test_sizes_only_says_so_and_is_the_same_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = "--workers 8 --params 7B --preset qprsgd_gossip --rounds 3 --straggle 5%"
    results = []
    for name in ("a.json", "b.json"):
        assert run([*said.split(), "--json", name], capsys)[0] == 0
        results += json.loads((tmp_path / name).read_text())["results"]
    assert results[0]["frames_are"] == "exact"
    assert not {"lr", "batch"} & results[0].keys()
    for field in ("virtual_seconds", "frames", "sent_per_worker_and_round", "utilisation"):
        assert results[0][field] == results[1][field]


def test_coding_takes_time_too_where_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    took = []
    for more in ([], ["--coding"]):
        job = ["--workers", "4", "--params", "1e6", "--rounds", "2", "--json", "r.json", *more]
        code, out, _ = run(job, capsys)
        assert code == 0
        assert ("coding in it" in out) == bool(more)
        (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
        took.append(result["seconds_per_round"])
        assert ("own" in result["compute"]) == bool(more)
    assert took[0] < took[1] < took[0] + 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--workers 20000", "write --workers 10000 at most"),
        ("--workers many", "1.1e9"),
        ("--link 0mbit,1ms", "write one such as 100mbit"),
        ("--link 100mbit,soon", "write 20ms"),
        ("--topology ring", "takes no --topology; these do: qprsgd_gossip"),
        ("--preset vanilla --H 3", "takes no --H"),
        ("--step-time soon", "write 20ms"),
        ("--away 3", "write 1% or 0.01"),
        ("--preset qsparse_async --params 1e6", "run it with real frames"),
        ("--params 1e6 --lr 0.5", "leave out --lr, or --params"),
        ("--params 1e6 --batch 4", "--batch 4 is of a model that is trained"),
        ("--preset qprsgd_ring --workers 10000", "take fewer workers"),
        ("--params 1e6 --rounds 9 --link 100mbit,1ms,drop=50%", "0 bytes are no frame"),
    ],
)
def test_a_wrong_argument_is_refused_with_a_right_one(
    arguments, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(arguments.split(), capsys)
    assert code == 2
    assert said in err.splitlines()[-1]


@pytest.mark.network
def test_ctrl_c_leaves_a_readable_log(tmp_path):
    command = [sys.executable, "-m", "thinwire.cli", "simulate", "--rounds", "100000"]
    with subprocess.Popen(
        [*command, "--log", "l.jsonl"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        log = tmp_path / "l.jsonl"
        while not (log.exists() and '"round"' in log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the log so far is l.jsonl" in err
    assert json.loads(log.read_text().splitlines()[-1])["status"] == "interrupted"
