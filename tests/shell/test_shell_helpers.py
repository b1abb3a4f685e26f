"""The assertion helpers of the shell's tests fail on wrong values."""

from __future__ import annotations

import pytest
import torch
from shell_cases import (
    Run,
    averaged_witness,
    close,
    net,
    put,
    replicas_agree,
    same_bits,
    sgd,
    through_a_file,
    vector,
    whole_state,
)

from thinwire import flat


def test_close_fails_beyond_its_tolerance() -> None:
    a = torch.ones(3)
    close(a, a + 1e-7)
    with pytest.raises(AssertionError):
        close(a, a + 1e-4)
    with pytest.raises(AssertionError):
        close(a, torch.ones(4))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.ones(2), torch.ones(3)),
        ({"a": torch.ones(1)}, {"a": torch.zeros(1)}),
        ({"a": 1}, {"b": 1}),
        ([1, 2], [1, 3]),
        ([1], [1, 2]),
        (1, 1.0),
    ],
)
def test_same_bits_fails_on_any_difference(a, b) -> None:
    same_bits(a, a)
    same_bits(b, b)
    with pytest.raises(AssertionError):
        same_bits(a, b)


def test_same_bits_takes_nan_for_itself() -> None:
    same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))


def test_replicas_agree_fails_on_one_other_bit() -> None:
    nets = [net(), net()]
    replicas_agree(nets)
    with torch.no_grad():
        nets[1][0].bias[0] += 1e-6
    with pytest.raises(AssertionError):
        replicas_agree(nets)


def test_the_witness_depends_on_the_data_the_steps_and_H() -> None:
    base = averaged_witness(2, 2, 4, sgd)
    for other in (averaged_witness(2, 4, 4, sgd), averaged_witness(3, 2, 4, sgd)):
        with pytest.raises(AssertionError):
            close(base, other, 1e-5)


def test_put_writes_what_vector_reads() -> None:
    a, b = net(0), net(1)
    with pytest.raises(AssertionError):
        same_bits(vector(a), vector(b))
    put(vector(a), b)
    same_bits(vector(a), vector(b))


def test_whole_state_is_a_copy_and_sees_a_step() -> None:
    run = Run(2).steps(1)
    before = whole_state(run)
    same_bits(before, whole_state(run))
    run.step()
    with pytest.raises(AssertionError):
        same_bits(before, whole_state(run))


def test_through_a_file_gives_equal_values_back() -> None:
    value = {"a": torch.ones(2), "b": [1, {"c": 2.0}]}
    same_bits(through_a_file(value), value)


def test_a_difference_formed_in_slices_has_the_bits_of_one_formed_whole() -> None:
    draws = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(4, 3, generator=draws).T,
        torch.randn(0, 2, generator=draws),
        torch.randn(5, generator=draws).bfloat16(),
        torch.randn(2, 3, generator=draws).double(),
        torch.randn(1, 2, 2, 2, generator=draws).to(memory_format=torch.channels_last),
    ]
    anchor = torch.randn(31, generator=draws)
    whole = flat.difference(anchor, tensors)
    lazy = flat.Difference(anchor, tensors)
    same_bits(lazy[:], whole)
    for low in range(32):
        for high in range(low, 32):
            same_bits(lazy[low:high], whole[low:high])
