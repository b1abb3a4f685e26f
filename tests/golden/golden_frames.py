"""Every frame that is frozen, by name: each kind, each operator, each index code, each reply."""

from __future__ import annotations

import json
import struct

import torch

import thinwire as tw
from thinwire import (
    QSGD,
    Identity,
    Key,
    Levels,
    RandK,
    Rotated,
    Sign,
    Ternary,
    TopK,
    TwoLevel,
    kernels,
)
from thinwire.compress import Compressor
from thinwire.exchange.anchors import Form, Head, encode_values
from thinwire.exchange.hub import ENTRY, PIECE
from thinwire.flat import Spans
from thinwire.wire.body import as_bytes, pack, pack_sparse
from thinwire.wire.frame import REPAIR_PART, Address, Kind, seal

SPANS = Spans(("conv.weight", "conv.bias", "none", "scale", "fc"), ((8, 3), (8,), (0,), (), (9, 7)))
HERE = Address(run=0x1234ABCD, round=258, rank=3, part=0)
KEY = Key(seed=7, round=258, rank=3)

OPERATORS: dict[str, Compressor] = {
    "identity": Identity(),
    "topk": TopK(k=5),
    "topk_global": TopK(density=0.1, scope="global"),
    "topk_chunk": TopK(k=2, scope="chunk", chunk=16),
    "topk_small_dense": TopK(density=0.7, small_dense=True),
    "randk": RandK(k=5),
    "randk_rescaled": RandK(density=0.25, rescale=True),
    "sign": Sign(),
    "sign_bucket": Sign(bucket=10),
    "qsgd_fit": QSGD(bits=4),
    "qsgd_beta": QSGD(levels=5, scale="beta"),
    "qsgd_none_max": QSGD(bits=8, norm="max", scale="none", bucket=16),
    "levels_fit": Levels(),
    "levels_beta": Levels(levels=3, scale="beta"),
    "levels_none": Levels(levels=300, scale="none", scope="global"),
    "rotated_fit": Rotated(),
    "rotated_none": Rotated(levels=7, scale="none", bucket=16),
    "qsgd_fixed": QSGD(bits=4, coding="fixed"),
    "two_level": TwoLevel(),
    "two_level_bucket": TwoLevel(bucket=10, coding="fixed"),
    "ternary": Ternary(),
    "ternary_none": Ternary(scale="none", scope="global"),
    "topk_sign": TopK(k=5) >> Sign(),
    "topk_qsgd": TopK(density=0.2) >> QSGD(bits=3),
    "topk_levels": TopK(k=7, scope="global") >> Levels(levels=7),
    "topk_rotated": TopK(k=6) >> Rotated(levels=15, bucket=4),
    "topk_two_level": TopK(density=0.3) >> TwoLevel(),
    "topk_chunk_one": TopK(k=1, scope="chunk", chunk=16) >> QSGD(bits=4),
    "topk_ternary": TopK(k=6) >> Ternary(bucket=4),
    "randk_sign": RandK(k=6) >> Sign(),
    "randk_qsgd": RandK(density=0.3) >> QSGD(levels=2, norm="max"),
}


def vector() -> torch.Tensor:
    """Half-integers over a power of two: exact in every float, and made by no generator."""
    i = torch.arange(SPANS.d, dtype=torch.float32)
    return ((i * 37 + 11) % 97 - 48) / 32


def said(C: Compressor) -> bytes:
    return seal(Kind.SAID, HERE, pack(C.compress(vector(), KEY, SPANS), C))


def _index(body: bytes) -> bytes:
    return seal(Kind.REPLY, HERE, b"\x01" + body)


def _union(at: list[int], d: int) -> bytes:
    return _index(pack_sparse(torch.tensor(at, dtype=torch.int64), torch.ones(len(at)), d))


def _codes(codes: list[int], width: int) -> bytes:
    packed = kernels.active().pack(torch.tensor(codes, dtype=torch.int32), width)
    return seal(Kind.SAID, HERE, as_bytes(kernels.active().encode_codes(packed, len(codes), width)))


def _places(at: list[int], d: int) -> bytes:
    """An index section alone: as many float32 values would make the file four times as long."""
    index, counts = torch.tensor(at), torch.tensor([len(at)])
    section = kernels.active().encode_index(index, counts, torch.tensor([0, d]), None)
    return seal(Kind.SAID, HERE, as_bytes(section))


def _json(data: object) -> bytes:
    return json.dumps(data).encode()


