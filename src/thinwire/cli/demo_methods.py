"""The demo's methods: which, at which learning rate, and how that rate was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thinwire.compress import QSGD, TopK
from thinwire.errors import ConfigError
from thinwire.presets import PRESETS, Preset, local_sgd, qsparse_local_sgd, topk_sgd
from thinwire.schedule import H_at

LEARNING_RATES = (0.1, 0.2, 0.4, 0.8, 1.6)
"""The grid each method's rate was chosen from, with 4 workers and seeds 0, 1, 2: the best mean of
the accuracies after 5, 15 and 30 epochs on a fifth of all images, held out from the training
images; the test images had no part. By the last epoch alone DDP would take 1.6 (97.5 % against
97.0 %), at the price of its start (73 % against 94 % after 5 epochs); the others the same."""


@dataclass(frozen=True)
class Method:
    """One line of the demo's table.

    Args:
        name: as the table says it.
        lr: its learning rate, from `LEARNING_RATES`.
        preset: the arguments of `LocalSGD`; None for torch's own DistributedDataParallel.
    """

    name: str
    lr: float
    preset: Preset | None

    @property
    def H(self) -> int:
        """Local steps per round."""
        return 1 if self.preset is None else H_at(self.preset["H"], 0)

    def as_dict(self) -> dict[str, Any]:
        """Returns the method as plain data."""
        preset = self.preset
        return {
            "method": self.name,
            "lr": self.lr,
            "H": self.H,
            "compressor": None if preset is None else repr(preset["compressor"]),
            "exchange": "ring all-reduce" if preset is None else repr(preset["exchange"]),
            "notes": [] if preset is None else preset["exchange"].notes(preset["compressor"]),
        }


UNTUNED = 0.8
"""The rate of a preset that is asked for by name."""

METHODS = (
    Method("DDP", 0.8, None),
    Method("Local SGD, H=8", 0.8, local_sgd(H=8)),
    Method("TopK-SGD 1%", 1.6, topk_sgd(density=0.01)),
    Method("Qsparse SignTopK, H=4", 0.8, qsparse_local_sgd(H=4)),
    Method(
        "Qsparse TopK>>QSGD, H=8",
        0.8,
        qsparse_local_sgd(H=8, compressor=TopK(density=0.01) >> QSGD(bits=4)),
    ),
)


def chosen(presets: Sequence[str]) -> tuple[Method, ...]:
    """Returns the demo's methods: its own, or DDP and these presets at the rate `UNTUNED`.

    Raises:
        ConfigError: there is no such preset.
    """
    unknown = [name for name in presets if name not in PRESETS]
    if unknown:
        raise ConfigError(f"no preset {unknown[0]!r}; choose from {', '.join(PRESETS)}")
    asked = tuple(Method(name, UNTUNED, PRESETS[name]()) for name in dict.fromkeys(presets))
    return (METHODS[0], *asked) if asked else METHODS
