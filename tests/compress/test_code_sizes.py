"""What messages weigh: the smallest form wins, and how small that is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from thinwire import QSGD, ConfigError, Key, Levels, Rotated, Sign, Ternary, TopK, TwoLevel
from thinwire.compress import Compressor
from thinwire.wire.body import pack
from thinwire.wire.frame import Address, Kind, seal

KEY = Key(3, 1, 0)
RESNET50 = 25_557_032


def drawn(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def framed(C: Compressor, u: torch.Tensor) -> int:
    return len(seal(Kind.SAID, Address(1, 2, 3), pack(C.compress(u, KEY), C)))


QUANTIZERS = [
    QSGD(bits=4),
    QSGD(bits=2, norm="max", bucket=64),
    Levels(levels=15),
    Rotated(levels=15),
    Ternary(),
    TwoLevel(),
]


@pytest.mark.parametrize("C", QUANTIZERS, ids=repr)
def test_the_smallest_form_is_never_more_than_a_byte_above_fixed_width(C: Compressor) -> None:
    fixed = replace(C, coding="fixed")
    assert fixed.exact
    assert not C.exact
    for n in (0, 1, 10, 100, 1000, 30_000):
        assert framed(fixed, drawn(n)) == 26 + fixed.nbytes(n)
        assert framed(C, drawn(n)) <= 1 + framed(fixed, drawn(n))
        assert C.nbytes(n) == fixed.nbytes(n) + 1
    assert framed(C, drawn(30_000)) < 0.97 * framed(fixed, drawn(30_000))


def test_both_forms_mean_the_same() -> None:
    u = drawn(5000)
    for C in QUANTIZERS:
        fixed = replace(C, coding="fixed")
        assert torch.equal(
            C.decompress(C.compress(u, KEY)), fixed.decompress(fixed.compress(u, KEY))
        )


def test_dense_qsgd_of_few_bits_takes_a_hundredth_of_its_fixed_width() -> None:
    # The l2 norm of a million entries leaves nearly all codes at zero.
    u = drawn(1_000_000)
    assert framed(QSGD(bits=4), u) * 40 < framed(QSGD(bits=4, coding="fixed"), u)
    assert framed(QSGD(bits=2), u) * 100 < framed(QSGD(bits=2, coding="fixed"), u)


def test_forty_of_7850_signs_take_at_most_ninety_bytes() -> None:
    C = TopK(k=40) >> Sign()
    assert max(framed(C, drawn(7850, seed)) for seed in range(20)) <= 90


def test_another_coding_is_refused() -> None:
    for make in (QSGD, Levels, Rotated, Ternary, TwoLevel):
        arguments = {"bits": 4} if make is QSGD else {}
        with pytest.raises(ConfigError, match="coding is 'huffman'"):
            make(coding="huffman", **arguments)


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_two_levels_lose_no_more_than_one(n: int) -> None:
    for seed in range(20):
        v = drawn(n, seed) ** 3
        lost = {
            C: float(((v - C.decompress(C.compress(v, KEY))) ** 2).sum())
            for C in (TwoLevel(), Sign())
        }
        assert lost[TwoLevel()] <= lost[Sign()] * (1 + 1e-5) + 1e-9
        bound = (1 - TwoLevel().contraction(n)) * float((v**2).sum())
        assert lost[TwoLevel()] <= bound * (1 + 1e-5) + 1e-9
    assert TwoLevel().contraction(n) >= Sign().contraction(n)


def ratio(C: Compressor, d: int) -> float:
    """Returns how many times smaller than float32 a framed message is."""
    return 4 * d / framed(C, drawn(d))


TWO_BITS = [TwoLevel(), QSGD(bits=2), Ternary()]
two_bits = pytest.mark.parametrize("then", TWO_BITS, ids=repr)


@two_bits
def test_a_sixty_fourth_in_two_bits_is_200_times_smaller_at_a_million(then: Compressor) -> None:
    assert ratio(TopK(density=0.015625) >> then, 1_000_000) >= 200


@pytest.mark.slow
@two_bits
def test_a_sixty_fourth_in_two_bits_is_200_times_smaller_at_resnet50(then: Compressor) -> None:
    assert ratio(TopK(density=0.015625) >> then, RESNET50) >= 200


def test_the_ratio_notices_a_larger_message() -> None:
    with pytest.raises(AssertionError):
        assert ratio(TopK(density=0.015625) >> QSGD(bits=8, norm="max"), 1_000_000) >= 200
