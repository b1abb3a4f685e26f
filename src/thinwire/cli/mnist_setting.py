"""The setting of `thinwire train mnist`: which preset says what, and what a run is given."""

from __future__ import annotations

from dataclasses import dataclass, replace

from thinwire.compress import QSGD, Compressor, Identity, Sign, TopK
from thinwire.errors import ConfigError
from thinwire.exchange import (
    DPSGD,
    Asynchronous,
    Choco,
    DeepSqueeze,
    Exchange,
    Feedback,
    Gossip,
    Marsit,
    NoFeedback,
    Ring,
    Server,
)
from thinwire.schedule import HSchedule, RandomGaps

D, K = 7850, 40


def _methods(k: int, feedback: bool) -> dict[str, tuple[Compressor, Exchange]]:
    """What each preset says in this setting, one flat scope, and to whom."""
    owed = Feedback() if feedback else NoFeedback(permit="biased")
    topk, sign = TopK(k=k, scope="global"), Sign(scope="global")
    eight = QSGD(bits=8, norm="max", scale="none", scope="global", bucket=1024, coding="fixed")
    return {
        "qsparse_local_sgd": (topk >> Sign(), Server(owed)),
        "qsparse_async": (topk >> Sign(), Asynchronous(owed)),
        "topk_sgd": (topk, Server(owed)),
        "ef_sign_sgd": (sign, Server(owed)),
        "local_sgd": (Identity(), Server(NoFeedback())),
        "vanilla": (Identity(), Server(NoFeedback())),
        "qprsgd_ring": (eight, Ring()),
        "qprsgd_gossip": (eight, Gossip()),
        "choco_sgd": (topk, Choco()),
        "deep_squeeze": (replace(eight, scale="fit"), DeepSqueeze()),
        "d_psgd": (Identity(), DPSGD(mixing="before")),
        "squarm_sgd": (topk >> Sign(), Choco(trigger=1e-4)),
        "marsit": (Sign(), Marsit()),
    }


WITHOUT_FEEDBACK = ("qsparse_local_sgd", "qsparse_async", "topk_sgd", "ef_sign_sgd")
"""Presets that an experiment may run with feedback off."""
KEEPS_K = ("qsparse_local_sgd", "qsparse_async", "topk_sgd", "choco_sgd", "squarm_sgd")
"""Presets that keep k entries."""
ONE_STEP = ("vanilla", "topk_sgd", "ef_sign_sgd", "choco_sgd", "deep_squeeze", "d_psgd", "marsit")
"""Presets that take one local step a round unless asked for more."""


@dataclass(frozen=True)
class Setting:
    """One run.

    Args:
        preset: a name of `thinwire.PRESETS`.
        H: local steps per round; the longest of random gaps where the preset is asynchronous.
        k: kept entries, where the preset sparsifies.
        step_size: c of c a / (a + t).
        step_decay: a of c a / (a + t); the paper's is about d H / k.
        feedback: whether the residual is kept.
        target_error: stops when the mean of three evaluations in a row is at most this.
        workers: N.
        batch: b, of each worker.
        max_steps: gives up after so many.
        evaluate_every: steps from one evaluation to the next; None for 8, or H where all workers
            share a model only every H steps.
        seed: of shards, batches and operators.
    """

    preset: str = "qsparse_local_sgd"
    H: int = 8
    k: int = K
    step_size: float = 0.3
    step_decay: float = 8 * D / K
    feedback: bool = True
    target_error: float = 0.10
    workers: int = 15
    batch: int = 8
    max_steps: int = 2500
    evaluate_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        known = _methods(1, True)
        if self.preset not in known:
            raise ConfigError(f"no preset {self.preset!r}; choose {', '.join(known)}")
        if self.preset == "vanilla" and self.H != 1:
            raise ConfigError("vanilla takes one local step a round; local_sgd takes H")
        if not self.feedback and self.preset not in WITHOUT_FEEDBACK:
            raise ConfigError(
                f"{self.preset} cannot run without feedback; {', '.join(WITHOUT_FEEDBACK)} can"
            )
        if self.k != K and self.preset not in KEEPS_K:
            raise ConfigError(f"{self.preset} keeps no k entries; {', '.join(KEEPS_K)} do")
        for name in ("H", "k", "workers", "batch", "max_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("step_size", "step_decay"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.target_error <= 1:
            raise ConfigError(f"target error is {self.target_error}; it must lie in [0, 1]")

    @property
    def gaps(self) -> HSchedule:
        """The local steps of each worker's rounds."""
        return RandomGaps(self.H) if self.preset == "qsparse_async" else self.H

    @property
    def method(self) -> tuple[Compressor, Exchange]:
        """C of this run, and who says it to whom."""
        return _methods(self.k, self.feedback)[self.preset]


def usual_H(preset: str) -> int:
    """Returns the local steps that a preset takes where none are asked for."""
    return 1 if preset in ONE_STEP else 8
