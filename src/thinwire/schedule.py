"""H, the local steps of each round: a number, a schedule or a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thinwire.errors import ConfigError

HSchedule = int | tuple[tuple[int, int], ...] | Callable[[int], int]
PROBES = (0, *(2**i for i in range(21)))
"""Rounds at which two functions are compared between ranks."""


def H_at(H: HSchedule, round: int) -> int:
    """Returns the local steps of that round.

    Args:
        H: a number; ((first round, H), ...); or a function of the round number.
        round: from 0.

    Raises:
        ConfigError: a function returned something else than a whole number of at least 1.

    Example:
        >>> [H_at(((0, 1), (100, 8)), round) for round in (0, 99, 100)]
        [1, 1, 8]
    """
    if isinstance(H, int):
        return H
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
    return [list(pair) for pair in H] if isinstance(H, tuple) else [H_at(H, r) for r in PROBES]
