"""The lists that every law runs over: operators, exchanges, outer steps, inputs, spans."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

import thinwire as tw
from thinwire import QSGD, Identity, Key, Levels, RandK, Rotated, Sign, Ternary, TopK, TwoLevel
from thinwire.compress import Chain, Compressor
from thinwire.compress.halves import Everything, Float32
from thinwire.exchange.without import Without
from thinwire.flat import Spans
from thinwire.value import Value
from thinwire.virtual.compute import Compute

COMPRESSORS: tuple[Compressor, ...] = (
    Identity(),
    Everything(),
    Float32(),
    TopK(k=3),
    TopK(density=0.2),
    TopK(density=1.0),
    TopK(k=9, scope="global"),
    TopK(k=2, scope="chunk", chunk=7),
    TopK(density=0.6, small_dense=True),
    RandK(k=3),
    RandK(density=0.3, scope="global"),
    RandK(density=0.3, scope="chunk", chunk=5),
    RandK(density=0.5, rescale=True),
    RandK(k=4, scope="global", rescale=True),
    Sign(),
    Sign(scope="global"),
    Sign(bucket=6),
    QSGD(bits=4),
    QSGD(bits=2, scope="global"),
    QSGD(levels=5, norm="max"),
    QSGD(bits=3, norm="max", bucket=8, scale="beta"),
    QSGD(bits=4, scale="none"),
    QSGD(levels=1, norm="max", scale="none", bucket=4),
    QSGD(bits=16, scale="none", scope="global"),
    QSGD(bits=4, coding="fixed"),
    TwoLevel(),
    TwoLevel(scope="global", coding="fixed"),
    TwoLevel(bucket=6),
    Levels(),
    Levels(levels=3, scale="beta", bucket=5),
    Levels(levels=6, scale="none", scope="global"),
    Levels(levels=65535),
    Rotated(),
    Rotated(levels=3, scale="beta", bucket=8),
    Rotated(levels=6, scale="none", bucket=None),
    Rotated(levels=5, scope="global", bucket=16),
    Ternary(),
    Ternary(scale="beta", scope="global"),
    Ternary(scale="none", bucket=7),
    TopK(k=4) >> Sign(),
    TopK(density=0.3, scope="global") >> Sign(bucket=5),
    TopK(density=0.4, scope="chunk", chunk=8) >> Sign(),
    TopK(k=5, small_dense=True) >> Sign(),
    TopK(k=6) >> QSGD(bits=4),
    TopK(density=0.3) >> QSGD(bits=2, norm="max", scale="beta", bucket=3),
    TopK(density=0.3) >> QSGD(levels=8, scale="none"),
    TopK(density=0.3, scope="global") >> Levels(levels=7),
    TopK(k=7) >> Rotated(levels=15, bucket=4),
    TopK(density=0.4, scope="chunk", chunk=16) >> Rotated(),
    TopK(density=0.4) >> Ternary(),
    TopK(density=0.5) >> TwoLevel(),
    TopK(density=0.4, scope="chunk", chunk=8) >> TwoLevel(bucket=5),
    RandK(k=4) >> TwoLevel(coding="fixed"),
    RandK(k=4) >> Sign(),
    RandK(density=0.4, scope="global") >> QSGD(bits=4, norm="max"),
    RandK(density=0.5, rescale=True) >> QSGD(levels=4, scale="none"),
    RandK(density=0.9, rescale=True) >> QSGD(levels=9, scale="none"),
    RandK(density=0.6, rescale=True, scope="global") >> Ternary(scale="none"),
    RandK(density=0.6, rescale=True) >> Levels(levels=4, scale="none"),
    RandK(density=0.6, rescale=True) >> Rotated(levels=4, scale="none", bucket=8),
    RandK(density=0.8, rescale=True) >> Sign(),
    RandK(density=0.8, scope="chunk", chunk=6) >> Ternary(scale="beta", bucket=3),
)

EXCHANGES: tuple[tw.Exchange, ...] = (
    tw.Server(),
    tw.Server(tw.Feedback(decay=0.9), root=1),
    tw.Server(tw.NoFeedback(permit="biased"), root=2),
    tw.Server(downlink=TopK(density=0.3) >> Sign()),
    tw.Server(tw.Feedback(decay=0.9), downlink=QSGD(bits=4), root=1),
    tw.Server(tw.NoFeedback(permit="biased"), downlink=RandK(density=0.4), root=2),
    tw.Gather(),
    tw.Gather(tw.Feedback(decay=0.9)),
    tw.Gather(tw.NoFeedback(permit="biased")),
    tw.Gather(tw.Feedback(permit="any")),
    tw.AllReduce(),
)

OUTERS: tuple[tw.Outer, ...] = (
    tw.Average(),
    tw.Average(lr=0.5),
    tw.Nesterov(),
    tw.Nesterov(lr=0.4, momentum=0.0),
    tw.DelayedNesterov(every=1),
)

PEERS: tuple[tw.Exchange, ...] = (
    tw.Ring(),
    tw.Ring("ring", tw.Feedback(), pipeline=10),
    tw.Ring("two-phase", links="neighbours"),
    tw.Ring("gather", tw.Feedback(decay=0.5)),
    tw.Gossip(),
    tw.Gossip(tw.Torus(), mixing="before"),
    tw.Gossip(correction=0.5),
    tw.Choco(),
    tw.Choco(tw.Hypercube(), gamma=0.5, trigger=1e-3),
    tw.Choco(trigger=((0, 1e-2), (100, 1e-4))),
    tw.DeepSqueeze(tw.Complete(), gamma=0.25),
    tw.DPSGD(tw.RandomMatching(), mixing="before"),
    tw.Marsit(K=7),
    tw.EdgeGossip(),
    tw.EdgeGossip(tw.Hypercube(), gamma=0.5),
    tw.Asynchronous(),
    tw.Hub(),
    tw.Hub(tw.NoFeedback(), tw.DelayedNesterov(), tw.ByWeight(), downlink=tw.Exact()),
    tw.Asynchronous(tw.NoFeedback(), tw.Nesterov(), root=2),
)
"""Exchanges without a mean that all share, or without whole messages: laws of their own."""

TOPOLOGIES: tuple[tw.Topology, ...] = (
    tw.RingGraph(),
    tw.RingGraph(weights="lazy"),
    tw.Torus(rows=2, cols=4),
    tw.Hypercube(),
    tw.Complete(),
    tw.Star(),
    tw.Exponential(weights="fastest"),
    tw.OnePeerExponential(),
    tw.RandomMatching(),
    tw.Graph(((0, 1), (1, 2))),
)

OTHER_SETTINGS: tuple[Value, ...] = (
    *TOPOLOGIES,
    tw.RandomGaps(),
    tw.RandomGaps(most=3),
    tw.FixedN(4),
    tw.LiveCount(),
    tw.ByWeight(),
    tw.Staleness(),
    tw.Staleness(most=5, policy="scale"),
    tw.Exact(),
    tw.Exact(memory=1 << 20),
    tw.Stream(),
    tw.Stream(Sign(), every=4),
    tw.PerWorker(),
    tw.PerWorker(Sign(), memory=1 << 20),
    tw.Feedback(),
    tw.Feedback(decay=0.9, permit="any"),
    tw.NoFeedback(),
    tw.NoFeedback(permit="biased"),
    tw.Deadline(),
    tw.Deadline(deviations=3, hard=60.0),
    tw.Watch(),
    tw.Watch(nonfinite="drop", deadline=tw.Deadline(least=1)),
    tw.Link(),
    tw.Link(bandwidth=1e8, latency=0.02, jitter=0.001, loss=0.01),
    Compute(0.5),
    Compute(0.5, spread=0.2, straggle=0.01, seed=3),
)

HUB_OUTERS: tuple[tw.Outer, ...] = (tw.Adopt(), tw.DelayedNesterov(every=3))
"""Outer steps that are no torch optimizer's."""

