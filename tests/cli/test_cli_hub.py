"""`thinwire demo-hub` ends with an equal ledger; `hub-status` says what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from thinwire.cli.hub_status import histogram, table


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
