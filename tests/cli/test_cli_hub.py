"""`thinwire demo-hub` ends with an equal ledger; `hub-status` says what it saw."""

from __future__ import annotations

import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from thinwire.cli import main
from thinwire.cli.hub_status import histogram, table
from thinwire.errors import ConfigError

# The package's own names for these are the commands in them.
DOCTOR, HUB = map(importlib.import_module, ("thinwire.cli.doctor", "thinwire.cli.hub"))


@pytest.mark.network
def test_the_demo_ends_with_an_equal_ledger(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "thinwire.cli", "demo-hub", "--updates", "60", "--json", str(out)],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "applied: equal" in done.stdout
    result = json.loads(out.read_text())["results"][0]
    assert result["sent"] == result["acknowledged"] == result["applied"] >= 60
    assert result["accuracy"] > 0.7
    assert result["bytes_down"] > 0


def test_a_status_is_shown_live_workers_first() -> None:
    worker = {
        "number": 1, "weight": 1.0, "sequence": 9, "applied": 8, "rate": 2.0, "silent": 0.5,
        "staleness": 3, "bytes_up": 41_234, "bytes_down": 999,
    }  # fmt: skip
    status = {
        "run": "0x7", "d": 38410, "seconds": 12.0, "closing": False, "applied": 8, "version": 5,
        "refused_as_stale": 1, "bytes_up": 41_234, "bytes_down": 999,
        "staleness_histogram": [5, 0, 3],
        "workers": [
            {**worker, "name": "gone", "live": False, "silent": None},
            {**worker, "name": "here", "live": True, "number": 2},
        ],
    }  # fmt: skip
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(status))
    text = console.export_text()
    console.file.close()
    assert text.index("here") < text.index("gone")
    assert "1 of 2 workers live; 8 updates applied, 1 refused as stale" in text
    assert "41.2 kB" in text
    assert "staleness: 0: 5, 2-3: 3" in text
    assert histogram({"staleness_histogram": [0, 0]}) == "no update yet"


@pytest.fixture
def refusal(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("thinwire.hub"), "handlers", [])

    def refusal(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        said = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2
        assert said.startswith("thinwire: ")
        return said

    return refusal


def test_a_file_that_cannot_be_used_is_named_in_one_line(refusal, tmp_path: Path) -> None:
    base = ["hub", "--model-from", tmp_path / "none.pt", "--state", tmp_path / "state"]
    said = refusal(*base, "--log", tmp_path / "no" / "hub.log")
    assert "there is no folder" in said
    assert "make it first" in said
    (tmp_path / "key").write_bytes(b"secret\xff\xfe")
    (tmp_path / "two").write_text("a long secret\nanother one\n")
    for command in (base, ["hub-status", "127.0.0.1:1"]):
        said = refusal(*command, "--token-file", tmp_path / "key")
        assert "key holds no token: byte 6 is no UTF-8" in said
        said = refusal(*command, "--token-file", tmp_path / "two")
        assert "a token is one line of printable ASCII" in said
    assert "write 256MB" in refusal(*base, "--snapshot", "much")


def test_sizes_reach_the_hub_and_open_metrics_are_warned_of(
    refusal, monkeypatch, tmp_path: Path, caplog
) -> None:
    given = []

    def stop(*arguments):
        given.extend(arguments)
        raise ConfigError("so far")

    monkeypatch.setattr("thinwire.hub.server.HubServer", stop)
    torch.save({"w": torch.zeros(3)}, tmp_path / "model.pt")
    base = ["hub", "--model-from", tmp_path / "model.pt", "--state", tmp_path / "state"]
    with caplog.at_level(logging.WARNING, "thinwire.hub"):
        assert "so far" in refusal(*base, "--metrics", "127.0.0.1:9")
        assert caplog.text == ""
        sizes = ["--snapshot", "300MB", "--memory", "1MiB"]
        assert "so far" in refusal(*base, *sizes, "--metrics", "0.0.0.0:9")
        assert "whoever reaches 0.0.0.0:9 reads workers' names" in caplog.text
    plain, sized = given[:5], given[5:]
    assert (plain[0].exchange.downlink.memory, plain[4].snapshot) == (1 << 26, 1 << 30)
    assert (sized[0].exchange.downlink.memory, sized[4].snapshot) == (1 << 20, 300_000_000)


def test_a_hub_says_that_it_compiles_before_it_listens(monkeypatch, caplog) -> None:
    from thinwire.kernels import cpu

    warmed = []
    monkeypatch.setattr(cpu, "warm", lambda: warmed.append(1))
    with caplog.at_level(logging.INFO, "thinwire.hub"):
        for compiled, words in ((3, ""), (2, "compiling kernels, once on this machine")):
            found = {"compiled": compiled, "kernels": 3}
            monkeypatch.setattr(DOCTOR, "examine_kernels", lambda warm, found=found: found)
            HUB.warm()
            assert words in caplog.text
            assert bool(caplog.text) == bool(words)
    assert warmed == [1, 1]
