"""Timeline: when the first workers computed, talked and waited."""

from __future__ import annotations

from dataclasses import dataclass, field

COMPUTE, TALK, SEND = "compute", "talk", "send"
Span = tuple[float, float]


@dataclass
class Timeline:
    """What the first workers did in virtual time, for as long as it is worth drawing.

    Args:
        workers: of how many it takes note.
        until: seconds up to which it does.
        most: spans of one kind it keeps for one worker.
    """

    workers: int = 32
    until: float = float("inf")
    most: int = 4000
    spans: dict[tuple[int, str], list[Span]] = field(default_factory=dict)

    def note(self, rank: int, kind: str, start: float, end: float) -> None:
        """Notes that a worker did that from start to end; spans that touch become one."""
        if rank >= self.workers or start >= self.until or end <= start:
            return
        own = self.spans.setdefault((rank, kind), [])
        if own and start <= own[-1][1] + 1e-12:
            own[-1] = (own[-1][0], max(end, own[-1][1]))
        elif len(own) < self.most:
            own.append((start, end))

    def of(self, rank: int, kind: str) -> list[Span]:
        """Returns the spans of that kind, ascending."""
        return self.spans.get((rank, kind), [])
