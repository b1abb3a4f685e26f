"""The peers of bench/netlab/peers.py: each a way to train the same model on the same links.

A peer is made by a function (model, lr, settings) -> (module to call, step, close): `step()` takes
what `optimizer.step()` takes, communication in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

import thinwire as tw

Made = tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]
LIGHTHOUSE = 29600


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def ddp(model: nn.Module, said: dict[str, Any]) -> Made:
    # One bucket: PowerSGD with several crashes or hangs over Gloo.
    wrapped = DistributedDataParallel(model, bucket_cap_mb=1000)
    hook = said.get("hook")
    optimizer = sgd(model, said["lr"])
    if hook == "fp16":
        wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif hook == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=said["rank"], start_powerSGD_iter=2
        )
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif hook == "post_local_sgd":
        alone, _ = dist.new_subgroups(group_size=1)
        warm = said.get("warmup", 2)
        state = PostLocalSGDState(None, alone, warm, post_local_gradient_allreduce=False)
        wrapped.register_comm_hook(state, post_localSGD_hook)
        averager = PeriodicModelAverager(period=said["H"], warmup_steps=warm)
        optimizer = PostLocalSGDOptimizer(optimizer, averager)
    return wrapped, optimizer, lambda: None


def post_local_sgd_optimizer(model: nn.Module, said: dict[str, Any]) -> Made:
    averager = PeriodicModelAverager(period=said["H"], warmup_steps=0)
    return model, PostLocalSGDOptimizer(sgd(model, said["lr"]), averager), lambda: None


def torchft(model: nn.Module, said: dict[str, Any]) -> Made:
    from torchft.coordination import LighthouseServer
    from torchft.local_sgd import DiLoCo, LocalSGD
    from torchft.manager import Manager
    from torchft.process_group import ProcessGroupGloo

    class OnInterface(ProcessGroupGloo):  # type: ignore[misc]
        """Theirs listens where the host's name leads, which is loopback in a namespace."""

        def _create_pg(self, store: Any, rank: int, world_size: int) -> Any:
            gloo = dist.ProcessGroupGloo
            options = gloo._Options()
            options._timeout = self._timeout
            options._devices = [gloo.create_device(interface=os.environ["GLOO_SOCKET_IFNAME"])]
            group = dist.ProcessGroup(store, rank, world_size)
            group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
            backend = gloo(store, rank, world_size, options)
            backend._set_sequence_number_for_group()
            group._register_backend(
                torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend
            )
            return group

    rank, N, master = dist.get_rank(), dist.get_world_size(), os.environ["MASTER_ADDR"]
    own = f"{master.rpartition('.')[0]}.{rank + 1}" if "NETLAB_REPORT" in os.environ else master
    house = None
    if rank == 0:
        house = LighthouseServer(
            bind=f"{master}:{LIGHTHOUSE}", min_replicas=N, join_timeout_ms=1000
        )
    dist.barrier()
    store = dist.TCPStore(own, 0, is_master=True, wait_for_workers=False)
    long = timedelta(seconds=300)
    manager = Manager(
        pg=OnInterface(timeout=long),
        load_state_dict=model.load_state_dict,
        state_dict=model.state_dict,
        min_replica_size=N,
        use_async_quorum=False,
        init_sync=False,
        timeout=long,
        rank=0,
        world_size=1,
        store_addr=own,
        store_port=store.port,
        lighthouse_addr=f"http://{master}:{LIGHTHOUSE}",
        replica_id=f"peer{rank}",
        hostname=own,
    )
    inner = sgd(model, said["lr"])
    if said["method"] == "local_sgd":
        held: Any = LocalSGD(manager, model, inner, sync_every=said["H"])
    else:
        outer = torch.optim.SGD(
            model.parameters(), lr=said["outer_lr"], momentum=said["momentum"], nesterov=True
        )
        held = DiLoCo(manager, [model], inner, outer, sync_every=said["H"])
    stack = contextlib.ExitStack()
    stack.enter_context(held)

    def close(store: Any = store) -> None:  # Who holds this holds the store, which all ask.
        dist.barrier()
        stack.close()
        manager.shutdown(wait=False)
        dist.barrier()
        if house is not None:
            house.shutdown()

    return model, inner, close


def thinwire(model: nn.Module, said: dict[str, Any]) -> Made:
    C: dict[str, Any] = {
        "signtopk": lambda: tw.qsparse_local_sgd(said["H"], exchange=tw.Gather()),
        "topk4": lambda: tw.qsparse_local_sgd(
            said["H"], tw.TopK(density=0.01) >> tw.QSGD(bits=4), tw.Gather()
        ),
        "ring8": lambda: tw.qprsgd_ring(said["H"]),
        "gossip8": lambda: tw.qprsgd_gossip(said["H"]),
        "delegate": lambda: tw.vanilla(delegate=True),
    }
    preset = C[said["method"]]()
    return model, tw.LocalSGD(model, sgd(model, said["lr"]), **preset), lambda: None


KINDS = {
    "ddp": ddp,
    "post_local_sgd_optimizer": post_local_sgd_optimizer,
    "torchft": torchft,
    "thinwire": thinwire,
}

LR = 0.1
"""SGD without momentum, for all, until each peer's grid has been run: see peers.py --lr."""
HS = (8, 16, 32, 64, 128, 256, 512)
PEERS: dict[str, dict[str, Any]] = {
    "DDP": {"kind": "ddp"},
    "DDP fp16": {"kind": "ddp", "hook": "fp16"},
    **{f"DDP PowerSGD r{r}": {"kind": "ddp", "hook": "powersgd", "rank": r} for r in (1, 2, 4)},
    **{
        f"DDP post-local SGD H{H}": {"kind": "ddp", "hook": "post_local_sgd", "H": H} for H in HS
    },
    **{f"PostLocalSGDOptimizer H{H}": {"kind": "post_local_sgd_optimizer", "H": H} for H in HS},
    **{
        f"torchft LocalSGD H{H}": {"kind": "torchft", "method": "local_sgd", "H": H} for H in HS
    },
    **{
        f"torchft DiLoCo H{H}": {
            "kind": "torchft", "method": "diloco", "H": H, "outer_lr": 0.7, "momentum": 0.9,
        }
        for H in HS
    },
    **{
        f"thinwire {name} H{H}": {"kind": "thinwire", "method": name, "H": H}
        for name in ("signtopk", "topk4", "ring8", "gossip8")
        for H in (4, 8, 16, 32, 64)
    },
    "thinwire all-reduce": {"kind": "thinwire", "method": "delegate"},
}  # fmt: skip
