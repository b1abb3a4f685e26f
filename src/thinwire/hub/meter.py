"""What a hub counts since it started, as a status and as Prometheus text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from thinwire.hub.state import HubState


@dataclass
class Line:
    """One worker's figures.

    Args:
        updates: answered.
        up: framed bytes of its updates.
        down: framed bytes of the answers.
        staleness: of its last update.
        first: when it first spoke, seconds.
        last: when it last spoke.
    """

    updates: int = 0
    up: int = 0
    down: int = 0
    staleness: int = 0
    first: float = 0.0
    last: float = 0.0

    def rate(self) -> float:
        """Updates per second between its first and its last."""
        return (self.updates - 1) / max(1e-9, self.last - self.first) if self.updates > 1 else 0.0


@dataclass
class Meter:
    """Figures of one hub process.

    Args:
        began: seconds.
    """

    began: float
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
        line.first = line.first or now
        line.updates, line.last, line.staleness = line.updates + 1, now, staleness
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
            "workers": [
                {
                    "name": name,
                    "number": member.number,
                    "live": member.live,
                    "weight": member.weight,
                    "sequence": member.sequence,
                    "applied": member.applied,
                    "rate": round(line.rate(), 3),
                    "silent": round(now - line.last, 3) if line.last else None,
                    "staleness": line.staleness,
                    "bytes_up": line.up,
                    "bytes_down": line.down,
                }
                for name, member in state.members.items()
                for line in (self.lines.get(name, Line()),)
            ],
        }


def prometheus(status: dict[str, Any]) -> str:
    """Returns a status in Prometheus' text format."""
    lines: list[str] = []

    def say(name: str, kind: str, about: str, values: list[tuple[str, float]]) -> None:
        lines.extend((f"# HELP thinwire_hub_{name} {about}", f"# TYPE thinwire_hub_{name} {kind}"))
        lines.extend(f"thinwire_hub_{name}{labels} {value}" for labels, value in values)

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
    say(
        "worker_updates_total", "counter", "Updates answered, by worker.",
        [(f'{{worker="{escape(w["name"])}"}}', w["sequence"]) for w in workers],
    )  # fmt: skip
    total, cumulative = 0, []
    for number, count in enumerate(status["staleness_histogram"]):
        total += count
        cumulative.append((f'{{le="{(1 << number) - 1}"}}', total))
    lines.append("# HELP thinwire_hub_staleness Updates applied since an update's model.")
    lines.append("# TYPE thinwire_hub_staleness histogram")
    lines.extend(f"thinwire_hub_staleness_bucket{labels} {n}" for labels, n in cumulative)
    lines.append(f'thinwire_hub_staleness_bucket{{le="+Inf"}} {total}')
    lines.append(f"thinwire_hub_staleness_count {total}")
    return "\n".join(lines) + "\n"


def escape(label: str) -> str:
    """Returns a label's value as Prometheus reads it."""
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
