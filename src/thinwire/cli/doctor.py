"""`thinwire doctor`: what this machine has, and whether two workers on it can talk."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinwire.cli.gang import Gang
from thinwire.cli.output import bars, document, size, write_json
from thinwire.errors import ThinwireError
from thinwire.files import check_writable
from thinwire.runs import machine

if TYPE_CHECKING:
    from thinwire.cli.worker import Say

ROUNDS = 20
"""Rounds of the self-test after the first, which carries the start."""


def doctor(
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the findings as JSON.")
    ] = None,
    warm: Annotated[
        bool, typer.Option("--warm", help="Compile all kernels now, so that no run waits.")
    ] = False,
) -> None:
    """Show what this machine has, and test that two workers here can talk.

    Exits with 1 if the test fails.
    """
    check_writable(json)
    with bars() as drawn:
        drawn.add("kernels", 0)
        kernels = examine_kernels(warm)
        drawn.finish("kernels", "compiled" if warm else "examined")
        drawn.add("self-test", 0)
        tested = self_test("cpu" if kernels["compiled"] == kernels["kernels"] else "reference")
        drawn.finish("self-test", "ok" if tested["ok"] else "failed")
    findings = {"cuda": cuda(), "kernels": kernels, "self_test": tested}
    if json is not None:
        write_json(json, document("doctor", None, [findings]))
    show(findings)
    if not tested["ok"]:
        raise typer.Exit(1)


def examine_kernels(warm: bool) -> dict[str, Any]:
    """Returns which kernels are in use and how many of them are compiled on disk.

    Args:
        warm: whether to compile those that are not.
    """
    from thinwire import kernels
    from thinwire.kernels import cpu, cpu_index_decode, cpu_index_encode

    began = time.perf_counter()
    if warm:
        cpu.warm()
    seconds = time.perf_counter() - began
    compiled = {
        f"{module.__name__}.{name}": _on_disk(thing)
        for module in (cpu, cpu_index_decode, cpu_index_encode)
        for name, thing in vars(module).items()
        if hasattr(thing, "py_func") and thing.__module__ == module.__name__
    }
    return {
        "active": kernels.active().name,
        "choices": list(kernels.NAMES),
        "kernels": len(compiled),
        "compiled": sum(compiled.values()),
        "warm_seconds": seconds if warm else None,
    }


def self_test(kernels: str) -> dict[str, Any]:
    """Returns how two processes fared that trained together over loopback.

    Args:
        kernels: the table to use, of `thinwire.kernels.NAMES`.
    """
    try:
        with Gang(2, "thinwire.cli.doctor:talk", {"kernels": kernels}, timeout=30.0) as gang:
            said = {message["rank"]: message for message in gang.messages()}
    except ThinwireError as error:
        return {"ok": False, "kernels": kernels, "error": str(error), "round_trip_ms": None}
    equal = said[0]["digest"] == said[1]["digest"]
    return {
        "ok": equal,
        "kernels": kernels,
        "error": None if equal else "the two replicas ended in different bits",
        "round_trip_ms": said[0]["round_trip_ms"],
    }


def talk(rank: int, N: int, args: dict[str, Any], say: Say) -> None:
    """Trains a small model for a few rounds with different data on each rank."""
    import hashlib

    import torch

    import thinwire as tw
    from thinwire import kernels

    torch.manual_seed(rank)
    model = torch.nn.Linear(100, 10)
    with kernels.use(args["kernels"]):
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = tw.LocalSGD(model, inner, **tw.qsparse_local_sgd(H=1))
        for round in range(ROUNDS + 1):
            if round == 1:
                began = time.perf_counter()
            optimizer.zero_grad()
            model(torch.randn(8, 100)).square().mean().backward()
            optimizer.step()
        seconds = time.perf_counter() - began
    digest = hashlib.sha256(optimizer.anchor.numpy().tobytes()).hexdigest()
    say("trained", N=N, digest=digest, round_trip_ms=1000 * seconds / ROUNDS)


def cuda() -> str | None:
    """Returns the name of the first CUDA device that torch can use, or None."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def show(findings: dict[str, Any]) -> None:
    """Prints the findings, one a line."""
    from rich.console import Console
    from rich.table import Table

    from thinwire.version import __version__

    here, kernels, tested = machine(), findings["kernels"], findings["self_test"]
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim")
    lines.add_column()
    memory = here["memory_bytes"]
    lines.add_row("thinwire", __version__)
    lines.add_row("processor", f"{here['cpu']}, {here['cores']} cores")
    lines.add_row("memory", size(memory) if memory else "unknown")
    lines.add_row("platform", f"{here['platform']}, Python {here['python']}")
    lines.add_row("torch", f"{here['torch']}, CUDA: {findings['cuda'] or 'no'}")
    lines.add_row("numba", here["numba"] or "missing")
    lines.add_row(
        "kernels",
        f"{kernels['active']}; switch with `with thinwire.kernels.use(...)`: "
        f"{', '.join(kernels['choices'])}",
    )
    lines.add_row("compiled", _compiled(kernels))
    lines.add_row("self-test", _verdict(tested))
    Console(highlight=False).print(lines)


def _compiled(kernels: dict[str, Any]) -> str:
    counted = f"{kernels['compiled']} of {kernels['kernels']} on disk"
    if kernels["warm_seconds"] is not None:
        return f"{counted}; compiling or loading them took {kernels['warm_seconds']:.1f} s"
    if kernels["compiled"] < kernels["kernels"]:
        return f"{counted}; `thinwire doctor --warm` compiles the rest ahead"
    return counted


def _verdict(tested: dict[str, Any]) -> str:
    if not tested["ok"]:
        return f"FAILED: {tested['error']}"
    return (
        f"ok: 2 processes, equal bits, {tested['round_trip_ms']:.1f} ms a round "
        f"({tested['kernels']} kernels)"
    )


def _on_disk(kernel: Any) -> bool:
    # Numba has no public question for this; where its insides differ, the answer is no.
    with contextlib.suppress(AttributeError, OSError):
        return bool(kernel._cache._cache_file._load_index())
    return False
