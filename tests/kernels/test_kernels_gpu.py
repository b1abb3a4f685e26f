"""The Triton kernels agree with the definition bit for bit: on a CUDA device where there is one,
and else under Triton's interpreter, which takes milliseconds for what a device does in none.

The interpreter shows what a kernel means, not how a compiler rounds it: `test_kernels_compile.py`
reads that from what is compiled for a device.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from kernel_cases import KEY, NAMED, same, some_counts, vector

from thinwire import host, kernels
from thinwire.errors import ConfigError
from thinwire.kernels import Kernels, reference

pytestmark = [
    # The interpreter computes with numpy, which warns where the definition overflows, too.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else host.CPU

ONE = [0, 300]
FEW = [0, 0, 3, 200, 200, 300]
QUICK = [
    pytest.param(vector(name, starts[-1]), torch.tensor(starts), id=f"{name}-{len(starts) - 1}")
    for name, starts in [
        ("normal", FEW),
        ("wide", ONE),
        ("all_equal", FEW),
        ("two_valued", ONE),
        ("opposite_huge", [0, 150, 300]),
        ("subnormal", ONE),
        ("negative_zero", [0, 100, 300]),
        ("normal", [0, 1]),
        ("normal", [0, 0]),
    ]
]
SLOW = [
    pytest.param(v, starts, id=name, marks=pytest.mark.slow)
    for name, v, starts in NAMED
    if len(v) > 7 and len(starts) < 30
][::5]
cases = pytest.mark.parametrize(("v", "starts"), QUICK + SLOW)


@pytest.fixture(scope="module")
def gpu() -> Kernels:
    pytest.importorskip("triton")
    if DEVICE.type == "cuda":
        return kernels.active(DEVICE)
    with kernels.use("gpu") as table:
        return table


def there(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy where the kernels work."""
    return tensor.clone().to(DEVICE)


def agree(mine: torch.Tensor, defined: torch.Tensor) -> None:
    same(mine.cpu(), defined)


@cases
def test_measures_agree(v: torch.Tensor, starts: torch.Tensor, gpu: Kernels) -> None:
    for kind in ("l1", "l2", "max"):
        agree(gpu.norms(there(v), starts, kind), reference.norms(v, starts, kind))
    for mine, defined in zip(
        gpu.extrema(there(v), starts), reference.extrema(v, starts), strict=True
    ):
        agree(mine, defined)
    assert gpu.first_nonfinite(there(v), starts) == -1


@cases
def test_means_agree(v: torch.Tensor, starts: torch.Tensor, gpu: Kernels) -> None:
    mine, defined = there(v), v.clone()
    assert gpu.divide(mine, 3, starts) == reference.divide(defined, 3, starts)
    agree(mine, defined)


def test_sums_agree_over_the_edge_of_a_chunk(gpu: Kernels) -> None:
    n = 65536 + 300
    v = vector("wide", n)
    starts = torch.tensor([0, 65000, 65500, n])
    agree(gpu.norms(there(v), starts, "l1"), reference.norms(v, starts, "l1"))


def test_the_first_bad_group_is_named(gpu: Kernels) -> None:
    starts = torch.tensor([0, 10, 10, 90, 3000])
    for place, group in [(0, 0), (10, 2), (89, 2), (2999, 3)]:
        for bad in (torch.nan, torch.inf, -torch.inf):
            v = vector("normal", 3000)
            v[place] = v[2999] = bad
            assert gpu.first_nonfinite(there(v), starts) == group


@cases
def test_selections_agree(v: torch.Tensor, starts: torch.Tensor, gpu: Kernels) -> None:
    counts = some_counts(starts, 3)
    index = gpu.topk(there(v), starts, counts)
    agree(index, reference.topk(v, starts, counts))
    agree(gpu.gather(there(v), index), v[index.cpu()])
    agree(gpu.randk(starts, counts, KEY), reference.randk(starts, counts, KEY))


