"""The bits of the papers' ResNet-50 runs, counted as the papers count them."""

from __future__ import annotations

import math

import pytest
import torch

from thinwire import Identity, Key, Sign, TopK
from thinwire.cli.shapes import resnet50
from thinwire.flat import Spans
from thinwire.wire.body import pack

TOPK = TopK(k=1000)
SPANS = Spans(*zip(*resnet50(), strict=True))


def test_resnet50_has_161_tensors_and_25557032_parameters() -> None:
    assert len(resnet50()) == 161
    assert SPANS.d == 25_557_032
    assert len(set(SPANS.names)) == 161


def test_a_thousand_of_each_tensor_keeps_99400_entries() -> None:
    assert TOPK.layout(SPANS).kept == 99_400
    assert sum(min(math.prod(shape), 1000) for _, shape in resnet50()) == 99_400


@pytest.mark.parametrize(
    ("C", "megabits", "digits"),
    [
        (TOPK, 4.560, 3),
        (TOPK >> Sign(), 1.484, 3),
        (Sign(), 25.6, 1),
        (Identity(), 817.8, 1),
    ],
    ids=repr,
)
def test_fixed_width_bits_are_the_papers_table(C, megabits: float, digits: int) -> None:
    assert round(C.fixed_width_bits(SPANS) / 1e6, digits) == megabits


@pytest.mark.parametrize(
    ("C", "against_sgd"), [(Sign(), 32), (TOPK, 179), (TOPK >> Sign(), 551)], ids=repr
)
def test_the_ratios_against_sgd_are_the_papers_table(C, against_sgd: int) -> None:
    dense = Identity().fixed_width_bits(SPANS)
    assert round(dense / C.fixed_width_bits(SPANS)) == against_sgd


def test_local_steps_multiply_the_ratio() -> None:
    bits = (TOPK >> Sign()).fixed_width_bits(SPANS)
    dense, topk = Identity().fixed_width_bits(SPANS), TOPK.fixed_width_bits(SPANS)
    assert [round(bits / H / 1e6, 3) for H in (4, 8)] == [0.371, 0.186]
    assert [round(dense * H / bits) for H in (4, 8)] == [2204, 4408]
    assert [round(topk * H / bits, 2) for H in (1, 4, 8)] == [3.07, 12.29, 24.58]


@pytest.mark.slow
def test_the_real_bytes_of_a_resnet50_message_are_fewer_than_the_papers_count() -> None:
    u = torch.randn(SPANS.d, generator=torch.Generator().manual_seed(1))
    C = TOPK >> Sign()
    body = pack(C.compress(u, Key(0), SPANS), C)
    assert 8 * len(body) < C.fixed_width_bits(SPANS)
