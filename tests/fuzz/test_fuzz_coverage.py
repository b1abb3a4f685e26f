"""The coverage-guided fuzzer runs for a moment, and finds a fault that is planted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("fuzz_decoders.py")


def fuzz(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("atheris")
    return subprocess.run(
        [sys.executable, str(PROGRAM), "-timeout=20", *options],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
def test_a_short_run_of_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    done = fuzz(tmp_path, "-runs=20000", "-max_total_time=20")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["disagree", "raise"])
def test_the_fuzzer_finds_a_planted_fault(tmp_path: Path, fault: str) -> None:
    done = fuzz(tmp_path, "-runs=20000", "-max_total_time=20", f"--plant={fault}")
    assert done.returncode != 0
    said = "AssertionError" if fault == "disagree" else "IndexError: planted"
    assert said in done.stdout + done.stderr
