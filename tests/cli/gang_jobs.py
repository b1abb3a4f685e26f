"""Jobs that the gang tests run inside worker processes."""

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist


def threads_and_sum(rank, N, args, say):
    total = torch.tensor([float(rank)])
    dist.all_reduce(total)
    print("a print must not disturb the messages")
    say("sum", total=total.item(), threads=torch.get_num_threads(), args=args)


def rank_1_divides_by_zero(rank, N, args, say):
    if rank == 1:
        1 / 0  # noqa: B018
    dist.barrier()


def rank_1_is_killed(rank, N, args, say):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def sleep(rank, N, args, say):
    say("asleep")
    time.sleep(600)


def alive(pid):
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
