"""Over torchft: who is refused is refused alone, and who waits for a quorum can be stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
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


@pytest.mark.network
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -2), (signal.SIGTERM, -15)])
def test_a_worker_that_waits_for_a_quorum_says_so_and_ends_when_it_is_told(number, code) -> None:
    with Lighthouse(min_replicas=3, wait=10.0, bind="127.0.0.1:0") as lighthouse:
        address = f"http://127.0.0.1:{lighthouse.address.rpartition(':')[2]}"
        alone = subprocess.Popen(
            [sys.executable, PROGRAM, address, "w0", "2", "6"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**environment(), "RUST_LOG": "off"},
        )  # fmt: skip
        try:
            assert alone.stderr is not None
            said = next(line for line in alone.stderr if "no quorum of 3 yet; waiting" in line)
            assert said.startswith("w0:")
            alone.send_signal(number)
            told = time.monotonic()
            _, left = alone.communicate(timeout=30)
            assert time.monotonic() - told < 10
        finally:
            alone.kill()
            alone.wait()
    assert alone.returncode == code, left
    assert ("KeyboardInterrupt" in left) == (number == signal.SIGINT), left
