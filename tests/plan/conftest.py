import os

import pytest


@pytest.fixture
def jobs(monkeypatch):
    """Lets worker processes import `plan_jobs`, and names a job of it."""
    here = os.path.dirname(__file__)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    return "plan_jobs:{}".format
