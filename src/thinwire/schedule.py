"""H, the local steps of each round: a number, a schedule, a function or random gaps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from thinwire.errors import ConfigError
from thinwire.keys import Key
from thinwire.value import Value, whole

GAP_PART = 1 << 32
"""The draw of a round's gap is told from every draw of an operator by this part of the key."""


@dataclass(frozen=True, repr=False)
class RandomGaps(Value):
    """Each worker's own gaps, uniform on {1, ..., most}, drawn from its key of that round.

    So whoever knows the seed knows when each worker speaks, without a message.

    Args:
        most: the paper's H, the longest gap.

    Example:
        >>> [RandomGaps(8).gap(Key(seed=0, round=n, rank=2)) for n in range(6)]
        [6, 6, 1, 3, 1, 5]

    Source: Qsparse-local-SGD (arXiv 1906.02367), the experiments of Algorithm 2.
    """

    most: int = 8

    def __post_init__(self) -> None:
        whole(self, "most", self.most, 1, 1 << 20)

    def gap(self, key: Key) -> int:
        """Returns the local steps of the round that the worker of this key is in."""
        return 1 + (key.of_part(GAP_PART).words[0] * self.most >> 32)


HSchedule = int | tuple[tuple[int, int], ...] | Callable[[int], int] | RandomGaps
PROBES = (0, *(2**i for i in range(21)))
"""Rounds at which two functions are compared between ranks."""


def H_at(H: HSchedule, round: int, key: Key | None = None) -> int:
    """Returns the local steps of that round.

    Args:
        H: a number; ((first round, H), ...); a function of the round number; or `RandomGaps`.
        round: from 0.
        key: of that worker in that round; random gaps alone need it.

    Raises:
        ConfigError: a function returned something else than a whole number of at least 1.

    Example:
        >>> [H_at(((0, 1), (100, 8)), round) for round in (0, 99, 100)]
        [1, 1, 8]
    """
    if isinstance(H, int):
        return H
    if isinstance(H, RandomGaps):
        return H.most if key is None else H.gap(key)
    if isinstance(H, tuple):
        return [steps for first, steps in H if first <= round][-1]
    try:
        steps = H(round)
    except Exception as error:
        raise ConfigError(f"H({round}) failed: {type(error).__name__}: {error}") from error
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"H({round}) returned {steps!r}; it must be a whole number >= 1")
    return steps


def check_schedule(H: Any) -> None:
    """Raises a ConfigError unless H is a sound number, schedule or function."""
    if isinstance(H, RandomGaps):
        return
    if callable(H):
        H_at(H, 0)
        return
    pairs = ((0, H),) if not isinstance(H, tuple) else H
    try:
        firsts = [first for first, _ in pairs]
        sound = firsts[0] == 0 and sorted(set(firsts)) == firsts
        sound = sound and all(type(n) is int and n >= 1 for _, n in pairs)
    except (TypeError, ValueError, IndexError):
        sound = False
    if not sound:
        raise ConfigError(
            f"H={H!r}: give a whole number of at least 1, a schedule from round 0 upwards such as "
            "((0, 1), (100, 8)), or a function of the round number"
        )


def schedule_json(H: HSchedule) -> Any:
    """Returns H as plain data that two ranks can compare; a function by its values at `PROBES`."""
    if isinstance(H, int):
        return H
    if isinstance(H, RandomGaps):
        return H.to_json()
    return [list(pair) for pair in H] if isinstance(H, tuple) else [H_at(H, r) for r in PROBES]
