"""Every operation once, on vectors of real shapes: ours, plain torch's, and the bytes of both."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.cli import bench_torch as plain
from thinwire.cli.shapes import gpt2, resnet50
from thinwire.compress import QSGD, Codes, TopK
from thinwire.exchange import Here
from thinwire.exchange.feedback import say_owed
from thinwire.flat import Spans
from thinwire.kernels import Owed
from thinwire.kernels.parallel import ALONE
from thinwire.keys import Key

KEY = (0x12345678, 0x9ABCDEF0)
REST = 0.02
"""Seconds: several times as long as an OpenMP thread looks for work before it sleeps."""
TORCH_REPEATS = 3


@dataclass(frozen=True)
class Case:
    """One operation.

    Args:
        op: its name.
        run: does it; may return the bytes it made.
        torch: does the same in plain torch, or None where that has no such thing.
        entropy: the least bytes any code of such a message can have, or None.
    """

    op: str
    run: Callable[[], int | None]
    torch: Callable[[], object] | None = None
    entropy: float | None = None


def spans_of(name: str) -> Spans:
    """Returns the tensors of a size: a model's, or one vector of so many entries."""
    models = {"resnet50": resnet50, "gpt2": gpt2}
    if name not in models:
        return Spans.of(int(float(name)))
    names, shapes = zip(*models[name](), strict=True)
    return Spans(names, shapes)


def measure(name: str, threads: int, repeats: int, seed: int) -> list[dict[str, Any]]:
    """Returns one record of each operation.

    Args:
        name: a size, see `spans_of`.
        threads: of torch, and of the kernels.
        repeats: timings of each; the median counts.
        seed: of the vectors.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return list(_records(spans_of(name), threads, repeats, seed))
    finally:
        torch.set_num_threads(before)


def _records(spans: Spans, threads: int, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    u = torch.randn(spans.d, generator=torch.Generator().manual_seed(seed))
    y = torch.zeros_like(u)
    for case in _cases(u, spans, seed):
        case.run()
        ours, copies, made = [], [], None
        # A copy beside every run, so that both meet the same neighbours on a shared machine.
        for _ in range(repeats):
            _rest(threads, spans.d)
            copies.append(_timed(lambda: y.copy_(u))[0])
            _rest(threads, spans.d)
            seconds, made = _timed(case.run)
            ours.append(seconds)
        peer = None
        if case.torch is not None:
            rounds = min(repeats, TORCH_REPEATS)
            peer = statistics.median(_timed(case.torch)[0] for _ in range(rounds))
        yield {
            "op": case.op,
            "elements": spans.d,
            "threads": threads,
            "seconds": statistics.median(ours),
            "copy_seconds": statistics.median(copies),
            "torch_seconds": peer,
            "bytes": made,
            "entropy_bytes": case.entropy,
        }


def _rest(threads: int, d: int) -> None:
    """Waits until torch's threads sleep: after an operation they look for more, and hold a core."""
    until = time.perf_counter() + (REST if threads > 1 and d >= ALONE else 0.0)
    while time.perf_counter() < until:
        pass  # Awake itself: a core that slept is slow to begin with.


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = run()
    return time.perf_counter() - began, answer


def choose_bytes(d: int, k: int) -> float:
    """Returns log2 C(d, k) in bytes: what k places in d are worth.

    Example:
        >>> choose_bytes(256, 1)
        1.0
    """
    ways = math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)
    return round(ways / math.log(2) / 8, 6)


def level_bytes(codes: Tensor) -> float:
    """Returns the entropy of these codes in bytes, each drawn by its own frequency."""
    share = torch.bincount(codes).double() / max(1, len(codes))
    share = share[share > 0]
    return float(-(share * share.log2()).sum() * len(codes) / 8)


def _cases(u: Tensor, spans: Spans, seed: int) -> Iterator[Case]:
    yield from _quantizers(u)
    yield from _others(u)
    yield from _selections(u, spans)
    yield from _steps(u, spans, seed)


def _quantizers(u: Tensor) -> Iterator[Case]:
    table, d, one = kernels.active(), len(u), host.ints([0, len(u)])
    buckets = torch.cat([torch.arange(0, d, 512), host.ints([d])])
    for kind in ("l1", "l2", "max"):
        order = math.inf if kind == "max" else int(kind[1])
        yield Case(
            f"norm {kind}",
            lambda kind=kind: _none(table.norms(u, one, kind)),  # type: ignore[misc]
            lambda order=order: torch.linalg.vector_norm(u, order),  # type: ignore[misc]
        )
    for op, starts, kind in (
        ("QSGD 4-bit, l2", one, "l2"),
        ("QSGD 4-bit, max", one, "max"),
        ("QSGD 4-bit, max, buckets of 512", buckets, "max"),
    ):

        def quantize(starts: Tensor = starts, kind: str = kind) -> Tensor:
            return table.quantize(u, starts, table.norms(u, starts, kind), 7, KEY)

        codes = table.unpack(quantize(), d, 4)
        yield Case(
            op,
            lambda quantize=quantize: len(quantize()),  # type: ignore[misc]
            (lambda: plain.qsgd(u, 7)) if starts is one else None,
            level_bytes(codes),
        )
    packed = table.quantize(u, one, table.norms(u, one, "max"), 7, KEY)
    unit = table.norms(u, one, "max") / 7
    acc, steps = host.zeros(d), unit.double()
    yield Case(
        "unpack and accumulate, 4-bit",
        lambda: table.accumulate_codes(acc, None, packed, 4, one, -7 * steps, steps, 1.0),
        lambda: plain.unpack_add(acc, packed, float(unit), 7),
    )
    yield Case(
        "Sign: norm, quantize, pack",
        lambda: len(table.signs(u, one)[0]) + 4,
        lambda: plain.sign(u),
        d / 8,
    )


