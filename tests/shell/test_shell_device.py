"""With the model on a device the round works there, and only what is said leaves it."""

from __future__ import annotations

import pytest
import torch

import thinwire as tw
from thinwire import kernels

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("here is a real one: tests/gpu", allow_module_level=True)

from impostor import CUDA, Far, impostor

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]

SHAPES = ((20, 7), (0,), (3,))
D = sum(torch.Size(shape).numel() for shape in SHAPES)


def workers(N: int, far: bool, settings: dict) -> tuple[tw.LockStep, list[list[torch.Tensor]]]:
    shells, every = [], []
    for rank in range(N):
        draw = torch.Generator().manual_seed(0)
        tensors = [torch.randn(shape, generator=draw) for shape in SHAPES]
        params = [torch.nn.Parameter(Far(t) if far else t) for t in tensors]
        inner = torch.optim.SGD(params, lr=0.1)
        shells.append(tw.LocalSGD(params, inner, group=tw.Seat(rank, N), **settings))
        every.append(params)
    return tw.LockStep(shells), every


def train(cluster: tw.LockStep, every: list[list[torch.Tensor]], rounds: int) -> None:
    for round in range(rounds):
        for rank, params in enumerate(every):
            draw = torch.Generator().manual_seed(100 * round + rank)
            for p in params:
                grad = torch.randn(p.shape, generator=draw)
                p.grad = Far(grad) if isinstance(p, Far) else grad
        cluster.step()


def ends(cluster: tw.LockStep) -> list[torch.Tensor]:
    kept = [t for w in cluster.workers for t in (w.anchor, *w._state.mem.values())]
    return [t.near if isinstance(t, Far) else t for t in kept]


FEEDBACK = {"exchange": tw.Gather()}
SETTINGS = {
    "topk_qsgd_gather": {"compressor": tw.TopK(k=5) >> tw.QSGD(bits=4), **FEEDBACK},
    "sign_server": {"compressor": tw.Sign(), "exchange": tw.Server(tw.Feedback())},
    "randk_rescaled": {
        "compressor": tw.RandK(k=6, rescale=True),
        "exchange": tw.Gather(tw.NoFeedback()),
    },
    "topk_levels_chunks": {
        "compressor": tw.TopK(density=0.1, scope="chunk", chunk=64) >> tw.Levels(levels=3),
        **FEEDBACK,
    },
    "rotated": {"compressor": tw.Rotated(levels=255, bucket=64), **FEEDBACK},
    "downlink": {
        "compressor": tw.TopK(k=5),
        "exchange": tw.Server(downlink=tw.TopK(k=9)),
        "outer": tw.Nesterov(),
    },
}


QUICK = ("topk_qsgd_gather", "sign_server", "downlink")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(s, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, s in SETTINGS.items()
    ],
)
def test_a_model_on_a_device_ends_in_the_bits_of_one_on_the_host(settings: dict) -> None:
    with impostor():
        far, params = workers(2, True, settings)
        train(far, params, 2)
        on_device = ends(far)
        assert all(w.anchor.device == CUDA for w in far.workers)
    near, params = workers(2, False, settings)
    train(near, params, 2)
    for a, b in zip(on_device, ends(near), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", tw.PRESETS)
def test_every_preset_ends_in_the_bits_of_the_host(name: str) -> None:
    settings = tw.PRESETS[name]()
    settings["H"] = 1
    with impostor():
        far, params = workers(4, True, settings)
        train(far, params, 2)
        on_device = ends(far)
    near, params = workers(4, False, settings)
    train(near, params, 2)
    for a, b in zip(on_device, ends(near), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("table", ["reference", "cpu"])
def test_another_table_may_be_forced_on_a_device(table: str) -> None:
    settings = SETTINGS["topk_qsgd_gather"]
    with impostor() as left:
        with kernels.use(table):
            far, params = workers(2, True, settings)
            train(far, params, 2)
        on_device = ends(far)
        # By way of the host, vectors and all.
        assert left.count((D,)) > 2 * 2
    near, params = workers(2, False, settings)
    train(near, params, 2)
    for a, b in zip(on_device, ends(near), strict=True):
        assert torch.equal(a, b)


def test_only_what_is_said_leaves_the_device_and_never_the_vector() -> None:
    k = 5
    settings = {"compressor": tw.TopK(k=k, scope="global") >> tw.QSGD(bits=4), **FEEDBACK}
    with impostor() as left:
        cluster, params = workers(2, True, settings)
        assert (D,) in left  # Before the first round all ranks compare what they start from.
        left.clear()
        train(cluster, params, 2)
        sizes = [torch.Size(shape).numel() for shape in left]
    # Indices, packed codes, and some sums of each group: none as long as the vector.
    assert max(sizes) <= k
    assert sum(sizes) < 2 * 2 * D / 4


def test_a_vector_on_a_device_does_not_mix_with_one_of_the_host() -> None:
    with impostor() as left:
        far = torch.zeros(3, device=CUDA)
        with pytest.raises(RuntimeError, match="same device"):
            far + torch.zeros(3)
        with pytest.raises((RuntimeError, TypeError)):
            far.numpy()
        assert left == []
        assert far.cpu().tolist() == [0, 0, 0]
        assert left == [(3,)]


def test_a_checkpoint_of_the_host_goes_on_where_the_model_is() -> None:
    settings = SETTINGS["downlink"]
    near, params = workers(2, False, settings)
    train(near, params, 1)
    saved = [w.state_dict() for w in near.workers]
    with impostor():
        far, params = workers(2, True, settings)
        for worker, state in zip(far.workers, saved, strict=True):
            worker.load_state_dict(state)
        assert {t.device for w in far.workers for t in w._state.mem.values()} == {CUDA}
        assert all(w.anchor.device == CUDA for w in far.workers)