def frames() -> dict[str, bytes]:
    """Returns every frozen frame, by the name of its file."""
    sign = TopK(k=5) >> Sign()
    bodies = [pack(sign.compress(vector() * s, KEY, SPANS), sign) for s in (1, -2)]
    plain = OPERATORS["qsgd_none_max"]
    tensors = [[n, list(s)] for n, s in zip(SPANS.names, SPANS.shapes, strict=True)]
    timeless = Address(0, 0, 3)
    out = {f"said_{name}": said(C) for name, C in OPERATORS.items()}
    out |= {
        "hello": seal(Kind.HELLO, timeless, _json({"thinwire": "0", "tensors": tensors})),
        "verdict": seal(Kind.VERDICT, timeless, _json({"error": None, "run": 1, "equal": True})),
        "vector": seal(Kind.VECTOR, HERE, as_bytes(vector())),
        "alarm": seal(Kind.ALARM, HERE, (4).to_bytes(4, "little")),
        "alarm_of_none": seal(Kind.ALARM, HERE, b"\xff" * 4),
        "refusal": seal(Kind.REFUSAL, HERE, _json({"nonfinite": [[1, "fc"]]})),
        "refusal_of_a_frame": seal(Kind.REFUSAL, HERE, _json({"frame": "truncated"})),
        "reply_dense": seal(Kind.REPLY, HERE, b"\x00" + as_bytes(vector())),
        "reply_bundle": seal(Kind.REPLY, HERE, b"\x02" + b"".join(bodies)),
        "reply_compressed": seal(Kind.REPLY, HERE, b"\x03" + bodies[0]),
        "index_none": _union([], 50),
        "index_all": _union(list(range(9)), 9),
        "index_bitmap": _union([0, 1, 3, 4, 5, 7, 8, 10, 12, 13, 15], 16),
        "index_fixed": _union([100, 101], 128),
        "index_rice": _union([3, 17, 30, 55, 61, 90, 104, 126], 128),
        "codes_as_packed": _codes([7, 0, 3, 1, 15, 9], 4),
        "codes_all_equal": _codes([7] * 1000, 4),
        "codes_in_one_lane": _codes([7 + (i % 9 == 0) - (i % 7 == 0) for i in range(1000)], 4),
        "codes_in_eight_lanes": _codes([(i * i % 97 == 0) * 300 for i in range(70000)], 9),
        "index_rice_of_large_gaps": _union([5000, 11000, 16383], 20000),
        "codes_in_segments": _codes([(i % 9973 == 0) * 3 for i in range((1 << 20) + 700)], 2),
        "places_in_pieces": _places([*range(65_537), 70_000, 80_000], 200_000),
        "silence": seal(Kind.SILENCE, HERE, b""),
        "number": seal(Kind.NUMBER, HERE, struct.pack("<d", 0.0703125)),
        "plea": seal(Kind.PLEA, HERE, pack(plain.compress(vector(), KEY, SPANS), plain)),
        "repair": seal(
            Kind.SAID,
            Address(0x1234ABCD, 258, 3, REPAIR_PART),
            as_bytes(vector()) + pack(plain.compress(vector(), KEY, SPANS), plain),
        ),
        "empty_body_part_1": seal(Kind.SAID, Address(1, 2, 65535, 1), b""),
    }
    return out | anchors(bodies)


def anchors(bodies: list[bytes]) -> dict[str, bytes]:
    """What a hub or an asynchronous master answers, in each of its forms."""

    def anchor(head: Head, rest: bytes) -> bytes:
        return seal(Kind.ANCHOR, HERE, head.pack() + rest)

    touched = torch.tensor([2, 40, 41], dtype=torch.int64)
    said = [seal(Kind.SAID, Address(HERE.run, n, 1 + n), body) for n, body in enumerate(bodies)]
    updates = b"".join(ENTRY.pack(2.0 * n + 3.0, len(f)) + f for n, f in enumerate(said))
    stream = b"".join(PIECE.pack(len(body)) + body for body in bodies)
    whole = Head(7, 9, True, Form.WHOLE)
    return {
        "anchor_whole": anchor(whole, as_bytes(vector())),
        "anchor_values": seal(Kind.ANCHOR, HERE, encode_values(vector(), touched, whole)),
        "anchor_updates": anchor(Head(7, 9, True, Form.UPDATES), updates),
        "anchor_stream": anchor(Head(7, 9, True, Form.STREAM), stream),
        "anchor_residual": anchor(Head(7, 9, True, Form.RESIDUAL), bodies[0]),
        "anchor_not_taken": anchor(Head(7, 7, False, Form.STREAM), b""),
    }


def read_back(name: str) -> tw.Compressor:
    return OPERATORS[name.removeprefix("said_")]
