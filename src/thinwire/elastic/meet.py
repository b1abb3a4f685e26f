"""The first talk of every quorum: who is ahead, who takes part, and what the others are told."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from isal.isal_zlib import crc32
from torch import Tensor

from thinwire import host
from thinwire.elastic.history import Generation, History
from thinwire.errors import FrameError
from thinwire.exchange.agree import HELLO_BOUND, difference
from thinwire.host import Bytes
from thinwire.outer import OuterState
from thinwire.transport.base import Answer, Ask, Post, Take, turn
from thinwire.wire.body import Reader, as_bytes, as_tensor
from thinwire.wire.frame import HEADER, Address, Kind, seal, unseal

MEET_PART = 0xFFE0
"""The part in which the workers of a quorum say where they stand."""
STATE_PART = 0xFFE1
"""The part in which one that is behind is told the state whole."""
DONE_PART = 0xFFE2
"""The part in which workers tell each other that they have all of the round."""
HISTORY = 1 << 20
"""The most bytes that the history of a run may have: some ten thousand quorums."""


@dataclass(frozen=True)
class Decision:
    """What a quorum makes of its hellos; all of it come to the same.

    Args:
        generation: of this quorum: unlike any before it on this ground.
        leader: who is furthest.
        based: those that stand where the leader stands.
        members: those of them whose local steps are done.
        names: of all, in rank order.
        problems: by rank, why that worker cannot take part.
        diverged: those that stand where the leader stands, but not on the same bits.
    """

    generation: Generation
    leader: int
    based: tuple[int, ...]
    members: tuple[int, ...]
    names: tuple[str, ...]
    problems: dict[int, str]
    diverged: tuple[int, ...]


def introduced(
    own: dict[str, Any], rank: int, size: int
) -> Generator[Ask, Answer, tuple[list[dict[str, Any]], int]]:
    """Says hello to all of a quorum and returns all hellos in rank order, and their fingerprint.

    Args:
        own: this worker's hello.
        rank: this worker.
        size: of the quorum.

    Raises:
        FrameError: somebody's hello cannot be read.

    Price: 1 step; sends and receives (size - 1) hellos.
    """
    said = seal(Kind.HELLO, Address(0, 0, rank, MEET_PART), json.dumps(own).encode())
    others = [other for other in range(size) if other != rank]
    heard = yield from turn(
        tuple(Post(other, said, HELLO_BOUND) for other in others),
        tuple(Take(other, HELLO_BOUND) for other in others),
    )
    frames = dict(zip([*others, rank], [*heard, said], strict=True))
    hellos, fingerprint = [], 0
    for other in range(size):
        _, body = unseal(frames[other], Address(0, 0, other, MEET_PART), Kind.HELLO)
        hellos.append(_read(body, other))
        fingerprint = crc32(body, fingerprint)
    return hellos, fingerprint


def decide(hellos: Sequence[dict[str, Any]], fingerprint: int, N: int) -> Decision:
    """Returns what all of a quorum make of its hellos.

    The one furthest leads: the most rounds, then the latest quorum that met on its ground.

    Args:
        hellos: of all, in rank order.
        fingerprint: of the hellos.
        N: the most workers there may be.

    Example:
        >>> one = {"name": "a", "round": 3, "stamp": 2, "last": [2, 5], "start": "x", "ready": True}
        >>> late = {**one, "name": "b", "round": 2, "last": [1, 4], "start": "y"}
        >>> decision = decide([late, one, {**one, "name": "c"}], fingerprint=9, N=3)
        >>> decision.leader, decision.members, decision.generation
        (1, (1, 2), (3, 9))
    """
    order = sorted(range(len(hellos)), key=lambda r: (-hellos[r]["round"], -hellos[r]["stamp"], r))
    leader = order[0]
    lead = hellos[leader]
    problems = {}
    for rank, hello in enumerate(hellos):
        differs = hello.get("problem") or difference(lead, hello, rank)
        if differs:
            problems[rank] = differs
        elif hello["name"] in [other["name"] for other in hellos[:rank]]:
            problems[rank] = f"two workers are called {hello['name']!r}; give each its own name"
    for rank in order[N:]:
        problems.setdefault(
            rank,
            f"this quorum has {len(hellos)} workers, and Quorum(N={N}) says that there are at "
            "most that many; end this one, or give all of them a larger N",
        )
    # Before the first round starts may differ: the leader's is taken.
    same = [
        r for r, h in enumerate(hellos) if (h["round"], h["last"]) == (lead["round"], lead["last"])
    ]
    based = tuple(r for r in same if hellos[r]["start"] == lead["start"])
    diverged = tuple(r for r in same if r not in based) if lead["last"] is not None else ()
    return Decision(
        generation=(1 + max(h["stamp"] for h in hellos), fingerprint),
        leader=leader,
        based=based,
        members=tuple(r for r in based if hellos[r]["ready"]),
        names=tuple(h["name"] for h in hellos),
        problems=problems,
        diverged=diverged,
    )


def _read(body: memoryview, rank: int) -> dict[str, Any]:
    try:
        said = json.loads(bytes(body))
        kinds = {"name": str, "round": int, "stamp": int, "start": str, "ready": bool}
        if all(type(said[name]) is kind for name, kind in kinds.items()) and "last" in said:
            hello: dict[str, Any] = said
            return hello
    except (ValueError, RecursionError, TypeError, KeyError):
        pass
    raise FrameError(f"frame from rank {rank}: its hello to the quorum cannot be read")


@dataclass(frozen=True, eq=False)
class Record:
    """All that one who is behind is told.

    Args:
        history: of the rounds.
        anchor: (d,) float32.
        outer: the outer step's state.
        buffers: (b,) float32, of the model.
    """

    history: History
    anchor: Tensor
    outer: OuterState
    buffers: Tensor

    @property
    def bound(self) -> int:
        """The most bytes of its frame."""
        tensors = (self.anchor, *self.outer.values(), self.buffers)
        return HEADER + 8 + HISTORY + sum(t.numel() * t.element_size() for t in tensors)

    def seal(self, run: int, rank: int) -> bytes:
        """Returns the frame that tells it, of that rank in that run."""
        meta = json.dumps(self.history.to_json()).encode()
        tensors = (self.anchor, *(self.outer[name] for name in sorted(self.outer)), self.buffers)
        body = b"".join((len(meta).to_bytes(8, "little"), meta, *map(as_bytes, tensors)))
        return seal(Kind.VECTOR, Address(run, 0, rank, STATE_PART), body)

    def unseal(self, frame: Bytes, run: int, rank: int) -> Record:
        """Returns what such a frame tells, in the shapes of this record.

        Raises:
            FrameError: truncated, altered, or of another model.
        """
        _, body = unseal(frame, Address(run, 0, rank, STATE_PART), Kind.VECTOR)
        reader = Reader(body, f"frame from rank {rank}, its state")
        n = int.from_bytes(reader.take(8, "length"), "little")
        try:
            meta = json.loads(bytes(reader.take(n, "history")))
        except (ValueError, RecursionError):
            reader.fail("its history is no JSON")
        anchor = _like(reader, self.anchor, "anchor")
        outer = {name: _like(reader, self.outer[name], name) for name in sorted(self.outer)}
        buffers = _like(reader, self.buffers, "buffers")
        reader.end()
        return Record(History.from_json(meta), anchor, outer, buffers)


def _like(reader: Reader, like: Tensor, what: str) -> Tensor:
    if like.dtype == torch.float32:
        value = reader.floats(like.numel(), what)
    else:
        raw = as_tensor(reader.take(like.numel() * like.element_size(), what))
        value = raw.view(like.dtype)
    return host.send(value.reshape(like.shape), like.device)
