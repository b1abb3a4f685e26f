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
        spans = held[verdict["name"]][1] if verdict["name"] in held else here.spans
        raise DivergedError(verdict["ranks"], _named(verdict, spans), here.round)


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
    """Returns the ranks that differ from most, under which name, and in which of its pieces.

    Args:
        heard: of each rank, in rank order: its digests by name.

    Example:
        >>> first_difference([{"held": {"x": d * 16}} for d in "aba"])
        {'ranks': [1], 'name': 'x', 'piece': 0, 'pieces': 1}
        >>> first_difference([{"held": {"x": "a" * 16}}, {"held": {"y": "b" * 16}}])
        {'ranks': []}
    """
    held = [said["held"] if isinstance(said.get("held"), dict) else {} for said in heard]
    for name in dict.fromkeys(name for own in held for name in own):
        told = {rank: str(own[name]) for rank, own in enumerate(held) if name in own}
        (usual, many), *others = Counter(told.values()).most_common()
        if others:
            most = 2 * many > len(told)
            ranks = [rank for rank, digest in told.items() if digest != usual or not most]
            other = next(digest for digest in told.values() if digest != usual)
            pieces = range(0, max(len(usual), len(other)), DIGEST)
            at = next(n for n in pieces if usual[n : n + DIGEST] != other[n : n + DIGEST])
            piece = at // DIGEST
            return {"ranks": ranks, "name": name, "piece": piece, "pieces": len(pieces)}
    return {"ranks": []}


def _named(verdict: Said, spans: Spans) -> str:
    name, names = verdict["name"], spans.names
    if verdict["pieces"] != len(names) or len(names) == 0:
        return f"the {name}"
    return f"tensor {names[verdict['piece']]!r} of the {name}"
