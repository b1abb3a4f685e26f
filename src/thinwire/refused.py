"""A round that holds a NaN or an infinity: what all ranks do about it, alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinwire import flat
from thinwire.errors import ConfigError, NonFiniteError
from thinwire.exchange import Exchange, Here
from thinwire.exchange.agree import Said, decide
from thinwire.round import RoundState
from thinwire.transport.base import Answer, Ask
from thinwire.watch import Watch
from thinwire.wire.frame import WATCH_PART

LOG = logging.getLogger("thinwire")
IN_A_ROW = 10
"""Rounds that may be refused one after another."""


@dataclass(frozen=True, eq=False)
class Refused:
    """A round that all ranks refused alike; nothing of it was applied.

    Args:
        error: why.
        began: the state before it.
        in_a_row: rounds refused one after another, this one among them.
        here: where this worker stands.
        hold: holds it again without these ranks and returns the state after it; None where it
            cannot help.
    """

    error: NonFiniteError
    began: RoundState
    in_a_row: int
    here: Here
    hold: Callable[[tuple[int, ...]], Generator[Ask, Answer, RoundState]] | None

    def go_on(
        self, watch: Watch, inner: torch.optim.Optimizer, params: list[Tensor]
    ) -> Generator[Ask, Answer, tuple[RoundState, tuple[int, ...]]]:
        """Returns the state to go on from, and without whom the round was held, if it was.

        Args:
            watch: what to do.
            inner: the inner optimizer, which forgets what is not finite in its state.
            params: this worker's; those of a dropped worker are put back to the anchor.

        Raises:
            NonFiniteError: that is what to do, or it was done in vain too often.
        """
        if watch.nonfinite == "raise" or self.in_a_row > IN_A_ROW:
            raise self.error
        here, began = self.here, self.began
        ranks = yield from culprits(self.error, here)
        anew = forget_nonfinite(inner)
        held = self.hold if watch.nonfinite == "drop" and 0 < len(ranks) < here.N else None
        if here.rank == 0 or here.rank in ranks:
            LOG.warning(
                "rank %d: %s. The round is %s; the inner optimizer starts anew for %d tensors",
                here.rank, str(self.error).partition(". ")[0],
                f"held without ranks {list(ranks)}" if held else "skipped", anew,
            )  # fmt: skip
        if held is not None:
            if here.rank in ranks:
                flat.write(began.anchor, params)
            try:
                state = yield from held(ranks)
                return state, ranks
            except NonFiniteError as again:
                LOG.warning("rank %d: %s. The round is skipped", here.rank, again)
        return replace(began, round=began.round + 1), ()


def check_policy(watch: Watch, exchange: Exchange) -> None:
    """Raises a ConfigError where ranks of this exchange cannot do alike what is to be done."""
    policy = watch.nonfinite
    if policy != "raise" and not exchange.replicates:
        raise ConfigError(
            f"nonfinite={policy!r} needs an exchange in which all workers hear of a NaN in the "
            f"same round, such as Server() or Ring(); with {exchange!r} use 'raise'"
        )
    if policy == "drop" and not exchange.sits_out:
        raise ConfigError(
            f"{exchange!r} cannot hold a round without some workers; use nonfinite='skip' or "
            "'raise', or Server(), Gather(), Ring() or AllReduce()"
        )


def culprits(error: NonFiniteError, here: Here) -> Generator[Ask, Answer, tuple[int, ...]]:
    """Returns the ranks whose values are not finite, the same on all; none where it is the sum.

    Price: 2 steps of less than a hundred bytes, and only then.

    Args:
        error: that every rank raised in this round.
        here: where this worker stands.
    """
    own = {"ranks": sorted({rank for rank, _ in error.found if rank >= 0})}
    at = here.address(here.rank, WATCH_PART)
    verdict = yield from decide(own, _all_named, at, here.N, 1 << 20)
    return tuple(verdict["ranks"])


def _all_named(heard: list[Said]) -> Said:
    return {"ranks": sorted({rank for said in heard for rank in said.get("ranks", [])})}


def forget_nonfinite(inner: torch.optim.Optimizer) -> int:
    """Lets an inner optimizer start anew for the tensors in whose state something is not finite.

    Args:
        inner: its momenta of a step with a NaN would make every later one NaN.

    Returns:
        How many tensors.
    """
    broken = [
        p
        for p, state in inner.state.items()
        if not all(
            bool(v.isfinite().all())
            for v in state.values()
            if isinstance(v, torch.Tensor) and v.is_floating_point()
        )
    ]
    for p in broken:
        del inner.state[p]
    return len(broken)
