"""Over torchft: workers of other settings are refused alone, and the rest end alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from thinwire.cli.gang import environment
from thinwire.elastic import Lighthouse

PROGRAM = Path(__file__).parent / "elastic_program.py"


@pytest.mark.network
def test_a_worker_of_other_settings_is_refused_and_the_others_end_in_the_same_bits() -> None:
    with Lighthouse(min_replicas=3, wait=10.0, bind="127.0.0.1:0") as lighthouse:
        address = f"http://127.0.0.1:{lighthouse.address.rpartition(':')[2]}"
        workers = [
            subprocess.Popen(
                [sys.executable, PROGRAM, address, f"w{n}", str(2 if n < 3 else 4), "6"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**environment(), "RUST_LOG": "off"},
            )
            for n in range(4)
        ]  # fmt: skip
        try:
            ends = [worker.communicate(timeout=120) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    digests = {out.strip() for out, _ in ends[:3]}
    assert [worker.returncode for worker in workers[:3]] == [0, 0, 0], ends
    assert len(digests) == 1
    assert digests.pop().startswith("digest")
    assert workers[3].returncode == 1
    assert "differs from rank" in ends[3][1]
    assert "H: 4 against 2" in ends[3][1]
