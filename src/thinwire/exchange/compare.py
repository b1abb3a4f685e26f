"""Replicas that must hold the same bits: hashed by every rank, compared at rank 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from hashlib import sha256

import torch
from torch import Tensor

from thinwire import host
from thinwire.errors import DivergedError
from thinwire.exchange.agree import HELLO_BOUND, Said, decide
from thinwire.exchange.base import Here
from thinwire.flat import Spans
from thinwire.transport.base import Answer, Ask
from thinwire.wire.frame import WATCH_PART

DIGEST = 16
"""Hexadecimal digits of a piece's hash."""
Held = dict[str, tuple[Tensor, Spans]]
"""What other ranks must hold to the same bits, by name, and the tensors it is laid out as."""


def compare(held: Held, here: Here) -> Generator[Ask, Answer, None]:
    """Raises, on every rank, if what one holds under a name differs from what another does.

    Price: 2 steps; each worker sends 16 bytes a tensor and hears about a hundred.

    Args:
        held: of this worker.
        here: where it stands, after as many rounds as `here.round`.

    Raises:
        DivergedError: it names the ranks that differ from most, and the first tensor.
    """
    own = {name: digests(tensor, spans) for name, (tensor, spans) in held.items()}
    at = here.address(here.rank, WATCH_PART)
    verdict = yield from decide({"held": own}, first_difference, at, here.N, HELLO_BOUND)
    if verdict["ranks"]:
        raise DivergedError(verdict["ranks"], _named(verdict, held), here.round)


def digests(tensor: Tensor, spans: Spans) -> str:
    """Returns the hashes of the tensors of a flat vector, one after another.

    Args:
        tensor: (d,) of any dtype, laid out as the spans say; another length is hashed whole.
        spans: names and sizes.
    """
    flat = host.bring(tensor).contiguous()
    sizes = list(spans.sizes) if len(flat) == spans.d else [len(flat)]
    pieces = torch.split(flat, sizes)
    return "".join(sha256(piece.numpy().data).hexdigest()[:DIGEST] for piece in pieces)


def first_difference(heard: list[Said]) -> Said:
    """Returns the ranks that differ from most, under which name, and in which piece.

    Args:
        heard: of each rank, in rank order: its digests by name.

    Example:
        >>> first_difference([{"held": {"x": d * 16}} for d in "aba"])
        {'ranks': [1], 'name': 'x', 'piece': 0}
        >>> first_difference([{"held": {"x": "a" * 16}}, {"held": {"y": "b" * 16}}])
        {'ranks': []}
    """
    held = [said["held"] if isinstance(said.get("held"), dict) else {} for said in heard]
    for name in dict.fromkeys(name for own in held for name in own):
        told = {rank: str(own[name]) for rank, own in enumerate(held) if name in own}
        (usual, _), *others = Counter(told.values()).most_common()
        if others:
            ranks = [rank for rank, digest in told.items() if digest != usual]
            a, b = usual, told[ranks[0]]
            pieces = range(0, max(len(a), len(b)), DIGEST)
            at = next(n for n in pieces if a[n : n + DIGEST] != b[n : n + DIGEST])
            return {"ranks": ranks, "name": name, "piece": at // DIGEST}
    return {"ranks": []}


def _named(verdict: Said, held: Held) -> str:
    name, piece = verdict["name"], verdict["piece"]
    spans = held[name][1] if name in held else Spans((), ())
    if piece < len(spans.names) and len(held[name][0]) == spans.d:
        return f"tensor {spans.names[piece]!r} of the {name}"
    return f"the {name}"
