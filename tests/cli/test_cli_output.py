import json
import os
import socket

import pytest

from thinwire.cli.output import bars, document, size, write_json
from thinwire.cli.signals import Interrupted
from thinwire.errors import ConfigError
from thinwire.runs import RunLog, machine


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_json_has_one_shape(tmp_path):
    file = tmp_path / "f.json"
    write_json(file, document("demo", 3, [{"a": 1}]))
    said = json.loads(file.read_text())
    assert list(said) == ["thinwire", "command", "machine", "seed", "results"]
    assert (said["command"], said["seed"], said["results"]) == ("demo", 3, [{"a": 1}])


def test_the_machine_is_described_and_not_named():
    said = json.dumps(machine())
    assert machine()["cores"] >= 1
    assert machine()["memory_bytes"] > 1 << 20
    for secret in (socket.gethostname(), os.getcwd(), os.path.expanduser("~")):
        assert secret not in said


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "f.json"
    write_json(file, {"old": True})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_json(file, {"new": True})
    assert json.loads(file.read_text()) == {"old": True}
    assert list(tmp_path.iterdir()) == [file]


def test_a_log_is_readable_after_every_line(tmp_path):
    with RunLog("demo", 0, {"epochs": 1}, tmp_path / "log") as run:
        assert [line["event"] for line in lines(run.file)] == ["start"]
        run.write("epoch", accuracy=0.5)
        assert lines(run.file)[-1]["accuracy"] == 0.5
    assert lines(run.file)[-1]["status"] == "done"


@pytest.mark.parametrize(
    ("error", "status"), [(Interrupted(2), "interrupted"), (ConfigError("H"), "failed")]
)
def test_a_log_says_how_its_run_ended(tmp_path, error, status):
    file = tmp_path / "log"
    with pytest.raises(type(error)), RunLog("demo", 0, {}, file):
        raise error
    assert lines(file)[-1]["status"] == status


def test_logs_without_a_name_go_to_runs_and_never_over_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        with RunLog("demo", 0, {}):
            pass
    assert len(list((tmp_path / "runs").glob("demo-*.jsonl"))) == 3


def test_without_a_terminal_a_bar_is_one_line_on_standard_error(capsys):
    with bars() as drawn:
        drawn.add("train", 2)
        drawn.advance("train", "50%")
        drawn.advance("train", "100%")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "train: 100%\n")


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_999, "1.00 MB"),
                    (99_960, "100 kB"), (9_994, "9.99 kB"), (10**13, "10.0 TB")]
)  # fmt: skip
def test_sizes_are_decimal_and_have_three_figures(n, text):
    assert size(n) == text
