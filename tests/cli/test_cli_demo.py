import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from gang_jobs import alive

from thinwire.cli.demo_methods import LEARNING_RATES, METHODS
from thinwire.cli.demo_table import sentence, table, times
from thinwire.cli.demo_train import save_digits
from thinwire.link import Link

PNG = b"\x89PNG\r\n\x1a\n"
D = 38_410


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "thinwire.cli", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
        **options,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["--workers", "2", "--epochs", "1", "--seed", "5"]
    files = ["--json", "r.json", "--picture", "p.png", "--log", "l.jsonl"]
    with start(*arguments, *files, cwd=folder) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return folder, out, json.loads((folder / "r.json").read_text())


@pytest.mark.network
def test_demo_compares_all_methods_and_writes_json_picture_and_log(tiny):
    folder, out, said = tiny
    assert (said["command"], said["seed"]) == ("demo", 5)
    assert [r["method"] for r in said["results"]] == [m.name for m in METHODS]
    assert all(method.name in out for method in METHODS)
    assert max(len(line) for line in out.splitlines()) <= 80
    assert (folder / "p.png").read_bytes().startswith(PNG)
    log = [json.loads(line) for line in (folder / "l.jsonl").read_text().splitlines()]
    assert (log[0]["event"], log[-1]["event"], log[-1]["status"]) == ("start", "end", "done")
    assert str(folder) not in (folder / "r.json").read_text()


@pytest.mark.network
def test_demo_counts_ddp_as_a_ring_all_reduce_of_every_gradient(tiny):
    ddp = tiny[2]["results"][0]
    N, steps = 2, 1438 // 2 // 16
    assert ddp["rounds"] == steps
    assert ddp["bytes"] == N * steps * 2 * (4 * D) * (N - 1) // N
    assert ddp["ratio"] == 1


@pytest.mark.network
def test_demo_leaves_equal_replicas_and_compresses(tiny):
    results = {r["method"]: r for r in tiny[2]["results"]}
    assert all(r["replicas_equal"] for r in results.values())
    assert results["Local SGD, H=8"]["rounds"] == -(-44 // 8)
    assert results["TopK-SGD 1%"]["ratio"] > 10
    assert results["Qsparse TopK>>QSGD, H=8"]["ratio"] > 200
    for r in results.values():
        assert r["bytes"] == r["bytes_up"] + r["bytes_down"] == r["curve"][-1]["bytes"]


@pytest.mark.network
def test_demo_over_a_thin_line_takes_at_least_what_the_line_takes(tmp_path):
    link = "100mbit,20ms"
    arguments = ["--workers", "2", "--epochs", "1", "--preset", "qsparse_local_sgd", "--link", link]
    with start(*arguments, "--json", "r.json", cwd=tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    ddp, thin = json.loads((tmp_path / "r.json").read_text())["results"]
    assert ddp["link"] == thin["link"] == link
    assert ddp["replicas_equal"]
    assert thin["replicas_equal"]
    line, slack = Link.parse(link), 1e-3
    assert ddp["seconds_here"] >= ddp["rounds"] * (line.all_reduce(4 * D, 2) - slack)
    # Rank 0, whose seconds these are, hears each round a way there and back after the last.
    assert thin["seconds_here"] >= (thin["rounds"] - 1) * (2 * line.latency - slack)
    assert thin["seconds_here"] < ddp["seconds_here"]
    assert "over links of 100 Mbit/s, 20 ms to each worker" in out
    assert max(len(text) for text in out.splitlines()) <= 80


@pytest.mark.network
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_all_workers_within_two_seconds_and_leaves_a_readable_log(
    tmp_path, number, code
):
    log = tmp_path / "l.jsonl"
    arguments = ["--workers", "3", "--epochs", "100000", "--log", str(log)]
    with start(*arguments, start_new_session=True) as process:
        wait_for(lambda: log.exists() and '"event": "epoch"' in log.read_text(), process)
        began = time.monotonic()
        # The whole foreground group hears Ctrl-C.
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=10)
    assert time.monotonic() - began < 2
    assert process.returncode == code
    assert err.splitlines()[-1].startswith("thinwire: ")
    assert str(log) in err.splitlines()[-1]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert (lines[-1]["event"], lines[-1]["status"]) == ("end", "interrupted")
    (pids,) = (line["pids"] for line in lines if line["event"] == "gang")
    assert len(pids) == 3
    assert not any(alive(pid) for pid in pids)


@pytest.mark.network
def test_a_worker_killed_during_the_demo_ends_it_with_one_line(tmp_path):
    log = tmp_path / "l.jsonl"
    with start("--workers", "2", "--epochs", "100000", "--log", str(log)) as process:
        wait_for(lambda: log.exists() and '"event": "epoch"' in log.read_text(), process)
        lines = [json.loads(line) for line in log.read_text().splitlines()[:2]]
        os.kill(lines[1]["pids"][1], signal.SIGKILL)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert err.splitlines()[-1] == "thinwire: worker 1 of 2 failed: killed by SIGKILL"
    assert json.loads(log.read_text().splitlines()[-1])["status"] == "failed"


def wait_for(there, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_split_is_the_seeds_and_covers_all_digits(tmp_path):
    files = [tmp_path / f"{n}.npz" for n in range(3)]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        assert save_digits(str(file), seed) == 359
    first, again, other = (dict(np.load(file)) for file in files)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["test_images"], other["test_images"])
    assert len(first["train_images"]) + len(first["test_images"]) == 1797
    assert first["train_images"].min() == 0
    assert first["train_images"].max() == 1


def test_every_learning_rate_is_of_the_stated_grid():
    assert {method.lr for method in METHODS} <= set(LEARNING_RATES)


def result(method, accuracy, bytes, seconds, ratio):
    return {
        "method": method, "accuracy": accuracy, "bytes": bytes, "ratio": ratio, "workers": 4,
        "epochs": 1, "rounds": 9, "bytes_up": bytes, "bytes_down": 0, "seconds_here": seconds,
        "seconds_at_100_mbit": 1.0, "test_images": 200, "link": None,
    }  # fmt: skip


def test_the_sentence_says_what_is_lost_as_well():
    said = sentence([result("DDP", 0.9, 1000, 2.0, 1.0), result("Thin", 0.88, 10, 3.0, 100.0)])
    assert "Thin sent 100 times fewer bytes than DDP and got 4 test images fewer right" in said
    assert "between 88.0% (Thin) and 90.0% (DDP)" in said
    assert "the slowest here was Thin (3.0 s; DDP 2.0 s)" in said


def test_the_sentence_names_no_best_among_equals():
    said = sentence([result("DDP", 0.9, 1000, 2.0, 1.0), result("Thin", 0.9, 10, 3.0, 100.0)])
    assert "got as many test images right; all accuracies are 90.0%" in said


def test_the_table_has_one_row_a_method():
    rows = [result("DDP", 0.9, 1000, 2.0, 1.0), result("Thin", 0.88, 10, 3.0, 1234.5)]
    assert table(rows).row_count == 2


def test_large_ratios_are_plain_numbers():
    assert times(123_456.0) == "123456"
