"""Books of a run: every update is said, still owed, or booked as forgotten; nothing else.

    updates = said + residual + forgotten, summed over all workers that ever were

updates: the pseudo-gradients of its rounds. said: what its rounds moved this worker's model by.
residual: what it still owes. forgotten: what decay and resets drop, what quantization leaves out
where feedback is off, and what a worker that is gone for good had not yet said.
Among workers the sums agree and not the terms of one: in a mean each moves by what all said.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinwire import host
from thinwire.exchange import Exchange, Feedback, Gossip, Here, Memory, NoFeedback
from thinwire.exchange.base import Talk
from thinwire.flat import Vector

NOTHING = -0.0
"""The one float32 that changes no other when it is added, 0.0 and -0.0 among them."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What one round of one worker adds to its books, (d,) float64 each.

    Args:
        updates: the pseudo-gradient.
        said: what the round moved this worker's model by.
        forgotten: what is neither said nor owed any more.
    """

    updates: Tensor
    said: Tensor
    forgotten: Tensor

    @staticmethod
    def nothing(d: int) -> Entry:
        """Returns the entry of a round in which nobody said anything."""
        zero = torch.zeros(d, dtype=torch.float64, device=host.CPU)
        return Entry(zero, zero, zero)

    def with_unsaid(self, delta: Tensor) -> Entry:
        """Returns the same where an update was left out of it, since something was not finite.

        Args:
            delta: (d,) float32, the pseudo-gradient; what is not finite in it is no update.
        """
        lost = host.bring(delta).double().nan_to_num(0.0, 0.0, 0.0)
        return Entry(self.updates + lost, self.said, self.forgotten + lost)

    def after_reset(self, dropped: Memory) -> Entry:
        """Returns the same where the residual of these memories was dropped first."""
        m = dropped.get("residual")
        return self if m is None else replace(self, forgotten=self.forgotten + m.double())


class Ledger:
    """One worker's books, in float64; off unless handed to `LocalSGD`, since it costs memory.

    Attributes:
        start: (d,) the residual it began with, where it kept one from before.
        updates, said, forgotten: (d,) sums so far; 0 before the first round.

    Example:
        >>> import thinwire as tw
        >>> model = torch.nn.Linear(2, 1)
        >>> inner = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> books = Ledger()
        >>> optimizer = tw.LocalSGD(
        ...     model, inner, compressor=tw.TopK(k=1), exchange=tw.Gather(), ledger=books
        ... )
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> conservation_error([optimizer.books()]) < 1e-6
        True
    """

    def __init__(self) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self.start = self.updates = self.said = self.forgotten = zero

    def book(self, entry: Entry, sign: int = 1) -> None:
        """Adds what a round adds; with sign -1 takes back what a round that was undone had."""
        self.updates = self.updates + sign * entry.updates
        self.said = self.said + sign * entry.said
        self.forgotten = self.forgotten + sign * entry.forgotten

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the books, to go on from in another life."""
        names = ("start", "updates", "said", "forgotten")
        return {name: getattr(self, name).clone() for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes up books that `state_dict` returned."""
        self.start, self.updates = state["start"], state["updates"]
        self.said, self.forgotten = state["said"], state["forgotten"]

    def forget(self, residual: Tensor) -> None:
        """Books a residual that is dropped."""
        self.forgotten = self.forgotten + host.bring(residual).double()

    def closed(self, exchange: Exchange, mem: Memory, N: int) -> dict[str, Tensor]:
        """Returns all terms by name, what is owed now among them, for `conservation_error`.

        Args:
            exchange: of the run.
            mem: what it remembers.
            N: workers.
        """
        return {
            "start": self.start, "updates": self.updates, "said": self.said,
            "residual": owed(exchange, mem, N), "forgotten": self.forgotten,
        }  # fmt: skip


def owed(exchange: Exchange, mem: Memory, N: int) -> Tensor:
    """Returns what these memories still owe, (d,) float64, or () where that is nothing.

    Where workers mix models over a graph, what is remembered is of models, and sums to zero.
    """
    total = torch.zeros((), dtype=torch.float64)
    if exchange.replicates and "residual" in mem:
        total = total + host.bring(mem["residual"]).double()
    if "down" in mem:
        # A master's, in units of the mean.
        total = total + N * host.bring(mem["down"]).double()
    return total


def conservation_error(books: list[dict[str, Tensor]]) -> float:
    """Returns ||start + updates - said - residual - forgotten|| / ||updates||, each summed.

    Args:
        books: of every worker that ever was; what one that is gone owed is booked as forgotten.
    """
    total = {name: sum((b[name] for b in books), torch.zeros(())) for name in books[0]}
    left = total["start"] + total["updates"] - total["said"] - total["residual"]
    scale = max(float(b["updates"].norm()) for b in books)
    return float((left - total["forgotten"]).norm()) / scale if scale else 0.0


class Watched:
    """An exchange whose last round is also an `Entry`; the round's bits are the same.

    Args:
        exchange: what runs.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.entry: Entry

    def round(self, anchor: Tensor, delta: Vector, mem: Memory, here: Here) -> Talk:
        """Runs the round and books it."""
        delta = delta[:]
        feedback, moved = getattr(self._exchange, "feedback", None), delta.double()
        if isinstance(feedback, NoFeedback):
            # The same round, except that it tells what it leaves out.
            telling = replace(self._exchange, feedback=Feedback(permit="any"))  # type: ignore[call-arg]
            silent = {**mem, "residual": torch.full_like(delta, NOTHING)}
            direction, after = yield from telling.round(anchor, delta, silent, here)
            after = dict(after)
            forgotten = after.pop("residual").double()
        else:
            direction, after = yield from self._exchange.round(anchor, delta, mem, here)
            forgotten = torch.zeros_like(moved)
            if isinstance(feedback, Feedback):
                forgotten = (1 - feedback.decay) * mem["residual"].double()
            elif isinstance(self._exchange, Gossip):
                # p and s sum to zero over workers, so what it does not hold is the coding error.
                owes = (mem[name].double() for name in ("owed", "s") if name in mem)
                u = sum(owes, moved)
                forgotten = u + after["p"].double() - direction.double()
        self._book(moved, direction.double(), forgotten)
        return direction, after

    def moved(self, delta: Tensor, direction: Tensor) -> None:
        """Books a round, held by other means, that said everything.

        Args:
            delta: (d,) float32, the pseudo-gradient.
            direction: (d,) float32, what the round moved this worker's model by.
        """
        self._book(delta.double(), direction.double(), torch.zeros_like(delta, dtype=torch.float64))

    def _book(self, *terms: Tensor) -> None:
        self.entry = Entry(*(host.bring(term) for term in terms))


def fold(exchange: Exchange, delta: Tensor, mem: Memory) -> tuple[Memory, Entry]:
    """Returns the memory into which an update went that no round will say, and its entry.

    u = delta + m is owed from then on; where there is no feedback it is forgotten, and so booked.

    Args:
        exchange: of the run.
        delta: (d,) float32, the update.
        mem: what the exchange remembers.
    """
    nothing = torch.zeros_like(delta, dtype=torch.float64)
    if "residual" not in mem:
        return mem, Entry(delta.double(), nothing, delta.double())
    feedback = getattr(exchange, "feedback", Feedback())
    owed = feedback.owed(delta, mem)
    forgotten = delta.double() + mem["residual"].double() - owed.double()
    return {**mem, "residual": owed}, Entry(delta.double(), nothing, forgotten)
