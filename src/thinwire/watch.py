"""What is watched while rounds go on: values not finite, replicas that part, late rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from thinwire.value import Value, in_range, of_kind, one_of, whole

FEWEST = 5
"""Rounds that must be known before any is late."""
WINDOW = 64
"""Of the last so many rounds is the usual time taken."""
NORMAL = 1.4826
"""The median distance from the median, times this, is a normal law's standard deviation."""


@dataclass(frozen=True, repr=False)
class Deadline(Value):
    """When a round is late: after the median of the last rounds and so many deviations.

    A late round is not given up: the log names whom this rank waits for. Gloo breaks every
    connection of a group where a wait of it expires, so only `hard` ends one, by an error.

    Args:
        deviations: k. A deviation is 1.4826 times the median distance from the median, which one
            straggler does not move.
        least: seconds; no round is late sooner.
        hard: seconds after which a rank that has not spoken ends the run with a `RoundTimeout`;
            None leaves it to the process group's own timeout.

    Example:
        >>> Deadline(deviations=6, least=1).limit([2.0, 2.1, 1.9, 2.0, 60.0])
        2.88956
        >>> Deadline().limit([2.0]) is None
        True
    """

    deviations: float = 6.0
    least: float = 5.0
    hard: float | None = None

    def __post_init__(self) -> None:
        in_range(self, "deviations", self.deviations, 0.0, 1e6)
        in_range(self, "least", self.least, 0.0, 1e9)
        if self.hard is not None:
            in_range(self, "hard", self.hard, 1e-3, 1e9)

    def limit(self, past: Sequence[float]) -> float | None:
        """Returns the seconds after which a round is late, None while too few are known.

        Args:
            past: seconds that the last rounds took.
        """
        if len(past) < FEWEST:
            return None
        usual = median(past)
        deviation = NORMAL * median(abs(seconds - usual) for seconds in past)
        return max(self.least, round(usual + self.deviations * deviation, 6))


@dataclass(frozen=True, repr=False)
class Watch(Value):
    """What a run looks out for, and what becomes of a round that holds a NaN or an infinity.

    "raise": all ranks raise the same `NonFiniteError`, and nothing was applied.
    "skip": nobody says anything in that round. All workers return to the anchor; what they learned
    since is forgotten, what they owed stays owed.
    "drop": the round is held again without the workers named: the mean is over the others. A
    dropped worker returns to the anchor and what it learned since is forgotten; what it owed stays
    owed. Where it cannot be held, it is skipped.
    The inner optimizer forgets the state of the tensors in which that is not finite. After ten
    refused rounds in a row the error is raised all the same.

    Args:
        nonfinite: one of those.
        compare: rounds from one comparison of the replicas to the next, 0 for never; each rank
            says 16 bytes a tensor. Before a snapshot they are compared in any case.
        deadline: when a round is late.
    """

    nonfinite: Literal["raise", "skip", "drop"] = "raise"
    compare: int = 100
    deadline: Deadline = field(default_factory=Deadline)

    def __post_init__(self) -> None:
        one_of(self, "nonfinite", self.nonfinite, ("raise", "skip", "drop"))
        whole(self, "compare", self.compare, 0, 1 << 40)
        of_kind(self, "deadline", self.deadline, Deadline)
