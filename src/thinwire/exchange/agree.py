"""Before the first round: all ranks agree on everything, or all raise the same error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

from isal.isal_zlib import crc32
from torch import Tensor

from thinwire import host
from thinwire.errors import ConfigError, FrameError
from thinwire.host import Bytes
from thinwire.transport.base import Answer, Ask, Post, Take, turn
from thinwire.wire.body import Reader
from thinwire.wire.frame import HEADER, Address, Kind, seal, unseal

Said = dict[str, Any]
"""What a worker says to rank 0, or hears from it, as JSON."""
ROOT = 0
SHORT = 1 << 12
"""The most bytes of a word between rounds."""
HELLO_BOUND = 1 << 26
"""A hello names every tensor; this allows about half a million of them."""


def hello(
    version: str, settings: dict[str, Any], tensors: list[list[str]], start: Tensor
) -> dict[str, Any]:
    """Returns what a worker says of itself before the first round.

    Args:
        version: of thinwire.
        settings: as JSON.
        tensors: name, shape, dtype and part of each, in order.
        start: (d,) float32, its parameters.
    """
    return {
        "thinwire": version,
        "settings": settings,
        "tensors": tensors,
        "start": hashlib.sha256(host.bring(start).numpy().data).hexdigest(),
    }


def agree(own: dict[str, Any], rank: int, N: int) -> Generator[Ask, Answer, tuple[int, bool]]:
    """Compares all hellos at rank 0 and returns (run fingerprint, whether starts are equal).

    Args:
        own: this worker's `hello`, or {"problem": text} where it could not be built.
        rank: this worker.
        N: workers in all.

    Raises:
        ConfigError: on every rank alike, naming both sides.

    Price: 2 steps; each worker sends one hello and hears one verdict.
    """
    verdict = yield from decide(own, _judged, Address(0, 0, rank), N, HELLO_BOUND)
    if not _is_sound(verdict):
        raise FrameError(f"frame from rank {ROOT}, before round 0: its verdict cannot be read")
    if verdict["error"] is not None:
        raise ConfigError(verdict["error"])
    return verdict["run"], verdict["equal"]


def decide(
    own: Said, judge: Callable[[list[Said]], Said], at: Address, N: int, bound: int = SHORT
) -> Generator[Ask, Answer, Said]:
    """Says this to rank 0, and returns what rank 0 makes of what all said: the same on every rank.

    Args:
        own: what this worker says, as JSON.
        judge: rank 0's; is handed what each rank said, in rank order, {"problem": text} where
            that cannot be read.
        at: this worker's address.
        N: workers in all.
        bound: the most bytes anybody says.

    Raises:
        FrameError: rank 0's answer cannot be read.

    Price: 2 steps; each worker sends one short frame and hears one.
    """
    said, root = _sealed(Kind.HELLO, own, at), replace(at, rank=ROOT)
    if at.rank == ROOT:
        others = range(1, N)
        frames = yield from turn((), tuple(Take(other, bound) for other in others))
        # Its own words are read back, too: JSON knows no tuple, and would tell it from a list.
        heard = [_read(f, replace(at, rank=r)) for r, f in enumerate([said, *frames])]
        answer = _sealed(Kind.VERDICT, judge(heard), root)
        yield from turn(tuple(Post(other, answer, bound) for other in others))
    else:
        yield from turn((Post(ROOT, said, bound),))
        (answer,) = yield from turn(takes=(Take(ROOT, bound),))
    _, body = unseal(answer, root, Kind.VERDICT)
    try:
        verdict = json.loads(bytes(body))
    except (ValueError, RecursionError):
        verdict = None
    if not isinstance(verdict, dict):
        where = f"round {at.round}" if at.part else "before round 0"
        raise FrameError(f"frame from rank {ROOT}, {where}: its verdict cannot be read")
    return verdict


def judge(hellos: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the verdict on the hellos of all ranks, in rank order.

    Example:
        >>> judge([{"settings": {"H": 4}}, {"settings": {"H": 8}}])["error"]
        'rank 1 differs from rank 0 in H: 8 against 4; all ranks must be given the same'
    """
    problems = [f"rank {r}: {h['problem']}" for r, h in enumerate(hellos) if "problem" in h]
    differences = [difference(hellos[ROOT], h, r) for r, h in enumerate(hellos)]
    error = "; ".join(problems) or next((d for d in differences if d), None)
    agreed = {k: v for k, v in hellos[ROOT].items() if k != "start"}
    return {
        "error": error,
        "run": crc32(json.dumps(agreed, sort_keys=True).encode()),
        "equal": len({h.get("start") for h in hellos}) == 1,
    }


