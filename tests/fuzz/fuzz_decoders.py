"""A coverage-guided fuzzer of every decoder: python tests/fuzz/fuzz_decoders.py -runs=1000000.

It needs atheris (`pip install thinwire[fuzz]`); options are libFuzzer's. Each input is a byte that
chooses a decoder, one that chooses what it expects, then what it is given. Coverage is that of the
definition in plain Python, and whatever the definition says, the compiled decoder must say too: the
same message or the same refusal. Any other end, a crash or an exception that is no FrameError, is a
finding.
"""

from __future__ import annotations

import random
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(
    include=["thinwire.kernels.reference", "thinwire.wire.body", "thinwire.wire.frame"]
):
    from thinwire.kernels import reference
    from thinwire.wire import body, frame

from thinwire import (
    QSGD,
    FrameError,
    Identity,
    Key,
    Levels,
    Rotated,
    Sign,
    Ternary,
    TopK,
    TwoLevel,
)
from thinwire.compress import Codes
from thinwire.flat import Spans
from thinwire.kernels import cpu

KEY = Key(1, 2, 0)
HERE = frame.Address(7, 2, 0)
SPANS = Spans(("a", "none", "b"), ((3, 5), (0,), (40,)))
OPERATORS = (
    Identity(),
    Sign(bucket=4),
    QSGD(bits=4),
    QSGD(bits=4, coding="fixed"),
    Levels(levels=5),
    Levels(levels=300),
    Rotated(levels=5, bucket=4),
    Ternary(),
    TwoLevel(bucket=20),
    TopK(k=4),
    TopK(k=6, scope="global") >> Sign(),
    TopK(k=3, scope="chunk", chunk=16) >> QSGD(levels=2),
    TopK(k=30) >> TwoLevel(),
)
COUNTS = ((2, 9), (0, 5), (20, 200), (3, 3000), (40, 50), (7, 70_000), (1, 2))
CODES = (
    (33, 4, 14),
    (200, 2, 3),
    (150, 1, 1),
    (90, 8, 200),
    (300, 9, 400),
    (0, 3, 5),
    (60, 16, 65534),
)
MANY = 70_000
"""Codes enough for eight lanes, too many for the definition to read each time."""

Answer = tuple[torch.Tensor | None, int, str]


def alike(given: Callable[..., Answer], meant: Callable[..., Answer], *what: object) -> None:
    """Raises an AssertionError unless both decoders answer the same."""
    a, b = given(*what), meant(*what)
    assert a[1:] == b[1:], (a, b)
    assert (a[0] is None) == (b[0] is None)
    assert a[0] is None or torch.equal(a[0], b[0])


def octets(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0).byte()


