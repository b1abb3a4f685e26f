"""`thinwire train`: complete training runs, for now the first paper's convex one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(invoke_without_command=True)


@app.callback()
def train(context: typer.Context) -> None:
    """Train a model whole and see what the wire carried."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


@app.command()
def mnist(
    data: Annotated[Path, typer.Option(help="Folder of MNIST's four IDX files, gzipped or not.")],
    preset: Annotated[
        str,
        typer.Option(help="The method, by its preset's name."),
    ] = "qsparse_local_sgd",
    H: Annotated[
        int | None, typer.Option("--H", help="Local steps per round; 8, or 1 where the preset is.")
    ] = None,
    k: Annotated[int, typer.Option(help="Kept entries of the 7850.")] = 40,
    step_size: Annotated[float, typer.Option(help="c of the step size c a / (a + t).")] = 0.3,
    step_decay: Annotated[
        float, typer.Option(help="a of it; the paper's is about d H / k.")
    ] = 1570,
    target_error: Annotated[
        float, typer.Option(help="Stop when three evaluations in a row average at most this.")
    ] = 0.10,
    workers: Annotated[
        int, typer.Option(help="N, all in this process; torchrun sets its own.")
    ] = 15,
    batch: Annotated[int, typer.Option(help="Mini-batch of each worker.")] = 8,
    max_steps: Annotated[int, typer.Option(help="Give up after so many.")] = 2500,
    feedback: Annotated[bool, typer.Option(help="Keep what was not said and say it later.")] = True,
    seed: Annotated[int, typer.Option(help="Of shards, batches and operators.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the result here as data.")] = None,
    log: Annotated[Path | None, typer.Option(help="Write the run's JSON lines here.")] = None,
    snapshots: Annotated[
        str | None, typer.Option(help="Keep snapshots in this folder, and go on from the newest.")
    ] = None,
    every: Annotated[int, typer.Option(help="Rounds from one snapshot to the next.")] = 50,
) -> None:
    """Softmax regression in the paper's convex setting, to a target test error.

    Runs all workers in this process in lock-step, with the same frames as over a wire; under
    torchrun each process is one worker. Bytes and bits are uplink, all workers together.
    """
    import torch
    import torch.distributed as dist

    from thinwire.cli import mnist as program
    from thinwire.cli.idx import load_mnist
    from thinwire.cli.mnist_setting import Setting, usual_H
    from thinwire.cli.output import RunLog, bars, check_writable, document, size, write_json
    from thinwire.transport.gang import init_process_group

    check_writable(json)
    gang = "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ
    torch.set_num_threads(1)
    setting = Setting(
        preset=preset,
        H=usual_H(preset) if H is None else H,
        k=k,
        step_size=step_size,
        step_decay=step_decay,
        feedback=feedback,
        target_error=target_error,
        workers=int(os.environ["WORLD_SIZE"]) if gang else workers,
        batch=batch,
        max_steps=max_steps,
        seed=seed,
    )
    digits = load_mnist(data)
    if gang:
        init_process_group("gloo")
    if gang and dist.get_rank() > 0:
        program.train(setting, digits, snapshots=snapshots, every=every)
        dist.destroy_process_group()
        return
    name = f"{preset} H={setting.H}"
    compressor, exchange = setting.method
    notes = exchange.notes(compressor)
    with RunLog("train", seed, {**vars(setting), "notes": notes}, log) as lines, bars() as drawn:
        drawn.add(name, 0)

        def tell(p: program.Progress) -> None:
            lines.write("evaluation", **vars(p))
            note = f"step {p.step}, error {p.test_error:.4f}, {size(p.framed_bytes)} up"
            drawn.advance(name, note)

        result = program.train(setting, digits, tell, snapshots, every)
        lines.write("result", **result)
        outcome = "reached" if result["reached"] else "not reached"
        drawn.finish(name, f"target {setting.target_error:g} {outcome}")
    if gang:
        dist.destroy_process_group()
    bits = result["fixed_width_bits"]
    fixed = "" if bits is None else f", {bits / 1e6:.3f} Mbit in fixed width"
    typer.echo(
        f"{name}: test error {result['test_error']:.4f} ({outcome} {setting.target_error:g}) after "
        f"{result['steps']} steps, {result['rounds']} rounds; uplink of {setting.workers} workers "
        f"{size(result['framed_bytes'])} framed{fixed}; {result['seconds']:.1f} s"
    )
    if result["stopped"]:
        typer.echo(f"Told to stop: the same command goes on from {snapshots}.")
    for note in notes:
        typer.echo(f"{note}.")
    typer.echo(f"log: {lines.file}")
    if json is not None:
        write_json(json, document("train mnist", seed, [result]))
