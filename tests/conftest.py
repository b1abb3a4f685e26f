"""One thread: these tests say many short vectors, where a team of threads only waits.

And where there is no CUDA device, Triton's interpreter, which must be asked for before Triton is.
A program started in the background is deaf to Ctrl-C, and so is all that it starts: tests press it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
