"""How the first paper trained ResNet-50: who says what, and the step size.

k_t = min(d_t, 1000) of every trainable tensor, BN and biases included: 99,400 of 25,557,032.
Sources: arXiv 1906.02367, and its authors' public code, as docs/algorithms.md quotes them.
"""

from __future__ import annotations

import thinwire as tw
from thinwire.shell import LocalSGD

K = 1000
LR, LR_BATCH = 0.128, 1024
WARM_UP, DROPS, DROP = 5, (30, 60, 80), 0.1
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
CLEAR_AT = 0.5
"""A drop by ten is a fall to below this: the residual is then cleared."""

METHODS: dict[str, tuple[tw.Compressor, bool]] = {
    "sgd": (tw.Identity(), False),
    "ef-sign": (tw.Sign(), True),
    "topk": (tw.TopK(k=K), True),
    "qtopk": (tw.TopK(k=K) >> tw.QSGD(bits=4), True),
    "signtopk": (tw.TopK(k=K) >> tw.Sign(), True),
}
"""What each says, and whether with feedback."""


def preset(method: str, H: int, gather: bool = False) -> tw.Preset:
    """Returns the arguments of `LocalSGD` that make the method.

    Args:
        method: a name of `METHODS`.
        H: local steps per round; the paper's are 1, 4 and 8.
        gather: workers hear each other instead of a master.

    Raises:
        ConfigError: there is no such method.
    """
    if method not in METHODS:
        raise tw.ConfigError(f"no method {method!r}; choose {', '.join(METHODS)}")
    compressor, feedback = METHODS[method]
    owed = tw.Feedback() if feedback else tw.NoFeedback()
    exchange = (tw.Gather if gather else tw.Server)(owed)
    return tw.Preset(H=H, compressor=compressor, exchange=exchange, outer=tw.Average())


def bits_a_round(optimizer: LocalSGD) -> tuple[int, int]:
    """Returns a message's kept entries, and its bits in the paper's fixed-width accounting."""
    C = optimizer.compressor
    return C.layout(optimizer.spans).kept, C.fixed_width_bits(optimizer.spans)


class StepSize:
    """The step size at a local step, relative to its peak LR * (N b) / 1024.

    It rises in a line over 5 epochs and falls by ten at 30, 60 and 80, where boundaries are
    rounded to whole rounds, so that no round is of two step sizes.

    Args:
        per_epoch: local steps of an epoch.
        H: local steps per round.

    Example:
        >>> at = StepSize(per_epoch=10, H=4)
        >>> at(0), at(49), at(299), at(300)
        (0.02, 1.0, 1.0, 0.1)
        >>> StepSize(per_epoch=10, H=7)(300), StepSize(per_epoch=10, H=7)(301)
        (1.0, 0.1)
    """

    def __init__(self, per_epoch: int, H: int) -> None:
        self.rise = WARM_UP * per_epoch
        self.drops = [round(epoch * per_epoch / H) * H for epoch in DROPS]

    def __call__(self, step: int) -> float:
        """Returns the factor of that step, from 0."""
        fallen = sum(step >= drop for drop in self.drops)
        return round(min(1.0, (step + 1) / self.rise) * DROP**fallen, 12)
