"""The decoders run once with bounds checks compiled in, where any wrong index raises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("bounds_program.py")


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A cache of its own, since kernels with and without checks are cached under one name.
    checked = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        env={**os.environ, **checked},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_no_decoder_reads_or_writes_out_of_bounds_and_a_planted_read_is_seen(
    tmp_path: Path,
) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "no access out of bounds\n"
    planted = run(tmp_path, "plant")
    assert planted.returncode == 1
    assert "IndexError: index is out of bounds" in planted.stderr