@pytest.mark.parametrize("n", [3000, pytest.param(40_000, marks=pytest.mark.slow)])
def test_ties_go_to_the_lower_index_over_the_edge_of_a_piece(n: int, gpu: Kernels) -> None:
    drawn = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(n))
    v, starts = drawn.float() - 1, torch.tensor([0, n // 2 + 7, n])
    for counts in (torch.tensor([n // 10, n // 3]), torch.tensor([0, n - n // 2 - 7])):
        agree(gpu.topk(there(v), starts, counts), reference.topk(v, starts, counts))


def test_infinities_and_nans_are_the_largest_magnitudes(gpu: Kernels) -> None:
    v = vector("normal", 100)
    v[[3, 50, 99]] = torch.tensor([torch.inf, torch.nan, -torch.inf])
    starts, counts = torch.tensor([0, 100]), torch.tensor([3])
    assert gpu.topk(there(v), starts, counts).tolist() == [3, 50, 99]


@cases
def test_rounding_around_zero_agrees(v: torch.Tensor, starts: torch.Tensor, gpu: Kernels) -> None:
    norm = reference.norms(v, starts, "l2")
    packed = gpu.quantize(there(v), starts, norm, 7, KEY)
    agree(packed, reference.quantize(v, starts, norm, 7, KEY))
    coded = packed.cpu(), 4, starts, -7 * norm.double(), norm.double()
    agree_on_codes(v, coded, gpu)


@cases
def test_rounding_upwards_agrees(v: torch.Tensor, starts: torch.Tensor, gpu: Kernels) -> None:
    lo, hi = reference.extrema(v, starts)
    step = (hi / 15 - lo / 15).clamp(max=host.LARGEST)
    packed = gpu.quantize_levels(there(v), starts, lo, step, 15, KEY)
    agree(packed, reference.quantize_levels(v, starts, lo, step, 15, KEY))
    for ours, theirs in zip(gpu.signs(there(v), starts), reference.signs(v, starts), strict=True):
        agree(ours, theirs)


@pytest.mark.parametrize("levels", [1, 32767])
def test_rounding_agrees_at_the_ends_of_the_widths(levels: int, gpu: Kernels) -> None:
    v, starts = vector("normal", 4400), torch.tensor([0, 100, 4400])
    norm = reference.norms(v, starts, "max")
    packed = gpu.quantize(there(v), starts, norm, levels, KEY)
    agree(packed, reference.quantize(v, starts, norm, levels, KEY))
    lo, hi = reference.extrema(v, starts)
    step = (hi - lo) / levels
    packed = gpu.quantize_levels(there(v), starts, lo, step, levels, KEY)
    agree(packed, reference.quantize_levels(v, starts, lo, step, levels, KEY))


def agree_on_codes(
    v: torch.Tensor,
    coded: tuple[torch.Tensor, int, torch.Tensor, torch.Tensor, torch.Tensor],
    gpu: Kernels,
) -> None:
    sent = there(coded[0]), *coded[1:]
    agree(gpu.fit(there(v), *sent), reference.fit(v, *coded))
    agree(gpu.decode(*sent), reference.decode(*coded))
    for index, weight in ((None, -0.3), (torch.arange(v.numel()), 0.7)):
        mine, defined = there(v), v.clone()
        gpu.accumulate_codes(mine, None if index is None else there(index), *sent, weight)
        reference.accumulate_codes(defined, index, *coded, weight)
        agree(mine, defined)


def test_decoding_agrees_for_any_scales_a_frame_may_hold(gpu: Kernels) -> None:
    starts = torch.arange(0, 36 * 9, 9)
    codes = torch.arange(35 * 9, dtype=torch.int32) % 16
    packed = reference.pack(codes, 4)
    lows = torch.tensor([-3.0, 0.0, -0.0, 0.1, -3.4e38]).double().repeat_interleave(7)
    steps = torch.tensor([1.0, -1.0, 0.0, -0.0, 0.1, 1e-45, 3.4e38]).double().repeat(5)
    coded = 4, starts, lows, steps
    agree(gpu.decode(there(packed), *coded), reference.decode(packed, *coded))


@pytest.mark.parametrize("width", range(1, 17))
def test_packing_agrees(width: int, gpu: Kernels) -> None:
    for n in (0, 5, 4099):
        drawn = torch.Generator().manual_seed(n)
        codes = torch.randint(0, 1 << width, (n,), generator=drawn, dtype=torch.int32)
        data = reference.pack(codes, width)
        agree(gpu.pack(there(codes | -(1 << width)), width), data)
        agree(gpu.unpack(there(data), n, width), codes)
        assert gpu.largest_code(there(data), n, width) == int(codes.max() if n else 0)
    assert gpu.largest_code(there(data | 128), n, width) == reference.largest_code(
        data | 128, n, width
    )


@pytest.mark.parametrize("lengths", [[3, 0, 1, 300], [1500, 2]])
def test_rotations_agree(lengths: list[int], gpu: Kernels) -> None:
    starts = torch.tensor([0, *lengths]).cumsum(0)
    padded = torch.tensor([0, *(1 << (n - 1).bit_length() if n else 0 for n in lengths)]).cumsum(0)
    v = vector("wide", int(starts[-1])).clamp(-1e30, 1e30)
    turned = reference.hadamard(v, starts, padded, KEY, False)
    agree(gpu.hadamard(there(v), starts, padded, KEY, False), turned)
    back = reference.hadamard(turned, starts, padded, KEY, True)
    agree(gpu.hadamard(there(turned), starts, padded, KEY, True), back)


@cases
def test_accumulation_agrees(v: torch.Tensor, starts: torch.Tensor, gpu: Kernels) -> None:
    index = reference.topk(v, starts, some_counts(starts, 10))
    mine, defined = there(v), v.clone()
    for weight in (-1.0, 0.3):
        gpu.accumulate(mine, there(index), there(v[index]), weight)
        reference.accumulate(defined, index, v[index], weight)
        gpu.accumulate(mine, None, there(v), weight)
        reference.accumulate(defined, None, v, weight)
        agree(mine, defined)
    if v.numel():
        with pytest.raises(IndexError, match="index outside"):
            gpu.accumulate(mine, there(torch.tensor([v.numel()])), there(v[:1]), 1.0)


@pytest.mark.parametrize("n", [0, 1, 1500])
def test_words_agree(n: int, gpu: Kernels) -> None:
    for key in (KEY, (0, 0), (2**32 - 1, 1)):
        agree(gpu.words(n, key), reference.words(n, key))


def test_triton_is_imported_for_a_cuda_vector_alone_and_missed_in_one_error() -> None:
    # Making an optimizer would import it, too: torch itself looks for Triton then.
    program = """
import sys, torch, thinwire as tw
from thinwire import kernels
C = tw.TopK(k=2) >> tw.QSGD(bits=4)
C.decompress(C.compress(torch.ones(9), tw.Key(0)))
assert not [name for name in sys.modules if name.split(".")[0] == "triton"]
sys.modules["triton"] = None
try:
    kernels.active(torch.device("cuda", 0))
except tw.ConfigError as error:
    print(error)
"""
    called = [sys.executable, "-c", program]
    done = subprocess.run(called, capture_output=True, text=True, timeout=120, check=True)
    assert "pip install 'thinwire[gpu]'" in done.stdout
    assert "cuda:0" in done.stdout


def test_a_triton_that_rounds_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    from thinwire.kernels.gpu_support import check_version

    check_version()
    monkeypatch.setattr(triton, "__version__", "3.5.1")
    with pytest.raises(ConfigError, match=r"Triton 3\.5\.1"):
        check_version()


def test_the_gpu_table_refuses_vectors_of_the_host_but_under_the_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    from thinwire.kernels import gpu

    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    with pytest.raises(ConfigError, match="TRITON_INTERPRET=1"):
        kernels._on_device(host.CPU)


def test_a_device_chooses_its_table_and_use_overrides_it(gpu: Kernels) -> None:
    cuda = torch.device("cuda", 0)
    assert (kernels.active().name, kernels.active(cuda).name) == ("cpu", "gpu")
    with kernels.use("reference"):
        assert (kernels.active().name, kernels.active(cuda).name) == ("reference", "reference")
    assert gpu.name == "gpu"
    with pytest.raises(ValueError, match="reference, cpu, gpu"), kernels.use("tpu"):
        pass
    assert issubclass(ConfigError, ValueError)


def test_what_goes_by_way_of_the_host_agrees_and_changes_what_it_is_given(gpu: Kernels) -> None:
    def given(device: torch.device) -> kernels.Owed:
        v = [vector("normal", n).to(device) for n in (300, 300, 300)]
        return kernels.Owed(v[0] * 2, (v[1][:100], v[1][100:] + 1), v[2] * 0.1, 0.9)

    mine, defined = given(DEVICE), given(host.CPU)
    starts, counts = torch.tensor([0, 100, 300]), torch.tensor([3, 7])
    agree(gpu.owe(mine), reference.owe(defined))
    picked, chosen = gpu.pick(mine, starts, counts), reference.pick(defined, starts, counts)
    for part, meant in zip(picked, chosen, strict=True):
        assert part.device == DEVICE
        agree(part, meant)
    gpu.settle(mine, picked[0], picked[1] * 0.5)
    reference.settle(defined, chosen[0], chosen[1] * 0.5)
    gpu.scatter(mine.params, *picked)
    reference.scatter(defined.params, *chosen)
    gpu.land(mine.anchor, mine.params, 3, 0.7)
    reference.land(defined.anchor, defined.params, 3, 0.7)
    assert mine.residual is not None
    assert defined.residual is not None
    for part, meant in (
        (mine.residual, defined.residual),
        (mine.anchor, defined.anchor),
        *zip(mine.params, defined.params, strict=True),
    ):
        agree(part, meant)
    packed, levels = gpu.two_levels(mine.anchor, starts)
    assert packed.device == DEVICE
    agree(packed, reference.two_levels(defined.anchor, starts)[0])
    agree(levels, reference.two_levels(defined.anchor, starts)[1])
