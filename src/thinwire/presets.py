"""The published methods, each a few lines: `LocalSGD(model, optimizer, **preset())`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from thinwire.compress import Compressor, Identity, Sign, TopK
from thinwire.exchange import AllReduce, Exchange, Feedback, NoFeedback, Server
from thinwire.outer import Average, Outer
from thinwire.schedule import HSchedule


class Preset(TypedDict):
    """The arguments of `LocalSGD` that make a method."""

    H: HSchedule
    compressor: Compressor
    exchange: Exchange
    outer: Outer


def qsparse_local_sgd(
    H: HSchedule = 8, compressor: Compressor | None = None, exchange: Exchange | None = None
) -> Preset:
    """Qsparse-local-SGD: H local steps, then a sparsified and quantized difference, with feedback.

    Args:
        H: local steps per round.
        compressor: by default SignTopK at 1 % of each tensor.
        exchange: by default the papers' master, the reply exact.

    Source: arXiv 1906.02367, Algorithm 1.
    """
    C = TopK(density=0.01) >> Sign() if compressor is None else compressor
    return Preset(H=H, compressor=C, exchange=exchange or Server(Feedback()), outer=Average())


def topk_sgd(density: float = 0.01, k: int | None = None) -> Preset:
    """TopK-SGD: one step, the k largest entries exactly, with feedback.

    Args:
        density: the kept fraction of each tensor.
        k: or this many entries of each tensor.
    """
    C = TopK(density=density) if k is None else TopK(k=k)
    return Preset(H=1, compressor=C, exchange=Server(Feedback()), outer=Average())


def ef_sign_sgd() -> Preset:
    """EF-SignSGD: one step, one bit an entry and the mean magnitude, with feedback.

    Source: arXiv 1901.09847.
    """
    return Preset(H=1, compressor=Sign(), exchange=Server(Feedback()), outer=Average())


def local_sgd(H: HSchedule = 8) -> Preset:
    """Local SGD: H local steps, then the exact mean.

    Args:
        H: local steps per round.

    Source: arXiv 1805.09767.
    """
    return Preset(H=H, compressor=Identity(), exchange=Server(NoFeedback()), outer=Average())


def vanilla(delegate: bool = False) -> Preset:
    """Vanilla distributed SGD: one step, the exact mean.

    Args:
        delegate: whether to hand the sum to the engine's own all-reduce: faster, but its order
            of summation is its own, so not the same bits as in another engine.
    """
    exchange: Exchange = AllReduce() if delegate else Server(NoFeedback())
    return Preset(H=1, compressor=Identity(), exchange=exchange, outer=Average())


PRESETS: dict[str, Callable[..., Preset]] = {
    preset.__name__: preset
    for preset in (qsparse_local_sgd, topk_sgd, ef_sign_sgd, local_sgd, vanilla)
}
"""Every preset by name."""
