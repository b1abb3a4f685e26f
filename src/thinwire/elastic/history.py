"""Which try of each round stands, and what a worker said in those it took part in.

A round may be tried more than once, each time by another generation of the group. One try of it
stands in the end. What a worker said in a try is off its residual exactly where that try stands:
so an update counts once, whatever broke in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from thinwire.errors import FrameError
from thinwire.exchange import Memory
from thinwire.ledger import Entry, Ledger

Generation = tuple[int, int]
"""A number that grows from quorum to quorum, and a fingerprint of who met in it."""


@dataclass(frozen=True)
class Reign:
    """Rounds in a row that the same workers of one generation decided.

    Args:
        first: the first of them.
        generation: whose.
        names: the workers whose updates are in them.
    """

    first: int
    generation: Generation
    names: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """Whose try of each round stands.

    Args:
        round: rounds done.
        reigns: who decided them, in order.
        stamp: the number of the last generation that met on this ground.

    Example:
        >>> h = History().after((1, 7), ("a", "b")).after((1, 7), ("a", "b")).after((3, 9), ("a",))
        >>> [h.decided(round) for round in range(4)]
        [(1, 7), (1, 7), (3, 9), None]
        >>> h.names(1), h.names(2)
        (('a', 'b'), ('a',))
        >>> h.last_of("b"), h.last_of("a"), h.last_of("c")
        (1, 2, -1)
    """

    round: int = 0
    reigns: tuple[Reign, ...] = ()
    stamp: int = 0

    @property
    def last(self) -> Generation | None:
        """Who decided the last round."""
        return self.reigns[-1].generation if self.reigns else None

    def decided(self, round: int) -> Generation | None:
        """Returns whose try of that round stands; None where nobody's does yet."""
        reign = self._reign(round)
        return None if reign is None else reign.generation

    def names(self, round: int) -> tuple[str, ...]:
        """Returns whose updates are in that round, in the order of their ranks in it."""
        reign = self._reign(round)
        return () if reign is None else reign.names

    def last_of(self, name: str) -> int:
        """Returns the last round in which that worker's update is counted, or -1."""
        end = self.round
        for reign in reversed(self.reigns):
            if name in reign.names:
                return end - 1
            end = reign.first
        return -1

    def _reign(self, round: int) -> Reign | None:
        if not 0 <= round < self.round:
            return None
        return next((r for r in reversed(self.reigns) if r.first <= round), None)

    def after(self, generation: Generation, names: tuple[str, ...]) -> History:
        """Returns the history with one round more."""
        reigns, reign = self.reigns, Reign(self.round, generation, names)
        # Who joined within a generation counts from the next round on.
        if not reigns or replace(reigns[-1], first=self.round) != reign:
            reigns = (*reigns, reign)
        return History(self.round + 1, reigns, max(self.stamp, generation[0]))

    def to_json(self) -> dict[str, Any]:
        """Returns the history as plain data."""
        reigns = [[r.first, *r.generation, list(r.names)] for r in self.reigns]
        return {"round": self.round, "reigns": reigns, "stamp": self.stamp}

    @staticmethod
    def from_json(data: Any) -> History:
        """Returns what `to_json` wrote.

        Raises:
            FrameError: it did not write this.
        """
        try:
            reigns = tuple(
                Reign(int(first), (int(number), int(print_)), tuple(str(n) for n in names))
                for first, number, print_, names in data["reigns"]
            )
            return History(int(data["round"]), reigns, int(data["stamp"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FrameError(f"{str(data)[:80]} is no history of rounds") from error


@dataclass(frozen=True, eq=False)
class Told:
    """What this worker said in one try of a round, kept until nobody can doubt which try stands.

    Args:
        round: the round number.
        generation: whose try.
        said: (d,) float32, C(u); None where there is no residual to take it from.
        entry: what the try adds to the books, where any are kept.
        counted: whether it is off the residual.
    """

    round: int
    generation: Generation
    said: Tensor | None
    entry: Entry | None
    counted: bool = False


@dataclass(frozen=True, eq=False)
class Standing:
    """Where one worker stands among the tries of rounds.

    Args:
        history: which tries stand, as far as it knows.
        told: what it said in the last round that stands, and in tries since.
    """

    history: History = field(default_factory=History)
    told: tuple[Told, ...] = ()

    def tell(self, told: Told) -> Standing:
        """Returns the standing of a worker that has said this and not heard whether it stands."""
        return replace(self, told=(*self.told, told))

    def commit(self, generation: Generation, names: tuple[str, ...]) -> Standing:
        """Returns the standing after that generation's try of the next round stands."""
        round = self.history.round
        told = tuple(
            replace(t, counted=t.generation == generation) for t in self.told if t.round == round
        )
        return Standing(self.history.after(generation, names), told)

    def move(self, to: History, mem: Memory, books: Ledger | None) -> tuple[Standing, Memory]:
        """Returns the standing and the memory of a worker that goes on from others' history.

        What it said in tries that stand there comes off its residual; what it said in tries that
        do not goes back on.

        Args:
            to: the others' history.
            mem: holds "residual" where feedback is on; all that is not counted is in it.
            books: its own, where it keeps any.
        """
        residual, told = mem.get("residual"), []
        for t in self.told:
            stands = to.decided(t.round) == t.generation
            if stands != t.counted:
                sign = 1 if stands else -1
                if residual is not None and t.said is not None:
                    residual = residual - sign * t.said
                if books is not None and t.entry is not None:
                    books.book(_settled(t.entry, residual is not None), sign)
            told.append(replace(t, counted=stands))
        mem = mem if residual is None else {**mem, "residual": residual}
        return Standing(to, tuple(told)), mem


def _settled(entry: Entry, owed: bool) -> Entry:
    """Returns what a try adds to the books once its update is in them, owed or forgotten."""
    nothing = entry.updates * 0
    return Entry(nothing, entry.said, nothing if owed else entry.forgotten - entry.updates)
