"""What a hub counts since it started, as a status and as Prometheus text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from thinwire.hub.state import HubState

SLOT = 5.0
SLOTS = 12
"""A rate is of the last minute: so many slots, of so many seconds each."""


@dataclass
class Line:
    """One worker's figures.

    Args:
        updates: answered.
        up: framed bytes of its updates.
        down: framed bytes of the answers.
        staleness: of its last update.
        first: when its first update came, seconds.
        recent: (slot, updates in it) of the last `SLOTS` slots in which one came, at most.
    """

    updates: int = 0
    up: int = 0
    down: int = 0
    staleness: int = 0
    first: float = 0.0
    recent: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * SLOTS)

    def count(self, now: float) -> None:
        """Counts an update."""
        if not self.updates:
            self.first = now
        self.updates += 1
        slot = int(now // SLOT)
        last, n = self.recent[slot % SLOTS]
        self.recent[slot % SLOTS] = slot, n + 1 if last == slot else 1

    def rate(self, now: float) -> float:
        """Updates per second in the last minute, or since its first where that came later."""
        oldest = int(now // SLOT) - SLOTS + 1
        count, start = sum(n for slot, n in self.recent if slot >= oldest), oldest * SLOT
        if self.first >= start:
            count, start = count - 1, self.first
        return max(0, count) / (now - start) if now > start else 0.0


@dataclass
class Meter:
    """Figures of one hub process.

    Args:
        began: seconds.
        heard: when each worker that is here last said a word; the core keeps it.
    """

    began: float
    heard: dict[str, float] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    up: int = 0
    down: int = 0
    updates: int = 0
    repeated: int = 0

    def joined(self, name: str, down: int) -> None:
        """Counts a model that was told whole."""
        self.lines.setdefault(name, Line()).down += down
        self.down += down

    def answered(self, name: str, up: int, down: int, staleness: int, now: float) -> None:
        """Counts an update and its answer, in framed bytes."""
        line = self.lines.setdefault(name, Line())
        line.count(now)
        line.staleness = staleness
        line.up, line.down = line.up + up, line.down + down
        self.updates, self.up, self.down = self.updates + 1, self.up + up, self.down + down

    def status(self, state: HubState, now: float, run: int, d: int) -> dict[str, Any]:
        """Returns everything that is shown, as plain data."""
        return {
            "run": f"{run:#010x}",
            "d": d,
            "seconds": round(now - self.began, 3),
            "version": state.version,
            "applied": state.applied,
            "refused_as_stale": state.refused,
            "repeated": self.repeated,
            "bytes_up": self.up,
            "bytes_down": self.down,
            "refusals": dict(self.refusals),
            "staleness_histogram": state.histogram,
            "staleness_sum": state.staleness,
            "workers": [
                {
                    "name": name,
                    "number": member.number,
                    "live": member.live,
                    "weight": member.weight,
                    "sequence": member.sequence,
                    "applied": member.applied,
                    "rate": round(line.rate(now), 3),
                    "silent": None if heard is None else round(now - heard, 3),
                    "staleness": line.staleness,
                    "bytes_up": line.up,
                    "bytes_down": line.down,
                }
                for name, member in state.members.items()
                for line, heard in ((self.lines.get(name, Line()), self.heard.get(name)),)
            ],
        }


def prometheus(status: dict[str, Any]) -> str:
    """Returns a status in Prometheus' text format."""
    lines: list[str] = []

    def say(name: str, kind: str, about: str, values: list[tuple[str, float]]) -> None:
        lines.extend((f"# HELP thinwire_hub_{name} {about}", f"# TYPE thinwire_hub_{name} {kind}"))
        lines.extend(f"thinwire_hub_{name}{labels} {value}" for labels, value in values)

    def say_each(name: str, kind: str, about: str, key: str) -> None:
        say(
            f"worker_{name}", kind, f"{about}, by worker.",
            [(f'{{worker="{escape(w["name"])}"}}', w[key]) for w in workers],
        )  # fmt: skip

    workers = status["workers"]
    say("applied_total", "counter", "Updates applied in this run.", [("", status["applied"])])
    say("stale_total", "counter", "Updates refused as stale.", [("", status["refused_as_stale"])])
    say("up_bytes_total", "counter", "Framed bytes of updates.", [("", status["bytes_up"])])
    say("down_bytes_total", "counter", "Framed bytes of answers.", [("", status["bytes_down"])])
    say("live_workers", "gauge", "Workers here.", [("", sum(w["live"] for w in workers))])
    say(
        "refusals_total", "counter", "Refusals by status code.",
        [(f'{{code="{code}"}}', n) for code, n in status["refusals"].items()],
    )  # fmt: skip
    say_each("updates_total", "counter", "Updates answered", "sequence")
    say_each("up_bytes_total", "counter", "Framed bytes of updates", "bytes_up")
    say_each("down_bytes_total", "counter", "Framed bytes of answers", "bytes_down")
    say_each("staleness", "gauge", "Staleness of the last update", "staleness")
    total, cumulative = 0, []
    for number, count in enumerate(status["staleness_histogram"]):
        total += count
        cumulative.append((f'{{le="{(1 << number) - 1}"}}', total))
    lines.append("# HELP thinwire_hub_staleness Updates applied since an update's model.")
    lines.append("# TYPE thinwire_hub_staleness histogram")
    # The last one holds all that is staler, too.
    lines.extend(f"thinwire_hub_staleness_bucket{labels} {n}" for labels, n in cumulative[:-1])
    lines.append(f'thinwire_hub_staleness_bucket{{le="+Inf"}} {total}')
    lines.append(f"thinwire_hub_staleness_sum {status['staleness_sum']}")
    lines.append(f"thinwire_hub_staleness_count {total}")
    return "\n".join(lines) + "\n"


def escape(label: str) -> str:
    """Returns a label's value as Prometheus reads it."""
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
