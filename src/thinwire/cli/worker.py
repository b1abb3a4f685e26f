"""One worker of a gang: `python -m thinwire.cli.worker`, started by `gang.Gang` alone."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

Say = Callable[..., None]
"""`say(event, **message)` tells the parent."""

LOST_ANOTHER = ("PeerLost", "RoundTimeout", "TransportError", "gloo")
"""Signs of an error that only tells of another worker's end."""


def main() -> None:
    """Takes a job from standard input, does it, and says how it ended."""
    # The parent ends the gang: a signal of the terminal is its business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = json.loads(os.fdopen(os.dup(0), "rb", buffering=0).readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()

    def say(event: str, **message: Any) -> None:
        line = json.dumps({"event": event, **message}).encode() + b"\n"
        while line:
            line = line[os.write(job["say"], line) :]

    code = 1
    try:
        _work(job, say)
        code = 0
        say("done")
    except BaseException as error:
        traceback.print_exc()
        text = str(error).strip()
        lost_another = any(sign in f"{type(error).__name__} {text}" for sign in LOST_ANOTHER)
        # torch puts its own stack after the first line.
        first = (text.splitlines() or [""])[0]
        say("error", error=f"{type(error).__name__}: {first}", lost_another=lost_another)
    sys.stderr.flush()
    # Nothing is left to tidy after a job, and after an error the others may be gone already:
    # leaving the group in order could wait for them.
    os._exit(code)


def greet(rank: int, N: int, args: dict[str, Any], say: Say) -> None:
    """Says hello: the least job a gang can have."""
    say("hello", rank=rank, N=N, **args)


def _work(job: dict[str, Any], say: Say) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, N = job["rank"], job["N"]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job['group']}",
        rank=rank,
        world_size=N,
        timeout=timedelta(seconds=job["timeout"]),
    )
    module, _, name = job["target"].partition(":")
    getattr(importlib.import_module(module), name)(rank, N, job["args"], say)
    dist.barrier()  # no rank leaves while another still talks
    gc.collect()
    dist.destroy_process_group()


def _leave_with_parent() -> None:
    # The parent writes no more: this read ends when the parent does.
    while os.read(0, 1):
        pass
    os._exit(3)


if __name__ == "__main__":
    main()