def groups(choice: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Two groups of positions; one domain of both for an odd choice."""
    picked = COUNTS[choice % len(COUNTS)], COUNTS[choice // 7 % len(COUNTS)]
    starts = torch.tensor([0, picked[0][1], picked[0][1] + picked[1][1]])
    return (
        torch.tensor([picked[0][0], picked[1][0]]),
        starts,
        starts[[0, 2]] if choice & 1 else None,
    )


def read_index(choice: int, data: bytes) -> None:
    alike(cpu.decode_index, reference.decode_index, octets(data), *groups(choice))


def read_codes(choice: int, data: bytes) -> None:
    alike(cpu.decode_codes, reference.decode_codes, octets(data), *CODES[choice % len(CODES)])


def read_many_codes(choice: int, data: bytes) -> None:
    packed, used, problem = cpu.decode_codes(octets(data), MANY, 1 + choice % 16, choice % 2 + 1)
    assert (packed is None) == bool(problem)
    assert used <= len(data)
    assert packed is None or 0 <= cpu.largest_code(packed, MANY, 1 + choice % 16) <= choice % 2 + 1


def read_body(choice: int, data: bytes) -> None:
    C = OPERATORS[choice % len(OPERATORS)]
    try:
        reader = body.Reader(data, "here")
        payload = body.unpack(reader, C, SPANS, KEY)
        reader.end()
    except FrameError:
        return
    if payload.index is not None:
        assert bool((payload.index.diff() > 0).all() and (payload.index < SPANS.d).all())
    if isinstance(payload.values, Codes):
        assert int(payload.values.codes.max()) <= C.quantizer.top
    assert C.decompress(payload).shape == (SPANS.d,)


def read_sparse(choice: int, data: bytes) -> None:
    try:
        vector = body.unpack_sparse(body.Reader(data, "here"), choice)
    except FrameError:
        return
    assert vector.shape == (choice,)


def read_frame(choice: int, data: bytes) -> None:
    try:
        frame.unseal(data, HERE, *frame.Kind)
    except FrameError:
        return
    # A greeting is read in every version.
    again = frame.seal(frame.Kind(data[3]), HERE, data[frame.HEADER :])
    assert data[2] != frame.VERSION or again == data


def read_index_wrongly(choice: int, data: bytes) -> None:
    """Stands for `read_index` where a fault is planted in the compiled decoder."""

    def decode(*given: torch.Tensor) -> Answer:
        index, used, problem = cpu.decode_index(*given)
        if index is not None and index.numel() > 20:
            if "--plant=raise" in sys.argv:
                raise IndexError("planted")
            used += 1
        return index, used, problem

    alike(decode, reference.decode_index, octets(data), *groups(choice))


READERS = (read_index, read_codes, read_body, read_many_codes, read_sparse, read_frame)


def one_input(data: bytes) -> None:
    """Gives one input to the decoder that its first two bytes choose."""
    if len(data) > 1:
        reader = READERS[data[0] % len(READERS)]
        planted = reader is read_index and any(a.startswith("--plant=") for a in sys.argv)
        (read_index_wrongly if planted else reader)(data[1], data[2:])


def valid(draw: random.Random) -> bytes:
    """Returns an input that some decoder accepts."""
    which, choice = draw.randrange(len(READERS)), draw.randrange(256)
    noise = torch.Generator().manual_seed(draw.randrange(1 << 30))
    reader = READERS[which]
    if reader is read_index:
        counts, starts, domains = groups(choice)
        index = cpu.randk(starts, counts, (draw.randrange(1 << 30), 1))
        data = body.as_bytes(cpu.encode_index(index, counts, starts, domains))
    elif reader in (read_codes, read_many_codes):
        n, width, top = CODES[choice % len(CODES)]
        if reader is read_many_codes:
            n, width, top = MANY, 1 + choice % 16, choice % 2 + 1
        steep = torch.rand(n, generator=noise) ** draw.choice([1, 3, 20])
        codes = (steep * (min(top, (1 << width) - 1) + 0.99)).int()
        data = body.as_bytes(cpu.encode_codes(cpu.pack(codes, width), n, width))
    elif reader is read_body:
        C = OPERATORS[choice % len(OPERATORS)]
        u = torch.randn(SPANS.d, generator=noise) ** draw.choice([1, 5])
        data = body.pack(C.compress(u, KEY, SPANS), C)
    elif reader is read_sparse:
        u = torch.randn(choice, generator=noise).clamp(min=0)
        index = u.nonzero().squeeze(1)
        data = body.pack_sparse(index, u[index], choice)
    else:
        data = frame.seal(draw.choice(list(frame.Kind)), HERE, draw.randbytes(choice))
    return bytes([which, choice]) + data


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """Returns a neighbour of the input, or of a valid one; often with a checksum put right."""
    draw = random.Random(seed)
    data = valid(draw) if draw.random() < 0.1 else data
    if draw.random() < 0.3 and len(data) > 2:
        some = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 5])):
            some[draw.randrange(2, len(some))] ^= 1 << draw.randrange(8)
        data = bytes(some)
    else:
        data = atheris.Mutate(data, min(most, len(data) + 16))
    if len(data) > 40 and READERS[data[0] % len(READERS)] is read_frame and draw.random() < 0.7:
        head = data[2:24]
        sealed = zlib.crc32(data[28:], zlib.crc32(head))
        data = data[:24] + sealed.to_bytes(4, "little") + data[28:]
    return data[:most]


def main() -> None:
    cpu.warm()
    torch.set_num_threads(1)
    draw = random.Random(1)
    with tempfile.TemporaryDirectory() as corpus:
        for i in range(300):
            (Path(corpus) / str(i)).write_bytes(valid(draw))
        options = ["-max_len=4096", "-rss_limit_mb=0", *sys.argv[1:], corpus]
        atheris.Setup([sys.argv[0], *options], one_input, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
