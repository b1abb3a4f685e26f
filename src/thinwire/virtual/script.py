"""Scripts: what all workers say in a round, sizes only, laid out as arrays for `virtual.fast`."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from thinwire.exchange import Exchange, Marsit
from thinwire.exchange.over_graph import OverGraph, Stepping
from thinwire.transport.base import Ask, Reduce
from thinwire.virtual.sizes import Sizes
from thinwire.virtual.talks import Place, sized_round

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Script:
    """All turns of all workers in one round.

    Args:
        first: (N + 1,) each worker's first turn.
        posts: (T + 1,) each turn's first post.
        to: (P,) who hears a post.
        n: (P,) its bytes.
        slot: (P,) which of the hearer's turns takes it.
        takes: (T,) frames of others that a turn takes.
        heard: (T,) their bytes.
        sums: (T,) bytes that a turn sums over all ranks, -1 where it sums none.
    """

    first: Ints
    posts: Ints
    to: Ints
    n: Ints
    slot: Ints
    takes: Ints
    heard: Ints
    sums: Ints


def repeats(exchange: Exchange, N: int, round: int) -> Hashable:
    """Returns a name of what is said in that round; rounds of one name say the same."""
    if isinstance(exchange, Marsit):
        return round % exchange.K == 0
    measures = isinstance(exchange, Stepping) and exchange.gamma is None and round == 0
    if isinstance(exchange, OverGraph) and not exchange.topology.fixed:
        period = exchange.topology.period(N)
        return measures, round if period is None else round % period
    return measures


@lru_cache(maxsize=2)
def script_of(exchange: Exchange, sizes: Sizes, N: int, round: int, seed: int) -> Script | None:
    """Returns what all N workers say in that round; None where a frame outlives the round.

    Args:
        exchange: who says what to whom.
        sizes: of the frames.
        N: workers.
        round: which round.
        seed: of the run.
    """
    first, counts, sums = array("q", [0]), array("q"), array("q")
    says, to, n = array("q"), array("q"), array("q")
    hears, source, turn_of, taken = array("q"), array("q"), array("q"), array("q")
    for rank in range(N):
        turn = -1
        for turn, ask in enumerate(_asks(exchange, Place(rank, N, round, seed, sizes))):
            posts, takes = ((), ()) if isinstance(ask, Reduce) else (ask.posts, ask.takes)
            sums.append(ask.vector.nbytes if isinstance(ask, Reduce) else -1)
            away = [post for post in posts if post.to != rank]
            says.extend([rank] * len(away))
            to.extend([post.to for post in away])
            n.extend([len(post.frame) for post in away])
            counts.append(len(away))
            heard = [take.source for take in takes if take.source != rank]
            hears.extend([rank] * len(heard))
            source.extend(heard)
            turn_of.extend([turn] * len(heard))
            taken.append(len(heard))
        first.append(first[-1] + turn + 1)
    # What one worker says to another is taken in that order.
    said, heard_by = np.lexsort((says, to)), np.lexsort((source, hears))
    for ours, theirs in ((says, source), (to, hears)):
        if not np.array_equal(_ints(ours)[said], _ints(theirs)[heard_by]):
            return None
    slot = np.zeros(len(to), np.int64)
    slot[said] = _ints(turn_of)[heard_by]
    starts = np.concatenate([[0], np.cumsum(_ints(counts))])
    bytes_of = np.zeros(len(sums), np.int64)
    np.add.at(bytes_of, _ints(first)[_ints(to)] + slot, _ints(n))
    arrays = (_ints(to), _ints(n), slot, _ints(taken), bytes_of, _ints(sums))
    return Script(_ints(first), starts, *arrays)


def _ints(values: array[int]) -> Ints:
    return np.array(values, np.int64)


def _asks(exchange: Exchange, at: Place) -> Iterator[Ask]:
    talk = sized_round(exchange, at)
    try:
        ask = next(talk)
        while True:
            yield ask
            # What a frame of a size says, no talk of sizes looks at.
            ask = talk.send([])
    except StopIteration:
        return
