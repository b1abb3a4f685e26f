"""Fixtures for the kernel tests: every table, compiled before any test is timed."""

from __future__ import annotations

import pytest
import torch

from thinwire.kernels import NAMES, Kernels, use


@pytest.fixture(params=NAMES)
def table(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "gpu":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("the vectors of these tests live on the host: no interpreter is at work")
    with use(request.param) as kernels:
        return kernels


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    from thinwire.kernels import cpu

    cpu.warm()
