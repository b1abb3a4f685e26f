"""Fixtures for the kernel tests: both tables, compiled before any test is timed."""

from __future__ import annotations

import pytest

from thinwire.kernels import Kernels, use


@pytest.fixture(params=["reference", "cpu"])
def table(request: pytest.FixtureRequest) -> Kernels:
    with use(request.param) as kernels:
        return kernels


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    from thinwire.kernels import cpu

    cpu.warm()
