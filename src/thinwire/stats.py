"""What was sent, measured: the bytes of every frame, by kind and direction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import copy
from typing import Any

from thinwire.host import Bytes
from thinwire.transport.base import Answer, Ask, Reduce, Turn
from thinwire.wire.frame import BUFFER_PART, REPAIR_PART, Kind, part_of

REPAIR = "REPAIR"
UP = (*(k.name for k in (Kind.SAID, Kind.ALARM, Kind.SILENCE, Kind.PLEA, Kind.NUMBER)), REPAIR)
DOWN = (Kind.REPLY.name, Kind.REFUSAL.name, Kind.ANCHOR.name)
LOST = "LOST"
PARTS = {BUFFER_PART: "BUFFERS", REPAIR_PART: REPAIR}


class Stats:
    """Counts the frames of one worker; every figure is a sum of `len(frame)`.

    Attributes:
        framed: bytes of frames this worker made, by kind, each frame once however many hear it
            and also where the hearer is the speaker itself: the papers' accounting.
        sent: bytes of frames that left for another rank, by kind, each copy counted.
        received: bytes of frames that came from another rank, by kind.
        reduced: dense bytes handed to the engine's all-reduce, which makes no frames.
        lost: frames this worker waited for that never came.
        repairs: dense rounds of its neighbourhood that made good what this worker had missed; their
            bytes are "REPAIR" in the counts by kind.
        witness: is shown each frame that this worker makes, once, and each that it is answered;
            None for nobody.
    """

    def __init__(self) -> None:
        self.framed: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.reduced = 0
        self.lost = 0
        self.repairs = 0
        self.witness: Callable[[Bytes, bool], None] | None = None

    @property
    def uplink(self) -> int:
        """Framed bytes of this worker's messages: the papers' uplink-only figure."""
        return sum(self.framed[kind] for kind in UP)

    def asked(self, ask: Ask, rank: int) -> None:
        """Counts what an ask sends."""
        if isinstance(ask, Reduce):
            self.reduced += 4 * len(ask.vector)
            return
        made = {id(post.frame): post.frame for post in ask.posts if not post.relayed}
        for frame in made.values():
            self.framed[kind_of(frame)] += len(frame)
            if self.witness is not None:
                self.witness(frame, True)
        for post in ask.posts:
            if post.to != rank:
                self.sent[kind_of(post.frame)] += len(post.frame)

    def answered(self, ask: Ask, answer: Answer, rank: int) -> None:
        """Counts what an answer brings."""
        if isinstance(ask, Turn) and isinstance(answer, list):
            kinds = [kind_of(frame) for frame in answer]
            for take, frame, kind in zip(ask.takes, answer, kinds, strict=True):
                if take.source != rank:
                    self.received[kind] += len(frame)
                if self.witness is not None:
                    self.witness(frame, False)
            self.lost += kinds.count(LOST)
            self.repairs += set(kinds) == {REPAIR}

    def totals(self) -> tuple[int, int, int]:
        """Returns (uplink framed, sent, received) bytes so far."""
        return self.uplink, sum(self.sent.values()), sum(self.received.values())

    def mended(self) -> tuple[int, int, int]:
        """Returns (frames lost, repairs, bytes of repairs sent and received) so far."""
        return self.lost, self.repairs, self.sent[REPAIR] + self.received[REPAIR]

    def state_dict(self) -> dict[str, Any]:
        """Returns all counts, so that a run that is taken up again counts on."""
        return {name: copy(value) for name, value in vars(self).items() if name != "witness"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up such counts."""
        vars(self).update({name: copy(state[name]) for name in self.state_dict()})

    def as_dict(self) -> dict[str, Any]:
        """Returns the totals as plain data."""
        return {
            "uplink_framed": self.uplink,
            "sent": dict(self.sent),
            "received": dict(self.received),
            "all_reduced": self.reduced,
            "lost": self.lost,
            "repairs": self.repairs,
        }


def kind_of(frame: Bytes) -> str:
    """Returns a frame's kind by name, or "LOST" (none came), "BUFFERS" or "REPAIR" by its part."""
    if not frame:
        return LOST
    part = part_of(frame)
    if part in PARTS:
        return PARTS[part]
    return Kind(frame[3]).name if frame[3] in Kind._value2member_map_ else "UNKNOWN"