def _others(u: Tensor) -> Iterator[Case]:
    """What the other operators are made of."""
    table, d, one = kernels.active(), len(u), host.ints([0, len(u)])
    blocks = torch.cat([torch.arange(0, d, 1024), host.ints([d])])
    low, high = table.extrema(u, blocks)
    step = (high - low) / 255
    yield Case("extrema, buckets of 1024", lambda: _none(table.extrema(u, blocks)))
    yield Case(
        "Levels, 255 steps, buckets of 1024",
        lambda: len(table.quantize_levels(u, blocks, low, step, 255, KEY)),
    )
    packed = table.quantize(u, blocks, table.norms(u, blocks, "max"), 7, KEY)
    units = (table.norms(u, blocks, "max") / 7).double()
    at = packed, 4, blocks, -7 * units, units
    codes = level_bytes(table.unpack(packed, d, 4))
    coded = table.encode_codes(packed, d, 4)
    yield Case("fit of 4-bit codes", lambda: _none(table.fit(u, *at)))
    yield Case("decode of 4-bit codes", lambda: _none(table.decode(*at)))
    yield Case(
        "entropy-code 4-bit codes", lambda: len(table.encode_codes(packed, d, 4)), entropy=codes
    )
    yield Case("decode the entropy code", lambda: _none(table.decode_codes(coded, d, 4, 14)))
    yield Case("two levels", lambda: len(table.two_levels(u, one)[0]))
    width = 1 << (d - 1).bit_length()
    turned = host.ints([0, width])
    yield Case("random rotation", lambda: _none(table.hadamard(u, one, turned, KEY, False)))
    k = host.ints([max(1, d // 100)])
    yield Case("rand-k, 1 %", lambda: _none(table.randk(one, k, KEY)))


def _selections(u: Tensor, spans: Spans) -> Iterator[Case]:
    table, d, one = kernels.active(), len(u), host.ints([0, len(u)])
    for share in (0.001, 0.01):
        k = round(share * d)
        yield Case(
            f"top-k, {100 * share:g} %",
            lambda k=k: _none(table.topk(u, one, host.ints([k]))),  # type: ignore[misc]
            lambda k=k: torch.topk(u.abs(), k),  # type: ignore[misc]
        )
    counts = spans.starts.diff().clamp(max=1000)
    yield Case(
        f"top-k, {len(counts)} tensors, k = min(d, 1000)",
        lambda: _none(table.topk(u, spans.starts, counts)),
        lambda: plain.topk_each(u, spans.starts, counts),
    )
    equal, k = torch.full_like(u, 0.3), round(0.01 * d)
    yield Case("top-k, 1 %, all equal", lambda: _none(table.topk(equal, one, host.ints([k]))))
    for share in (0.0001, 0.01, 0.1):
        k = max(1, round(share * d))
        counts = host.ints([k])
        index = table.randk(one, counts, KEY)
        coded = table.encode_index(index, counts, one, None)
        yield Case(
            f"encode {100 * share:g} % of the places",
            lambda index=index, counts=counts: len(table.encode_index(index, counts, one, None)),  # type: ignore[misc]
            entropy=choose_bytes(d, k),
        )
        yield Case(
            f"decode {100 * share:g} % of the places",
            lambda coded=coded, counts=counts: _none(table.decode_index(coded, counts, one, None)),  # type: ignore[misc]
        )


def _steps(u: Tensor, spans: Spans, seed: int) -> Iterator[Case]:
    C = TopK(density=0.01) >> QSGD(bits=4)
    table = kernels.active()
    noise = torch.randn(spans.d, generator=torch.Generator().manual_seed(seed + 1))
    anchor = host.empty(spans.d).copy_(noise)
    params = tuple(torch.split(noise - u, list(spans.sizes)))
    here = Here(0, 1, 0, Key(seed), C, spans, 0)
    mine, peers = host.zeros(spans.d), torch.zeros_like(u)

    def step() -> int:
        owed = Owed(anchor, params, mine)
        saying = say_owed(owed, here)
        assert saying.payload is not None
        assert saying.payload.index is not None
        table.settle(owed, saying.payload.index, C.values(saying.payload))
        return len(saying.frame)

    counts = C.layout(spans).counts
    first = C.payload_of(C.keep(Owed(anchor, params), here.key, spans))
    assert isinstance(first.values, Codes)
    places = sum(
        choose_bytes(length, k) for length, k in zip(spans.sizes, counts.tolist(), strict=True)
    )
    yield Case(
        "whole step: TopK 1 % >> 4-bit, framed",
        step,
        lambda: plain.step(anchor, params, peers, spans.starts, counts, 7),
        places + level_bytes(first.values.codes),
    )


def _none(_: object) -> None:
    return None
