"""What codes weigh against their entropy, and what they cost, at ResNet-50's 25,557,032 entries.

Values are N(0, 1) from one seed, supports uniform. Times are CPU seconds of one thread, the least
of several runs, so that other work on the machine counts little; the copy is `y.copy_(x)` of the
same entries as float32.

    python bench/codes.py

The table is written to `--out` with date, machine, versions and seed; it takes about a minute.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from thinwire import QSGD, Key, Sign, Ternary, TopK, TwoLevel
from thinwire.compress import Codes, Compressor
from thinwire.kernels import cpu
from thinwire.runs import ran_on
from thinwire.wire.body import pack
from thinwire.wire.frame import Address, Kind, seal

SEED = 0
DENSE = (
    QSGD(bits=2),
    QSGD(bits=4),
    QSGD(bits=2, norm="max", bucket=64),
    QSGD(bits=4, norm="max", bucket=1024),
    QSGD(bits=8, norm="max", bucket=1024),
    TwoLevel(),
)
DENSITIES = (1e-4, 1e-3, 1e-2, 1 / 64, 0.05, 0.1)
IN_CHUNKS = (1, 2, 3, 4, 8, 64)
SPARSE = (TwoLevel(), Ternary(), QSGD(bits=2), TwoLevel(coding="fixed"), Sign())
T = TypeVar("T")


def least(act: Callable[[], T], times: int = 5) -> tuple[float, T]:
    """Returns the least CPU seconds of several runs, and what the last one answered."""
    seconds = []
    for _ in range(times):
        start = time.thread_time()
        answer = act()
        seconds.append(time.thread_time() - start)
    return min(seconds), answer


def entropy_bytes(codes: Tensor) -> float:
    p = torch.bincount(codes).double() / len(codes)
    return float(-(p * p.clamp(min=1e-300).log2()).sum()) * len(codes) / 8


def dense_row(C: Compressor, v: Tensor) -> str:
    said, n = C.compress(v, Key(SEED)).values, len(v)
    assert isinstance(said, Codes)
    wrote, data = least(lambda: cpu.encode_codes(said.packed, n, said.width))
    read, (packed, _, _) = least(lambda: cpu.decode_codes(data, n, said.width, C.quantizer.top))
    assert packed is not None
    assert torch.equal(packed, said.packed)
    entropy = entropy_bytes(said.codes)
    above = 100 * (len(data) / entropy - 1)
    return (
        f"| `{C}` | {len(said.packed):,} | {len(data):,} | {entropy:,.0f} | {above:.3f} % "
        f"| {wrote / n * 1e9:.2f} | {read / n * 1e9:.2f} |"
    )


def index_row(share: float, d: int) -> str:
    counts, starts = torch.tensor([int(d * share)]), torch.tensor([0, d])
    k = int(counts)
    index = cpu.randk(starts, counts, (SEED, 77))
    wrote, data = least(lambda: cpu.encode_index(index, counts, starts))
    read, (back, _, _) = least(lambda: cpu.decode_index(data, counts, starts))
    assert back is not None
    assert torch.equal(back, index)
    entropy = (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2) / 8
    return (
        f"| {share:g} | {len(data):,} | {entropy:,.0f} | {100 * (len(data) / entropy - 1):.2f} % "
        f"| {wrote / k * 1e9:.1f} | {read / k * 1e9:.1f} |"
    )


def chunk_row(each: int, d: int) -> str:
    starts = torch.tensor([*range(0, d, 4096), d])
    counts = torch.full((len(starts) - 1,), each)
    index = cpu.randk(starts, counts, (SEED, 78))
    data = cpu.encode_index(index, counts, starts, starts[[0, -1]])
    name = {2: "in the chunk, 12 bits", 3: f"Golomb-Rice, b = {int(data[0]) >> 3}"}
    return f"| {each} | {name[int(data[0]) & 7]} | {8 * len(data) / len(index):.3f} |"


def frame_row(C: Compressor, u: Tensor) -> str:
    payload = C.compress(u, Key(SEED))
    size = len(seal(Kind.SAID, Address(1, 2, 3), pack(payload, C)))
    left = float(((u - C.decompress(payload)).double() ** 2).sum() / (u.double() ** 2).sum())
    return f"| `{C}` | {size:,} | {4 * len(u) / size:.1f}x | {left:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entries", type=int, default=25_557_032)
    parser.add_argument("--out", type=Path, default=Path("bench/RESULTS-codes.md"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    cpu.warm()
    d = chosen.entries
    v = torch.randn(d, generator=torch.Generator().manual_seed(SEED))
    y = torch.empty_like(v)
    copy, _ = least(lambda: y.copy_(v))
    about = ran_on()
    lines = [
        "# What codes weigh, and what they cost",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, `python bench/codes.py`, seed {SEED}, d = {d:,}, "
        f"one thread, CPU time. {about}. `y.copy_(x)`: {copy / d * 1e9:.2f} ns an entry.",
        "",
        "## Codes of dense messages of N(0, 1)",
        "",
        "| operator | fixed width, bytes | coded | entropy | above it | ns to write | ns to read |",
        "|---|---|---|---|---|---|---|",
        *(dense_row(C, v) for C in DENSE),
        "",
        "## Index of uniform supports",
        "",
        "| k/d | bytes | log2 C(d, k) / 8 | above it | ns to write | ns to read |",
        "|---|---|---|---|---|---|",
        *(index_row(share, d) for share in DENSITIES),
        "",
        "## Index where every chunk of 4096 keeps the same count",
        "",
        "| kept of a chunk | the code that wins | bits a position |",
        "|---|---|---|",
        *(chunk_row(each, d) for each in IN_CHUNKS),
        "",
        "## Whole frames",
        "",
        "| operator | bytes, framed | smaller than float32 | left of norm squared |",
        "|---|---|---|---|",
        *(frame_row(TopK(density=0.015625) >> Q, v) for Q in SPARSE),
        "",
    ]
    chosen.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
