"""What the ranks tell each other of their snapshots, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from thinwire.errors import ConfigError, SnapshotError, ThinwireError
from thinwire.exchange.agree import Said
from thinwire.shell import LocalSGD
from thinwire.snapshots.sets import File, complete
from thinwire.transport.base import Answer, Ask

T = TypeVar("T")
Talk = Generator[Ask, Answer, T]


def together(optimizer: LocalSGD, act: Callable[[], T]) -> Talk[T]:
    """Returns what `act` does here; where it fails on any rank, every rank raises that."""
    done, problem = None, None
    try:
        done = act()
    except Exception as error:
        problem = error
    said = {} if problem is None else {
        "problem": f"{problem}"[:2000] or type(problem).__name__,
        "config": isinstance(problem, ValueError),
    }  # fmt: skip
    verdict = yield from optimizer.consult(said, first_problem, 0)
    if verdict["problem"] is not None:
        if isinstance(problem, ThinwireError):
            raise problem
        kind = ConfigError if verdict["config"] else SnapshotError
        raise kind(verdict["problem"]) from problem
    return done  # type: ignore[return-value]


def one_job(heard: list[Said]) -> Said:
    """Returns the name of this job, and the jobs that some rank knows to be dead."""
    return {"job": heard[0]["job"], "dead": [said["dead"] for said in heard if said.get("dead")]}


def first_problem(heard: list[Said]) -> Said:
    """Returns the problem of the lowest rank that has one."""
    for rank, said in enumerate(heard):
        if "problem" in said:
            config = bool(said.get("config"))
            return {"problem": f"rank {rank}: {said['problem']}", "config": config}
    return {"problem": None}


def weigh(heard: list[Said]) -> Said:
    """Returns whether to stop, the newest step that all have on the disk, and what went wrong."""
    troubles = [
        f"rank {rank}: {said.get('trouble') or said.get('problem')}"
        for rank, said in enumerate(heard)
        if said.get("trouble") or "problem" in said
    ]
    return {
        "stop": any(said.get("stop") for said in heard),
        "durable": min(said.get("durable", -1) for said in heard),
        "trouble": troubles[0] if troubles else None,
    }


def choose(heard: list[Said]) -> Said:
    """Returns the set that all ranks take up, or why there is none that they can."""
    verdict: Said = {"error": None, "note": None, "take": None, "complete": []}
    problems = [f"rank {r}: {said['problem']}" for r, said in enumerate(heard) if "problem" in said]
    if problems:
        return {**verdict, "error": problems[0]}
    seen = [[File(*file) for file in said["seen"]] for said in heard]
    broken = sorted({name for said in heard for name in said["broken"]})
    sets = complete(seen)
    steps = {file.step for files in seen for file in files}
    cut = f"cut short or altered: {', '.join(broken[:4])}. " if broken else ""
    if sets:
        newer = sorted(step for step in steps if step > sets[0][0])
        skipped = f"not on every rank: steps {newer}. " if newer else ""
        note = f"{cut}{skipped}Going back to step {sets[0][0]}" if cut or skipped else None
        own = [step for step, N in sets if len(heard) == N]
        return {**verdict, "take": sets[0], "complete": sorted(own), "note": note}
    if broken or len(steps) > 1:
        lacking = [rank for rank, files in enumerate(seen) if not files]
        missing = f"ranks {lacking} see no snapshot of theirs. " if lacking else ""
        return {**verdict, "error": (
            f"there are snapshots, and none is complete. {cut}{missing}Bring the files of all "
            "ranks together in this folder, or start a new run in another"
        )}  # fmt: skip
    if steps:
        verdict["note"] = "the first snapshot was never complete; starting from the beginning"
    return verdict
