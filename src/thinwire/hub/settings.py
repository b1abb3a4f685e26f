"""What a hub owns and every worker adopts: H, compressor, rules, seed; and the tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from thinwire.compress import Compressor, Sign, TopK
from thinwire.errors import ConfigError
from thinwire.exchange import Hub
from thinwire.exchange.agree import show, show_tensor
from thinwire.flat import Spans
from thinwire.outer import Adopt
from thinwire.schedule import HSchedule, check_schedule, schedule_json
from thinwire.value import Value, in_range, of_kind, whole

Description = dict[str, Any]
"""A worker's or a hub's settings and tensors, as plain data."""


@dataclass(frozen=True)
class HubSettings:
    """The settings of one run on a hub.

    Args:
        H: the most local steps of a round: a number, a schedule or `RandomGaps`.
        seconds: a round ends after so long, and then after fewer steps; None for H steps.
        compressor: of the workers' messages.
        exchange: the rules of the hub.
        seed: of the random choices.
    """

    H: HSchedule = 8
    seconds: float | None = None
    compressor: Compressor = field(default_factory=lambda: TopK(density=0.01) >> Sign())
    exchange: Hub = field(default_factory=Hub)
    seed: int = 0

    def __post_init__(self) -> None:
        if callable(self.H):
            raise ConfigError("a hub cannot tell its workers a function H; give a schedule")
        check_schedule(self.H)
        of_kind(self, "compressor", self.compressor, Compressor)
        of_kind(self, "exchange", self.exchange, Hub)
        whole(self, "seed", self.seed, 0, (1 << 63) - 1)
        if self.seconds is not None:
            in_range(self, "seconds", self.seconds, 1e-3, 1e6)

    def as_dict(self) -> Description:
        """Returns the settings as plain data."""
        return {
            "H": schedule_json(self.H),
            "seconds": self.seconds,
            "compressor": self.compressor.to_json(),
            "exchange": self.exchange.to_json(),
            "outer": Adopt().to_json(),
            "seed": self.seed,
        }

    @staticmethod
    def from_dict(data: Description) -> HubSettings:
        """Returns the settings that `as_dict` wrote.

        Raises:
            ConfigError: it lacks something, or names what this version does not know.
        """
        try:
            H = data["H"]
            if isinstance(H, dict):
                H = Value.from_json(H)
            elif isinstance(H, list):
                H = tuple((first, steps) for first, steps in H)
            return HubSettings(
                H=H,
                seconds=data["seconds"],
                compressor=Value.from_json(data["compressor"]),
                exchange=Value.from_json(data["exchange"]),
                seed=data["seed"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"these are no settings of a hub: {error}") from None


def difference(hub: Description, worker: Description) -> tuple[str, str] | None:
    """Returns ("settings" or "tensors", both sides in words) where a worker differs, or None.

    Example:
        >>> hub = {"settings": {"H": 8}, "tensors": []}
        >>> print(difference(hub, {"settings": {"H": 4}, "tensors": []})[1])
        H is 4 here and 8 on the hub; leave it out to adopt the hub's
    """
    mine, theirs = hub["settings"], worker["settings"]
    for name in sorted({*mine, *theirs}):
        if name not in mine or name not in theirs or mine[name] != theirs[name]:
            here, there = (show(s[name]) if name in s else "unknown" for s in (theirs, mine))
            return "settings", (
                f"{name} is {here} here and {there} on the hub; leave it out to adopt the hub's"
            )
    ours, its = hub["tensors"], worker["tensors"]
    for number in range(max(len(ours), len(its))):
        a, b = ((side[number : number + 1] or [None])[0] for side in (ours, its))
        if a != b:
            return "tensors", (
                f"tensor {number} is {show_tensor(b)} here and {show_tensor(a)} on the hub; "
                "build the same model"
            )
    return None


def read_description(text: str) -> Description:
    """Returns a worker's description.

    Raises:
        ValueError: it is none.
    """
    said = json.loads(text)
    sound = isinstance(said, dict) and isinstance(said.get("settings"), dict)
    sound = sound and isinstance(said.get("tensors"), list)
    if not sound or not all(
        isinstance(t, list) and all(isinstance(part, str) for part in t) for t in said["tensors"]
    ):
        raise ValueError("it lacks settings or tensors")
    description: Description = said
    return description


def spans_of(tensors: list[list[str]]) -> Spans:
    """Returns the spans of described tensors."""
    shapes = (t[1].strip("(),").split(",") for t in tensors)
    return Spans(
        tuple(t[0] for t in tensors),
        tuple(tuple(int(n) for n in shape if n.strip()) for shape in shapes),
    )
