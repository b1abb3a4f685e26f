"""What every compressor must do, whatever it keeps and however it says it."""

from __future__ import annotations

import pytest
import torch
from laws.law_cases import COMPRESSORS, SPANS, each_case, same_bits, vector

import thinwire as tw
from thinwire import Key, kernels
from thinwire.compress import Codes, Compressor, Payload
from thinwire.flat import Spans
from thinwire.wire.body import Reader, pack, unpack

KEY = Key(seed=5, round=3, rank=2)
compressors = pytest.mark.parametrize("C", COMPRESSORS, ids=repr)


def through_the_wire(C: Compressor, payload: Payload, spans: Spans) -> tuple[Payload, bytes]:
    body = pack(payload, C)
    reader = Reader(body, "here")
    arrived = unpack(reader, C, spans, payload.key)
    reader.end()
    return arrived, body


def same_payload(a: Payload, b: Payload, what: object) -> None:
    assert (a.index is None) == (b.index is None), what
    if a.index is not None and b.index is not None:
        same_bits(a.index, b.index, what)
    assert type(a.values) is type(b.values), what
    if isinstance(a.values, Codes) and isinstance(b.values, Codes):
        same_bits(a.values.codes, b.values.codes, what)
        same_bits(a.values.scales, b.values.scales, what)
    elif isinstance(a.values, torch.Tensor) and isinstance(b.values, torch.Tensor):
        same_bits(a.values, b.values, what)


@compressors
def test_the_message_is_a_function_of_vector_and_key(C: Compressor) -> None:
    for what, spans, u in each_case(C):
        before = u.clone()
        first, second = C.compress(u, KEY, spans), C.compress(u.clone(), KEY, spans)
        same_payload(first, second, what)
        same_bits(u, before, what)


@compressors
def test_sender_and_every_receiver_decode_the_same_bits(C: Compressor) -> None:
    for what, spans, u in each_case(C):
        payload = C.compress(u, KEY, spans)
        arrived, _ = through_the_wire(C, payload, spans)
        same_payload(arrived, payload, what)
        same_bits(C.decompress(arrived), C.decompress(payload), what)


@compressors
def test_the_body_is_as_long_as_the_price_says(C: Compressor) -> None:
    for what, spans, u in each_case(C):
        body = pack(C.compress(u, KEY, spans), C)
        assert len(body) <= C.nbytes(spans), what
        if C.exact:
            assert len(body) == C.nbytes(spans), what


@compressors
def test_accumulating_is_adding_what_is_decompressed(C: Compressor) -> None:
    for what, spans, u in each_case(C):
        payload = C.compress(u, KEY, spans)
        total = vector("normal", spans, seed=9)
        expected = total + C.decompress(payload)
        C.accumulate(total, payload)
        same_bits(total, expected, what)


@compressors
def test_finite_in_finite_out(C: Compressor) -> None:
    for what, spans, u in each_case(C):
        said = C.decompress(C.compress(u, KEY, spans))
        assert said.shape == u.shape, what
        assert bool(said.isfinite().all()), what


@compressors
def test_a_zero_is_said_as_zero(C: Compressor) -> None:
    for name in ("all_zero", "negative_zeros"):
        for spans in SPANS.values():
            said = C.decompress(C.compress(vector(name, spans), KEY, spans))
            same_bits(said, torch.zeros(spans.d), (name, spans))


@compressors
def test_the_definition_and_the_fast_kernels_agree_on_whole_messages(C: Compressor) -> None:
    for what, spans, u in each_case(C):
        fast = C.compress(u, KEY, spans)
        said, body = C.decompress(fast), pack(fast, C)
        with kernels.use("reference"):
            slow = C.compress(u, KEY, spans)
            same_payload(slow, fast, what)
            same_bits(C.decompress(slow), said, what)
            arrived, again = through_the_wire(C, slow, spans)
            assert again == body, what
            same_bits(C.decompress(arrived), said, what)


@compressors
def test_what_is_kept_is_what_the_layout_announces(C: Compressor) -> None:
    for what, spans, u in each_case(C):
        payload = C.compress(u, KEY, spans)
        at = payload.layout
        assert at is C.layout(spans), what
        assert int(at.counts.sum()) == int(at.domain_counts.sum()) == at.kept, what
        assert C.values(payload).shape == (at.kept,), what
        if payload.index is None:
            assert at.kept == at.d, what
        else:
            assert len(payload.index) == at.kept, what
            assert bool((payload.index.diff() > 0).all()), what
        if isinstance(payload.values, Codes):
            assert payload.values.codes.shape == (at.n_codes,), what
            assert payload.values.scales.shape == (at.n_blocks, C.quantizer.scales), what
            assert bool((payload.values.codes >= 0).all()), what
            assert bool((payload.values.codes <= C.quantizer.top).all()), what


@compressors
def test_the_facts_are_sane(C: Compressor) -> None:
    for spans in SPANS.values():
        assert 0.0 <= C.contraction(spans) <= 1.0, spans
        assert C.nbytes(spans) >= 0
        assert C.fixed_width_bits(spans) >= 0
    assert C.biased == (C.sparsifier.drops_biased or C.quantizer.rounds_biased)


@compressors
def test_an_additive_message_sums_entry_by_entry(C: Compressor) -> None:
    if not C.additive:
        return
    spans = SPANS["tensors"]
    a, b = vector("normal", spans, 1), vector("normal", spans, 2)
    first = C.compress(a, Key(5, 3, 0), spans)
    second = C.compress(b, Key(5, 3, 1), spans)
    summed = Payload(first.layout, first.index, first.values + second.values, first.key)
    expected = C.decompress(first) + C.decompress(second)
    same_bits(C.decompress(summed), expected)


@compressors
def test_another_length_or_dtype_is_refused(C: Compressor) -> None:
    spans = SPANS["tensors"]
    for u in (torch.zeros(spans.d + 1), torch.zeros(spans.d, dtype=torch.float64)):
        with pytest.raises(tw.ConfigError, match="expected float32"):
            C.compress(u, KEY, spans)


@compressors
def test_fixed_width_accounting_counts_every_section(C: Compressor) -> None:
    for spans in SPANS.values():
        at = C.layout(spans)
        expected = at.n_codes * C.quantizer.width + 32 * C.quantizer.scales * at.n_blocks
        if C.sparsifier.says_index:
            for k, (lo, hi) in zip(
                at.domain_counts.tolist(),
                zip(at.domains.tolist(), at.domains.tolist()[1:], strict=False),
                strict=True,
            ):
                width = 0
                while (1 << width) < hi - lo:
                    width += 1
                expected += k * width
        assert C.fixed_width_bits(spans) == expected, spans


def test_the_bit_comparison_tells_zeros_apart() -> None:
    with pytest.raises(AssertionError):
        same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    with pytest.raises(AssertionError):
        same_bits(torch.tensor([0.0]), torch.tensor([0.0, 0.0]))


def test_the_payload_comparison_sees_another_scale_and_another_index() -> None:
    C, u = tw.TopK(k=2) >> tw.Sign(), torch.tensor([1.0, 2.0, 3.0])
    first = C.compress(u, KEY)
    with pytest.raises(AssertionError):
        same_payload(first, C.compress(u * 2, KEY), "scale")
    with pytest.raises(AssertionError):
        same_payload(first, C.compress(u.flip(0), KEY), "index")
