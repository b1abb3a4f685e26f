"""The published methods, each a few lines: `LocalSGD(model, optimizer, **preset())`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from thinwire.compress import QSGD, Compressor, Identity, Sign, TopK
from thinwire.exchange import (
    DPSGD,
    AllReduce,
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
from thinwire.exchange.choco import Trigger
from thinwire.exchange.ring import Form
from thinwire.outer import Adopt, Average, Outer
from thinwire.schedule import HSchedule, RandomGaps
from thinwire.topology import RingGraph, Topology


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


def qsparse_async(
    H: HSchedule | None = None, compressor: Compressor | None = None, outer: Outer | None = None
) -> Preset:
    """Asynchronous Qsparse-local-SGD: each worker speaks at gaps of its own, and hears then.

    Args:
        H: by default gaps drawn from 1 to 8.
        compressor: by default SignTopK at 1 % of each tensor.
        outer: the master's step; by default the plain one.

    Source: arXiv 1906.02367, Algorithm 2.
    """
    C = TopK(density=0.01) >> Sign() if compressor is None else compressor
    exchange = Asynchronous(Feedback(), outer or Average())
    return Preset(H=H or RandomGaps(8), compressor=C, exchange=exchange, outer=Adopt())


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


def qprsgd_ring(H: HSchedule = 5, bits: int = 8, bucket: int = 1024, form: Form = "auto") -> Preset:
    """QPRSGD over a quantized ring: H local steps, then an all-reduce coded at every hop.

    Args:
        H: local steps per round.
        bits: of a code.
        bucket: entries that share a norm, the largest magnitude.
        form: of the ring; see `Ring`.

    Source: arXiv 2004.09125.
    """
    C = QSGD(bits=bits, norm="max", scale="none", bucket=bucket, coding="fixed")
    return Preset(H=H, compressor=C, exchange=Ring(form=form), outer=Average())


def qprsgd_gossip(
    H: HSchedule = 5,
    bits: int = 8,
    bucket: int = 1024,
    topology: Topology | None = None,
    correction: float = 0.0,
) -> Preset:
    """QPRSGD by gossip: H local steps, then quantized differences between neighbours.

    Args:
        H: local steps per round.
        bits: of a code.
        bucket: entries that share a norm, the largest magnitude.
        topology: who hears whom; by default a ring.
        correction: of what differs between workers' data; 0.5 where they differ much, 0 is the
            paper's. See `Gossip`.

    Source: arXiv 2004.09125.
    """
    C = QSGD(bits=bits, norm="max", scale="none", bucket=bucket, coding="fixed")
    exchange = Gossip(topology or RingGraph(), correction=correction)
    return Preset(H=H, compressor=C, exchange=exchange, outer=Average())


def choco_sgd(
    compressor: Compressor | None = None, topology: Topology | None = None, H: HSchedule = 1
) -> Preset:
    """CHOCO-SGD: gossip by differences with any contraction.

    Args:
        compressor: by default the largest 10 % of each tensor.
        topology: who hears whom; by default a ring.
        H: local steps per round.

    Source: arXiv 1902.00340.
    """
    C = TopK(density=0.1) if compressor is None else compressor
    return Preset(H=H, compressor=C, exchange=Choco(topology or RingGraph()), outer=Average())


def deep_squeeze(topology: Topology | None = None, bits: int = 8, H: HSchedule = 1) -> Preset:
    """DeepSqueeze: gossip of compressed models, with feedback.

    Args:
        topology: who hears whom; by default a ring.
        bits: of a code; with fewer than 8 the consensus error stays high.
        H: local steps per round.

    Source: arXiv 1907.07346.
    """
    C = QSGD(bits=bits, norm="max", bucket=1024, coding="fixed")
    return Preset(H=H, compressor=C, exchange=DeepSqueeze(topology or RingGraph()), outer=Average())


def d_psgd(topology: Topology | None = None, H: HSchedule = 1) -> Preset:
    """D-PSGD: neighbours average whole models, uncompressed.

    Args:
        topology: who hears whom; by default a ring. It may change by round.
        H: local steps per round.

    Source: arXiv 1705.09056.
    """
    exchange = DPSGD(topology or RingGraph(), mixing="before")
    return Preset(H=H, compressor=Identity(), exchange=exchange, outer=Average())


def squarm_sgd(
    H: HSchedule = 5, trigger: Trigger = 1e-4, topology: Topology | None = None
) -> Preset:
    """SQuARM-SGD: CHOCO every H steps, and only where there is enough to say.

    Give it an inner optimizer with Nesterov momentum, which is what the method adds to SPARQ-SGD.

    Args:
        H: local steps per round.
        trigger: the ||u||^2 up to which nothing is said, or a schedule of it; see `Choco`.
        topology: who hears whom; by default a ring.

    Source: arXiv 2005.07041.
    """
    C = TopK(density=0.1) >> Sign()
    exchange = Choco(topology or RingGraph(), trigger=trigger)
    return Preset(H=H, compressor=C, exchange=exchange, outer=Average())


def marsit(K: int = 50, H: HSchedule = 1) -> Preset:
    """Marsit: a one-bit ring, with a full-precision round every K rounds.

    Args:
        K: rounds from one in full precision to the next.
        H: local steps per round.

    Source: arXiv 2204.06787.
    """
    return Preset(H=H, compressor=Sign(), exchange=Marsit(K=K), outer=Average())


PRESETS: dict[str, Callable[..., Preset]] = {
    preset.__name__: preset
    for preset in (
        qsparse_local_sgd,
        qsparse_async,
        topk_sgd,
        ef_sign_sgd,
        local_sgd,
        vanilla,
        qprsgd_ring,
        qprsgd_gossip,
        choco_sgd,
        deep_squeeze,
        d_psgd,
        squarm_sgd,
        marsit,
    )
}
"""Every preset by name."""
