"""The Triton kernels against a copy on the same device and against plain torch, in one run.

    python bench/kernels_gpu.py

Each operation first agrees bit for bit with the kernels of the CPU; then it is timed, the least of
`--repeats`, whatever it brings to the host and waits for among it. The table is written to `--out`
with date, machine and versions, and `--json` takes the numbers. Without a CUDA device it stops;
under Triton's interpreter (TRITON_INTERPRET=1, and `--sizes 5000`) it only shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinwire import host, kernels
from thinwire.compress import QSGD, TopK
from thinwire.flat import Spans
from thinwire.keys import Key
from thinwire.runs import ran_on
from thinwire.wire.body import pack

SIZES = (100_000, 1_000_000, 25_557_032, 124_439_808)
"""Two round ones, ResNet-50 and GPT-2."""
KEY = (0x12345678, 0x9ABCDEF0)
WHOLE = TopK(density=0.01, scope="global") >> QSGD(bits=4, scope="tensor")


@dataclass(frozen=True)
class Result:
    """One operation at one size; None where a column does not apply."""

    op: str
    elements: int
    threads: int
    seconds: float
    copy_seconds: float
    torch_seconds: float | None
    bytes: int | None
    entropy_bytes: float | None


@dataclass(frozen=True)
class Case:
    """One operation: ours on any table, the same work in plain torch, and what it says."""

    op: str
    ours: Callable[[kernels.Kernels, Tensor], Tensor]
    torch: Callable[[Tensor], Any] | None = None
    says: Callable[[Tensor], int] | None = None
    kept: float | None = None


def qsgd(table: kernels.Kernels, v: Tensor) -> Tensor:
    starts = host.ints([0, len(v)])
    return table.quantize(v, starts, table.norms(v, starts, "l2"), 7, KEY)


def qsgd_torch(v: Tensor) -> Tensor:
    z = v * (7 / torch.linalg.vector_norm(v))
    return (z + torch.rand_like(z)).floor_().clamp_(-7, 7).to(torch.int8)


def sign(table: kernels.Kernels, v: Tensor) -> Tensor:
    table.norms(v, host.ints([0, len(v)]), "l1")
    return table.signs(v)


def add_codes(table: kernels.Kernels, v: Tensor) -> Tensor:
    packed = torch.full((kernels.packed_bytes(len(v), 4),), 0x5A, dtype=torch.uint8)
    steps = torch.tensor([-7.0]).double(), torch.tensor([1.0]).double()
    total = torch.zeros_like(v)
    starts = host.ints([0, len(v)])
    table.accumulate_codes(total, None, packed.to(v.device), 4, starts, *steps, 1.0)
    return total


def topk(density: float) -> Callable[[kernels.Kernels, Tensor], Tensor]:
    return lambda table, v: table.topk(
        v, host.ints([0, len(v)]), host.ints([round(density * len(v))])
    )


def randk(table: kernels.Kernels, v: Tensor) -> Tensor:
    return table.randk(host.ints([0, len(v)]), host.ints([round(0.01 * len(v))]), KEY)


def rotate(table: kernels.Kernels, v: Tensor) -> Tensor:
    n = len(v) // 1024 * 1024
    starts = torch.arange(0, n + 1, 1024)
    return table.hadamard(v[:n], starts, starts, KEY, False)


def residual(table: kernels.Kernels, v: Tensor) -> Tensor:
    """The whole step: compress, bring and code what is said, take it away from v."""
    u, spans = v.clone(), Spans.of(len(v))
    payload = WHOLE.compress(u, Key(0), spans)
    pack(payload, WHOLE)
    WHOLE.remove(u, payload)
    return u


def said(v: Tensor) -> int:
    return len(pack(WHOLE.compress(v, Key(0), Spans.of(len(v))), WHOLE))


CASES = [
    Case("qsgd 4-bit: norm, quantize, pack", qsgd, qsgd_torch, lambda v: (len(v) + 1) // 2),
    Case(
        "sign: norm, pack",
        sign,
        lambda v: (v.abs().sum(), v >= 0),
        lambda v: (len(v) + 7) // 8,
    ),
    Case("unpack + accumulate 4-bit, with its buffers", add_codes),
    Case("top-k 0.1 %", topk(0.001), lambda v: v.abs().topk(round(0.001 * len(v))), kept=0.001),
    Case("top-k 1 %", topk(0.01), lambda v: v.abs().topk(round(0.01 * len(v))), kept=0.01),
    Case("random-k 1 %", randk),
    Case("rotate in buckets of 1024", rotate),
    Case("TopK 1 % >> 4-bit: all of a step", residual, None, said, kept=0.01),
]


def best(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(repeats))


def entropy(d: int, k: int) -> float:
    """Bytes of log2 C(d, k) bits."""
    return (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2) / 8


def measure(case: Case, n: int, device: torch.device, repeats: int) -> Result:
    near = torch.randn(n, generator=torch.Generator().manual_seed(n))
    v, y, table = near.to(device), torch.empty(n, device=device), kernels.active(device)
    with kernels.use("cpu") as defined:
        expected = case.ours(defined, near)
    if not torch.equal(case.ours(table, v).cpu(), expected):
        raise SystemExit(f"{case.op}, {n} elements: {device} and the CPU differ")
    plain = case.torch
    return Result(
        case.op,
        n,
        torch.get_num_threads(),
        best(lambda: case.ours(table, v), device, repeats),
        best(lambda: y.copy_(v), device, repeats),
        None if plain is None else best(lambda: plain(v), device, repeats),
        None if case.says is None else case.says(v),
        None if case.kept is None else entropy(n, round(case.kept * n)),
    )


def table_of(results: list[Result], device: str) -> str:
    lines = [
        "# Triton kernels, timed on a device",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, `python bench/kernels_gpu.py`, on {device}. "
        + ran_on()
        + ".",
        "",
        "| operation | elements | ms | copies of the vector | plain torch / ours | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        faster = "" if r.torch_seconds is None else f"{r.torch_seconds / r.seconds:.1f}"
        lines.append(
            f"| {r.op} | {r.elements} | {1e3 * r.seconds:.3f} | {r.seconds / r.copy_seconds:.2f} "
            f"| {faster} | {'' if r.bytes is None else r.bytes} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    given = parser.parse_args()
    if torch.cuda.is_available():
        device, name = torch.device("cuda", 0), torch.cuda.get_device_name(0)
    else:
        device, name = host.CPU, "no device: Triton's interpreter, whose times mean nothing"
    # On the host the table must be asked for, and refuses but under the interpreter.
    with kernels.use("gpu") if device == host.CPU else nullcontext():
        results = [measure(c, n, device, given.repeats) for n in given.sizes for c in CASES]
    text = table_of(results, name)
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(r) for r in results]), encoding="utf-8")


if __name__ == "__main__":
    main()
