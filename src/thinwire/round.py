"""ONE ROUND. Read this first: everything thinwire does happens between these lines.

    params --H local steps--> params'
                 |  delta = anchor - params'                 the pseudo-gradient
                 v
             u = delta + residual                        what it has not said yet, in the exchange
                 |  compress: sparsify >> quantize
                 v
             payload --pack--> frame === exchange === frames --unpack--> payloads
                 | decode                by a transport              | mean, in rank order
                 v                                                   v
       residual = u - said                                       direction
                                                                     |  outer step
                                                         params = anchor <-

A round is a generator. It yields "send these frames, give me those" and never learns who answers:
a process group, or a loop that runs every rank in one process. So a simulation and a real run
execute the same code object, and any difference in their bits is a bug.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from thinwire import flat
from thinwire.exchange import Exchange, Here, Memory
from thinwire.outer import Outer, OuterState
from thinwire.transport.base import Answer, Ask


@dataclass(frozen=True, eq=False)
class RoundState:
    """What a worker carries from one round to the next; everything a checkpoint must hold.

    Args:
        anchor: (d,) float32, the parameters that all workers hold since the last round.
        mem: what the exchange must remember: the residual, and a master's own.
        outer: what the outer step must remember.
        round: rounds done.
    """

    anchor: Tensor
    mem: Memory
    outer: OuterState
    round: int


def one_round(
    state: RoundState, params: Sequence[Tensor], exchange: Exchange, outer: Outer, here: Here
) -> Generator[Ask, Answer, RoundState]:
    """Runs one round of one worker and returns its new state.

    Args:
        state: what the last round returned.
        params: the worker's parameters after its local steps, d entries in all; only read.
        exchange: who says what to whom.
        outer: how the anchor moves.
        here: rank, N, round, key and compressor.

    Raises:
        NonFiniteError, FrameError: the round is refused, and `state` is still whole.

    Source: Qsparse-local-SGD (arXiv 1906.02367), Algorithm 1.
    """
    delta = flat.Difference(state.anchor, params)
    direction, mem = yield from exchange.round(state.anchor, delta, state.mem, here)
    anchor, outer_state = outer.step(state.anchor, direction, state.outer)
    return RoundState(anchor, mem, outer_state, state.round + 1)