WITHOUT = Without(tw.Server(), (0, 2))
"""A round of another exchange, no exchange of its own."""

SETTINGS: tuple[Value, ...] = (
    *COMPRESSORS, *EXCHANGES, *PEERS, WITHOUT, *OUTERS, *HUB_OUTERS, *OTHER_SETTINGS,
)  # fmt: skip

NAMES = {
    **{name: getattr(tw, name) for name in tw.__all__},
    **{c.__name__: c for c in (Chain, Compute, Everything, Float32, Without)},
}
"""What a repr may name: the public door, and the halves it completes a lone half with."""


def concrete(base: type) -> set[type]:
    """Returns the registered settings of the library that are a `base` and can be built."""
    return {
        c
        for c in Value._classes.values()
        if issubclass(c, base) and not inspect.isabstract(c) and c.__module__.startswith("thinwire")
    }


def _heavy_tailed(n: int, g: torch.Generator) -> Tensor:
    return torch.empty(n).cauchy_(generator=g).clamp(-1e6, 1e6)


def _one_huge(n: int, g: torch.Generator) -> Tensor:
    v = torch.randn(n, generator=g)
    v[n // 3 : n // 3 + 1] = -3e38
    return v


def _sparse(n: int, g: torch.Generator) -> Tensor:
    # Like the gradient of an MNIST border pixel's weights: mostly exact zeros.
    noise = torch.randn(n, generator=g)
    return torch.where(torch.rand(n, generator=g) < 0.8, torch.tensor(0.0), noise)


INPUTS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "normal": lambda n, g: torch.randn(n, generator=g),
    "heavy_tailed": _heavy_tailed,
    "all_zero": lambda n, g: torch.zeros(n),
    "all_equal": lambda n, g: torch.full((n,), 0.3),
    "one_huge": _one_huge,
    "subnormal": lambda n, g: torch.randn(n, generator=g) * 1e-41,
    "negative_zeros": lambda n, g: torch.full((n,), -0.0),
    "some_negative_zeros": lambda n, g: torch.randn(n, generator=g).clamp(min=0).neg(),
    "two_valued": lambda n, g: torch.where(torch.rand(n, generator=g) < 0.5, 1.5, -0.25),
    "sparse": _sparse,
}

