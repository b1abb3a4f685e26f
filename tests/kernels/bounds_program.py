"""Every decoder on valid and on broken bytes, compiled with bounds checks; run as a program.

It is told to plant an out-of-bounds read by the word "plant", to show that one would be seen.
"""

from __future__ import annotations

import random
import sys

import numba
import torch

from thinwire.kernels import (
    BodyShape,
    Marked,
    cpu,
    cpu_bodies,
    cpu_entropy_decode,
    cpu_index_sections,
    cpu_marked,
    index_bytes_bound,
    packed_bytes,
)
from thinwire.kernels.cpu_codes import get_block

STEEP = (1, 3, 20)


def codes_cases(draw: random.Random) -> None:
    n, width = draw.choice([(33, 4), (200, 2), (300, 9), (5000, 3), (70_000, 3), (60, 16)])
    noise = torch.Generator().manual_seed(draw.randrange(1 << 30))
    steep = torch.rand(n, generator=noise) ** draw.choice(STEEP)
    codes = (steep * ((1 << width) - 0.01)).int()
    data = cpu.encode_codes(cpu.pack(codes, width), n, width)
    packed, _, problem = cpu.decode_codes(data, n, width, (1 << width) - 1)
    assert problem == ""
    assert torch.equal(cpu.unpack(packed, n, width), codes)
    for broken in neighbours(data, draw):
        cpu.decode_codes(broken, n, width, draw.randrange(1 << width))
    books = torch.zeros(1, 1 << width)
    if width <= 8:
        cpu.look_up(packed, width, torch.tensor([0, n]), books)
    low, step = torch.zeros(1).double(), torch.ones(1).double()
    cpu.decode(packed, width, torch.tensor([0, n]), low, step)


def index_cases(draw: random.Random) -> None:
    lengths = [draw.choice([0, 1, 9, 64, 700, 5000]) for _ in range(draw.randrange(1, 4))]
    counts = torch.tensor([draw.randrange(length + 1) // draw.choice(STEEP) for length in lengths])
    starts = torch.tensor([0, *lengths]).cumsum(0)
    domains = draw.choice([starts, starts[[0, -1]]])
    index = cpu.randk(starts, counts, (draw.randrange(1 << 30), 1))
    data = cpu.encode_index(index, counts, starts, domains)
    back, _, problem = cpu.decode_index(data, counts, starts, domains)
    assert problem == ""
    assert torch.equal(back, index)
    for broken in neighbours(data, draw):
        cpu.decode_index(broken, counts, starts, domains)


def bodies_cases(draw: random.Random) -> None:
    starts = torch.tensor([0, draw.choice([9, 700, 70_000])])
    counts = starts[1:] // draw.choice([2, 5])
    n, width = int(counts), draw.choice([1, 3])
    index = cpu.randk(starts, counts, (draw.randrange(1 << 30), 1))
    said = cpu.encode_index(index, counts, starts), torch.zeros(4 + packed_bytes(n, width))
    body = torch.cat([part.to(torch.uint8) for part in said])
    bodies = [body, *neighbours(body, draw)]
    ends = torch.tensor([len(b) for b in bodies]).cumsum(0)
    cut = counts, starts, starts, index_bytes_bound(counts, starts)
    units = torch.tensor([[1.0, 1.0]]).double()
    shape = BodyShape(*cut, units, width, 1, torch.tensor([0, n]))
    x = torch.zeros(int(starts[1]))
    marked, touched = Marked.over(x, starts), torch.zeros(len(x), dtype=torch.int64)
    for number, one in enumerate(bodies):
        steps = one, torch.tensor([len(one)]), shape, torch.ones(1), 1e30
        done = [
            cpu.subtract_bodies(x, *steps, None, 0),
            cpu.subtract_bodies(x, *steps, touched, 0),
            cpu.subtract_bodies(marked, *steps, None, 0),
        ]
        assert number or all(len(sizes) == 1 for sizes in done)
        few = torch.tensor([draw.choice([1, int(starts[1]) // 100])])
        places, kept = cpu.pick_marked(marked, starts, few)
        x[places] -= kept
    divisors = torch.ones(len(bodies))
    cpu.subtract_bodies(x, torch.cat(bodies), ends, shape, divisors, 1e30, None, 0)


def neighbours(data: torch.Tensor, draw: random.Random) -> list[torch.Tensor]:
    """Returns the bytes cut, with bits turned, and noise after the first."""
    out = [data[: draw.randrange(len(data) + 1)] for _ in range(4)]
    for _ in range(8):
        flipped = data.clone()
        for _ in range(draw.choice([1, 2, 9])):
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        out.append(flipped)
    tail = torch.tensor(list(draw.randbytes(40)), dtype=torch.uint8)
    return [*out, torch.cat([data[:1], tail]), tail]


def main() -> None:
    assert numba.config.BOUNDSCHECK == 1
    if sys.argv[1:] == ["plant"]:
        scratch = torch.zeros(4096, dtype=torch.int16).numpy().view("uint16")
        get_block(torch.zeros(7, dtype=torch.uint8).numpy(), 16, scratch[:4])
    draw = random.Random(5)
    for _ in range(150):
        codes_cases(draw)
        index_cases(draw)
        bodies_cases(draw)
    for kernel in (
        cpu_entropy_decode._decode,
        cpu_entropy_decode._read_table,
        cpu_index_sections.read_index,
        cpu_bodies._subtract_bodies,
        cpu_marked._look,
        cpu_marked._renew,
    ):
        assert kernel.nopython_signatures
    print("no access out of bounds")


if __name__ == "__main__":
    main()
