"""Any bytes are safe to give: they are refused with a FrameError, or they are a whole message."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thinwire import (
    QSGD,
    ConfigError,
    FrameError,
    Identity,
    Key,
    Levels,
    NonFiniteError,
    RandK,
    Rotated,
    Sign,
    Ternary,
    TopK,
    TwoLevel,
    kernels,
)
from thinwire.compress import Codes, Compressor
from thinwire.exchange import Here
from thinwire.exchange.agree import agree
from thinwire.exchange.downlink import decode_reply
from thinwire.flat import Spans
from thinwire.kernels.reference import SEGMENT
from thinwire.wire.body import Reader, pack, pack_sparse, unpack, unpack_sparse
from thinwire.wire.frame import HEADER, Address, Kind, length, seal, unseal

SPANS = Spans(("a", "none", "b"), ((3, 5), (0,), (9,)))
KEY = Key(1, 2, 0)
HERE = Address(7, 2, 0, 0)
OPERATORS: tuple[Compressor, ...] = (
    Identity(),
    TopK(k=4),
    TopK(k=6, scope="global"),
    RandK(k=3),
    Sign(bucket=4),
    QSGD(bits=3),
    Levels(levels=5),
    Rotated(levels=5, bucket=4),
    Ternary(),
    TwoLevel(bucket=10),
    QSGD(bits=4, coding="fixed"),
    TopK(k=4) >> Sign(),
    TopK(k=6, scope="chunk", chunk=16) >> TwoLevel(),
    TopK(k=3, scope="chunk", chunk=6) >> QSGD(levels=2),
    RandK(k=5) >> Levels(levels=4),
)
operators = st.sampled_from(OPERATORS)
fuzzed = settings(max_examples=200, deadline=None, derandomize=True, database=None)
long_fuzzed = settings(max_examples=5000, deadline=None, derandomize=True, database=None)


@st.composite
def mutated(draw, whole: bytes) -> bytes:
    """Bytes near a valid message: cut, grown, flipped or with a piece of noise."""
    body = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(body) - 1)))
        match draw(st.integers(0, 4)):
            case 0:
                del body[at:]
            case 1:
                del body[at : at + draw(st.integers(1, 4))]
            case 2:
                body[at:at] = draw(st.binary(max_size=6))
            case 3 if body:
                body[at] ^= 1 << draw(st.integers(0, 7))
            case _:
                piece = draw(st.binary(min_size=1, max_size=4))
                body[at : at + len(piece)] = piece
    return bytes(body)


def message(C: Compressor, seed: int) -> bytes:
    u = torch.randn(SPANS.d, generator=torch.Generator().manual_seed(seed))
    return pack(C.compress(u, KEY, SPANS), C)


def check_payload(body: bytes, C: Compressor) -> bool:
    """Asserts that the bytes are refused, or read as a sound payload; returns whether read."""
    reader = Reader(body, "here")
    try:
        payload = unpack(reader, C, SPANS, KEY)
        reader.end()
    except FrameError:
        return False
    at = C.layout(SPANS)
    if payload.index is not None:
        assert len(payload.index) == at.kept
        assert bool((payload.index.diff() > 0).all())
        assert bool((payload.index >= 0).all() and (payload.index < SPANS.d).all())
    if isinstance(payload.values, Codes):
        assert bool(payload.values.scales.isfinite().all())
        assert payload.values.codes.shape == (at.n_codes,)
        assert bool((payload.values.codes >= 0).all())
        assert bool((payload.values.codes <= C.quantizer.top).all())
    else:
        assert bool(payload.values.isfinite().all())
    # A receiver may take a stream that is not the shortest, so only the meaning comes back.
    again = unpack(Reader(pack(payload, C), "again"), C, SPANS, KEY)
    assert C.decompress(payload).equal(C.decompress(again)) or not bool(
        C.decompress(payload).isfinite().all()
    )
    return True


def test_whole_messages_pass_and_cut_ones_do_not() -> None:
    for C in OPERATORS:
        assert check_payload(message(C, 1), C)
        assert not check_payload(message(C, 1)[:-1], C)
        assert not check_payload(message(C, 1) + b"\0", C)


def test_the_check_notices_an_operator_that_reads_anything() -> None:
    # Read as of another operator a body has other tops and counts.
    body = message(QSGD(levels=7), 1)
    with pytest.raises(AssertionError):
        assert check_payload(body, TopK(k=4))


@fuzzed
@given(C=operators, body=st.binary(max_size=120))
def test_random_bytes_are_no_payload_or_a_sound_one(C: Compressor, body: bytes) -> None:
    check_payload(body, C)


@fuzzed
@given(data=st.data(), C=operators, seed=st.integers(0, 9))
def test_altered_messages_are_refused_or_sound(data, C: Compressor, seed: int) -> None:
    check_payload(data.draw(mutated(message(C, seed))), C)


@pytest.mark.slow
@long_fuzzed
@given(data=st.data(), C=operators, seed=st.integers(0, 99))
def test_many_altered_messages_are_refused_or_sound(data, C: Compressor, seed: int) -> None:
    check_payload(data.draw(mutated(message(C, seed))), C)


@fuzzed
@given(frame=st.binary(max_size=80))
@example(b"")
@example(b"tw")
@example(b"tw" + b"\0" * 24)
def test_random_bytes_are_no_frame(frame: bytes) -> None:
    for read in (length, lambda f: unseal(f, HERE, *Kind)):
        try:
            read(frame)
        except FrameError:
            continue
        assert frame[:2] == b"tw"


@fuzzed
@given(data=st.data(), body=st.binary(max_size=40))
def test_an_altered_frame_is_refused_or_the_same(data, body: bytes) -> None:
    whole = seal(Kind.SAID, HERE, body)
    frame = data.draw(mutated(whole))
    try:
        _, got = unseal(frame, HERE, Kind.SAID)
    except FrameError:
        return
    assert frame == whole
    assert got == body


@fuzzed
@given(d=st.integers(0, 60), body=st.binary(max_size=100))
def test_random_bytes_are_no_sparse_vector_or_a_sound_one(d: int, body: bytes) -> None:
    check_sparse(body, d)


@fuzzed
@given(data=st.data(), d=st.integers(1, 60), seed=st.integers(0, 99))
def test_an_altered_sparse_vector_is_refused_or_sound(data, d: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    vector = torch.randn(d, generator=g) * (torch.rand(d, generator=g) < 0.4)
    index = vector.nonzero().squeeze(1)
    check_sparse(data.draw(mutated(pack_sparse(index, vector[index], d))), d)


def check_sparse(body: bytes, d: int) -> None:
    try:
        vector = unpack_sparse(Reader(body, "here"), d)
    except FrameError:
        return
    assert vector.shape == (d,)
    assert bool(vector.isfinite().all())
    assert int(vector.count_nonzero()) <= int.from_bytes(body[:6], "little") <= d


def here(C: Compressor, N: int = 2) -> Here:
    return Here(1, N, 2, Key(1, 2, 1), C, SPANS, run=7)


def check_reply(kind: Kind, body: bytes, C: Compressor, downlink: Compressor | None) -> None:
    at = here(C)
    try:
        direction = decode_reply(kind, at.reader(memoryview(body), 0), downlink, at)
    except FrameError:
        return
    except NonFiniteError:
        return  # The master's own word, or messages whose sum is too large.
    assert kind is Kind.REPLY
    assert direction.shape == (SPANS.d,)
    assert bool(direction.isfinite().all())


@fuzzed
@given(
    C=operators,
    downlink=st.none() | operators,
    form=st.integers(0, 4),
    rest=st.binary(max_size=150),
)
def test_random_bytes_are_no_reply_or_a_finite_one(C, downlink, form: int, rest: bytes) -> None:
    check_reply(Kind.REPLY, bytes([form]) + rest, C, downlink)


@fuzzed
@given(data=st.data(), C=operators, seed=st.integers(0, 9))
def test_an_altered_reply_is_refused_or_finite(data, C: Compressor, seed: int) -> None:
    bundle = b"\x02" + message(C, seed) + message(C, seed + 1)
    dense = b"\x00" + message(Identity(), seed)
    compressed = b"\x03" + message(C, seed)
    check_reply(Kind.REPLY, data.draw(mutated(bundle)), C, None)
    check_reply(Kind.REPLY, data.draw(mutated(dense)), C, None)
    check_reply(Kind.REPLY, data.draw(mutated(compressed)), C, C)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
reasons = st.one_of(
    anything,
    st.fixed_dictionaries({"nonfinite": anything}),
    st.fixed_dictionaries({"nonfinite": st.lists(st.tuples(scalars, scalars), max_size=3)}),
    st.fixed_dictionaries({"frame": anything}),
)


@fuzzed
@given(reason=reasons)
@example({"nonfinite": [[float("inf"), "w"]]})
@example({"nonfinite": [[float("nan"), "w"]]})
@example({"nonfinite": [[10**400, "w"]]})
@example({"nonfinite": [[1, "w", 2]]})
@example({"nonfinite": "no"})
@example([])
@example("nonfinite")
def test_any_json_is_a_refusal_with_or_without_a_reason(reason: object) -> None:
    check_reply(Kind.REFUSAL, json.dumps(reason).encode(), Sign(), None)


@fuzzed
@given(body=st.binary(max_size=200))
@example(b"[" * 4096)
@example(b'{"frame":' * 400)
@example(b"\xff\xfe")
@example(b"1" * 4096)
def test_any_bytes_are_a_refusal_without_a_reason(body: bytes) -> None:
    check_reply(Kind.REFUSAL, body, Sign(), None)


def check_verdict(body: bytes) -> None:
    talk = agree({"settings": {}}, 1, 2)
    next(talk)
    talk.send([])
    try:
        talk.send([seal(Kind.VERDICT, Address(0, 0, 0), body)])
    except StopIteration as agreed:
        run, equal = agreed.value
        assert isinstance(run, int)
        assert isinstance(equal, bool)
    except (FrameError, ConfigError):
        return
    else:
        raise AssertionError("it goes on without an answer")


@fuzzed
@given(verdict=anything)
@example({"error": None})
@example({"error": None, "run": "7", "equal": True})
@example({"error": None, "run": 7, "equal": True})
@example([])
@example(None)
def test_any_json_is_a_verdict_or_refused(verdict: object) -> None:
    check_verdict(json.dumps(verdict).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000], ids=len)
def test_any_bytes_are_a_verdict_or_refused(body: bytes) -> None:
    check_verdict(body)


@fuzzed
@given(said=anything)
@example([])
@example({})
@example({"settings": 3})
@example({"settings": None, "tensors": 3})
@example({"tensors": [3]})
@example({"tensors": [["w"]]})
@example({"thinwire": {}})
@example({"start": []})
def test_any_json_of_a_hello_is_answered_with_a_verdict(said: object) -> None:
    check_hello(json.dumps(said).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000], ids=len)
def test_any_bytes_of_a_hello_are_answered_with_a_verdict(body: bytes) -> None:
    check_hello(body)


def check_hello(body: bytes) -> None:
    """Asserts that the root answers, since a root that dies unheard leaves the others waiting."""
    own = {"thinwire": "1", "settings": {"H": 1}, "tensors": [["w", [3]]], "start": "0"}
    talk = agree(own, 0, 2)
    next(talk)
    turn = talk.send([seal(Kind.HELLO, Address(0, 0, 1), body)])
    assert [post.to for post in turn.posts] == [1]
    assert turn.posts[0].frame[3] == Kind.VERDICT
    with pytest.raises(ConfigError, match="rank 1"):
        talk.send([])


# Memory: what is announced is checked against what is there before anything is made.


def peak(act) -> int:
    """Returns the most bytes that Python and NumPy held at once while `act` ran."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TensorBytes(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor that torch makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        held = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            new = isinstance(tensor, torch.Tensor)
            if new and tensor.untyped_storage().data_ptr() not in held:  # A view makes nothing.
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return out