def difference(root: dict[str, Any], other: dict[str, Any], rank: int) -> str | None:
    """Returns the first thing in which two hellos differ, both sides named, or None."""
    head = f"rank {rank} differs from rank {ROOT} in "
    tail = "; all ranks must be given the same"
    if root.get("thinwire") != other.get("thinwire"):
        return f"{head}the version of thinwire: {other.get('thinwire')} against " + (
            f"{root.get('thinwire')}; install one version everywhere"
        )
    mine, theirs = root.get("settings", {}), other.get("settings", {})
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            return f"{head}{name}: {show(theirs.get(name))} against {show(mine.get(name))}{tail}"
    ours, its = root.get("tensors", []), other.get("tensors", [])
    for number in range(max(len(ours), len(its))):
        a, b = ((side[number : number + 1] or [None])[0] for side in (ours, its))
        if a != b:
            return f"{head}tensor {number}: {show_tensor(b)} against {show_tensor(a)}{tail}"
    return None


def show(setting: Any) -> str:
    """Returns a setting as a person would write it."""
    if isinstance(setting, dict) and len(setting) == 1:
        ((name, chosen),) = setting.items()
        if isinstance(chosen, dict):
            return f"{name}({', '.join(f'{k}={show(v)}' for k, v in chosen.items())})"
    return repr(setting)


def show_tensor(tensor: list[Any] | None) -> str:
    """Returns a tensor's name and shape as a person would write them."""
    return "none" if tensor is None else " ".join(str(part) for part in tensor)


def broadcast(
    vector: Tensor, run: int, round: int, part: int, rank: int, N: int
) -> Generator[Ask, Answer, Tensor]:
    """Returns rank 0's vector on every rank.

    Args:
        vector: (d,) float32; only rank 0's content matters, all lengths agree.
        run: the run's fingerprint.
        round: the round number.
        part: which conversation of that round.
        rank: this worker.
        N: workers in all.

    Price: 1 step; rank 0 sends (N - 1) 4d bytes.
    """
    address, bound = Address(run, round, ROOT, part), HEADER + 4 * len(vector)
    if rank == ROOT:
        frame = seal(Kind.VECTOR, address, host.bytes_of(vector))
        yield from turn(tuple(Post(other, frame, bound) for other in range(1, N)))
        return vector
    frames = yield from turn(takes=(Take(ROOT, bound),))
    _, body = unseal(frames[0], address, Kind.VECTOR)
    reader = Reader(body, f"frame from rank {ROOT}, round {round}")
    values = reader.floats(len(vector), "vector")
    reader.end()
    return values


def _sealed(kind: Kind, said: Said, at: Address) -> Bytes:
    return seal(kind, at, json.dumps(said).encode())


def _read(frame: Bytes, at: Address) -> Said:
    try:
        _, body = unseal(frame, at, Kind.HELLO)
        said = json.loads(bytes(body))
    except FrameError as error:
        return {"problem": str(error)}
    except (ValueError, RecursionError):
        return {"problem": "its hello is no JSON"}
    return said if isinstance(said, dict) else {"problem": "its hello names nothing"}


def _judged(hellos: list[Said]) -> Said:
    return judge([_checked(said) for said in hellos])


def _checked(said: Said) -> Said:
    if isinstance(said.get("problem"), str):
        return {"problem": said["problem"]}
    shapes = {"thinwire": str, "settings": dict, "tensors": list, "start": str}
    if not (
        all(isinstance(said.get(name), kind) for name, kind in shapes.items())
        and all(isinstance(t, list) and t and isinstance(t[0], str) for t in said["tensors"])
    ):
        return {"problem": "its hello lacks version, settings, tensors or start"}
    return said


def _is_sound(verdict: Said) -> bool:
    return isinstance(verdict.get("error"), str) or (
        verdict.get("error", "") is None
        and type(verdict.get("run")) is int
        and 0 <= verdict["run"] < 1 << 32
        and type(verdict.get("equal")) is bool
    )
