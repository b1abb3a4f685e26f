from pathlib import Path

import pytest


@pytest.fixture
def jobs(monkeypatch):
    """Lets worker processes import `gang_jobs`, and names a job of it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return "gang_jobs:{}".format


def alive(pid):
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