def check_memory(act, most: int) -> None:
    """Asserts that `act` refuses with a FrameError and makes nothing larger than `most` bytes."""

    def refused() -> None:
        with pytest.raises(FrameError):
            act()

    with TensorBytes() as tensors:
        refused()
    assert tensors.largest <= most, tensors.largest
    assert peak(refused) <= most + 100_000


@pytest.mark.parametrize("n", [1 << 20, 1 << 40, (1 << 48) - 1])
def test_an_announced_count_makes_nothing(n: int) -> None:
    body = n.to_bytes(6, "little") + b"\0" * 30
    check_memory(lambda: unpack_sparse(Reader(body, "here"), 1 << 50), 1000)


@pytest.mark.parametrize("C", OPERATORS, ids=repr)
def test_a_short_body_of_a_large_model_makes_nothing_large(C: Compressor) -> None:
    # The layout is the receiver's own and is made before; the body is all that can be lied about.
    large = Spans(("a",), ((1 << 20,),))
    # So are the positions, 8 bytes for each entry that it knows to be kept, and the packed codes.
    at = C.layout(large)
    agreed = 8 * at.kept if C.sparsifier.says_index else 0
    if C.quantizer.coding == "smallest":
        agreed += kernels.packed_bytes(at.n_codes, C.quantizer.width)
    if not isinstance(C.sparsifier, RandK):
        check_memory(lambda: unpack(Reader(b"\1" * 40, "here"), C, large, KEY), agreed + 8192)


def test_a_stream_of_one_code_makes_no_more_than_the_packed_codes() -> None:
    large, C = 1 << 22, QSGD(bits=4)
    body = pack(C.compress(torch.zeros(large), KEY), C)
    assert len(body) < 16 + 44 * large // SEGMENT

    def read() -> None:
        reader = Reader(body + b"left over", "here")
        unpack(reader, C, Spans.of(large), KEY)
        reader.end()

    check_memory(read, large // 2 + (1 << 17))


def test_a_length_of_2_to_the_48_is_announced_and_nothing_is_made() -> None:
    head = bytearray(seal(Kind.SAID, HERE, b"")[:HEADER])
    head[16:22] = b"\xff" * 6
    check_memory(lambda: unseal(bytes(head), HERE, Kind.SAID), 1000)


def test_the_memory_check_notices_a_large_tensor() -> None:
    def wasteful() -> None:
        torch.zeros(1 << 20)
        raise FrameError("late")

    with pytest.raises(AssertionError):
        check_memory(wasteful, 8192)
