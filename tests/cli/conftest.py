from pathlib import Path

import pytest


@pytest.fixture
def jobs(monkeypatch):
    """Lets worker processes import `gang_jobs`, and names a job of it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return "gang_jobs:{}".format