SPANS: dict[str, Spans] = {
    "empty": Spans.of(0),
    "one_entry": Spans.of(1),
    "one_vector": Spans.of(53),
    "tensors": Spans(
        ("conv", "none", "scalar", "bias", "gap", "fc"), ((4, 2, 3), (0,), (), (7,), (3, 0), (5, 6))
    ),
    "only_empty": Spans(("a", "b"), ((0,), (2, 0))),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vector(name: str, spans: Spans, seed: int = 1) -> Tensor:
    """Returns the input of that name over those spans, (d,) float32."""
    return INPUTS[name](spans.d, generator(seed)).to(torch.float32)


def each_case(C: Compressor, inputs: Iterable[str] = INPUTS):
    """Yields (name, spans, u) for every spans and every input that C can say in float32.

    d/k times 3e38 is no float32, so a rescaling operator is not given the huge input; what an
    exchange then does is a law of exchanges.
    """
    rescales = getattr(C.sparsifier, "rescale", False)
    for at, spans in SPANS.items():
        for name in inputs:
            if not (rescales and name == "one_huge"):
                yield f"{at}, {name}", spans, vector(name, spans)


def bits(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.int32) if t.dtype == torch.float32 else t


def same_bits(a: Tensor, b: Tensor, what: object = "") -> None:
    """Asserts equal dtype, shape and bits, so that -0.0 differs from 0.0."""
    assert a.dtype == b.dtype, (what, a.dtype, b.dtype)
    assert a.shape == b.shape, (what, a.shape, b.shape)
    assert torch.equal(bits(a), bits(b)), (what, a, b)


def same_values(a: Tensor, b: Tensor, scale: float, what: object = "", rtol: float = 1e-5) -> None:
    """Asserts that no entry differs by more than `rtol` of `scale`."""
    assert a.shape == b.shape, (what, a.shape, b.shape)
    if a.numel():
        worst = float((a.double() - b.double()).abs().max())
        assert worst <= rtol * scale, (what, worst, rtol * scale)


def keys(n: int, rank: int = 1) -> list[Key]:
    """Returns n unrelated keys."""
    base = Key(seed=2024, rank=rank)
    return [replace(base, round=round) for round in range(n)]
