"""The one switch that may rewrite golden files: `pytest tests/golden --rewrite-golden`."""

from __future__ import annotations

import pytest

collect_ignore = ["conftest.py"]  # Several conftests cannot all be looked through for doctests.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        default=False,
        help="write tests/golden/*.bin anew; only with a new version of the wire format",
    )


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    # Where this folder is not named on the command line the option is not known yet: then no.
    return bool(request.config.getoption("--rewrite-golden", default=False))
