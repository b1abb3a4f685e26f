"""A round in place is the round, to the last bit, and needs no vector of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
from torch import nn

import thinwire as tw
from thinwire import QSGD, Feedback, Gather, Levels, NoFeedback, Sign, TopK, lean, shell

N = 3
PERMIT = NoFeedback(permit="biased")
COMPRESSORS = [
    TopK(density=0.1),
    TopK(k=3) >> Sign(),
    TopK(density=0.05, scope="global") >> QSGD(bits=4),
    TopK(k=2, scope="chunk", chunk=16) >> Levels(levels=3),
]


class Cluster:
    """N workers of one small model, some of its tensors in another dtype or layout."""

    def __init__(self, dtype: torch.dtype = torch.float32, **settings: object) -> None:
        self.models = []
        for _ in range(N):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5)).to(dtype)
            model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())
            self.models.append(model)
        self.workers = [
            tw.LocalSGD(
                m, torch.optim.SGD(m.parameters(), lr=0.05), group=tw.Seat(r, N), **settings
            )
            for r, m in enumerate(self.models)
        ]
        self.cluster = tw.LockStep(self.workers)

    def round(self, at: int, spoil: Callable[[nn.Module, int], None] | None = None) -> None:
        for rank, model in enumerate(self.models):
            g = torch.Generator().manual_seed(100 * at + rank)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn(p.shape, generator=g).to(p.dtype), alpha=0.1)
            if spoil is not None:
                spoil(model, rank)
        self.cluster.sync()

    def held(self) -> list[torch.Tensor]:
        tensors = []
        for model, worker in zip(self.models, self.workers, strict=True):
            tensors += [p.detach().clone() for p in model.parameters()]
            tensors += [worker.anchor.clone()]
            tensors += [] if worker.residual is None else [worker.residual.clone()]
        return tensors


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the rounds that are run in place."""
    seen: list[int] = []

    def counted(*args: object):
        seen.append(1)
        return lean.lean_round(*args)

    monkeypatch.setattr(shell, "lean_round", counted)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("feedback", [Feedback(), Feedback(decay=0.9), PERMIT], ids=repr)
@pytest.mark.parametrize("C", COMPRESSORS, ids=repr)
def test_a_round_in_place_is_the_round(
    C: tw.Compressor,
    feedback: Feedback | NoFeedback,
    dtype: torch.dtype,
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"compressor": C, "exchange": Gather(feedback), "outer": tw.Average(lr=0.9)}
    mine = Cluster(dtype, **settings)
    for at in range(4):
        mine.round(at)
    assert len(calls) == 4 * N
    monkeypatch.setattr(shell, "fits", lambda *_: False)
    defined = Cluster(dtype, **settings)
    for at in range(4):
        defined.round(at)
    assert len(calls) == 4 * N
    assert equal(mine.held(), defined.held())
    mine.round(4)
    assert not equal(mine.held(), defined.held())


def _nan(model: nn.Module, rank: int) -> None:
    if rank == 1:
        with torch.no_grad():
            model[1].bias[2] = torch.nan


def _huge(model: nn.Module, rank: int) -> None:
    with torch.no_grad():
        model[1].bias[2] = -3e38


@pytest.mark.parametrize(("spoil", "says"), [(_nan, "rank 1"), (_huge, "1.bias")])
def test_a_refused_round_has_written_nothing(spoil, says: str, calls: list[int]) -> None:
    mine = Cluster(compressor=TopK(density=0.2), exchange=Gather())
    mine.round(0)
    anchors = [(w.anchor.clone(), w.residual.clone()) for w in mine.workers]
    with pytest.raises(tw.NonFiniteError, match=says):
        mine.round(1, spoil)
    assert calls
    for worker, (anchor, residual) in zip(mine.workers, anchors, strict=True):
        assert torch.equal(worker.anchor, anchor)
        assert torch.equal(worker.residual, residual)
        assert worker.round == 1
    assert mine.models[0][1].bias[2] != anchors[0][0][-3]


def test_other_settings_and_the_definition_take_the_plain_round(calls: list[int]) -> None:
    for settings in (
        {"compressor": Sign(), "exchange": Gather()},
        {"compressor": TopK(k=2), "exchange": tw.Server()},
        {"compressor": TopK(k=2), "exchange": Gather(), "outer": tw.Nesterov()},
    ):
        Cluster(**settings).round(0)
    with tw.kernels.use("reference"):
        Cluster(compressor=TopK(k=2), exchange=Gather()).round(0)
    assert calls == []


MEASURE = """
    import sys, torch, thinwire as tw
    torch.set_num_threads(1)

    def peak():
        with open("/proc/self/status") as f:
            return next(int(l.split()[1]) * 1024 for l in f if l.startswith("VmHWM"))

    def now():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    def begin(d, exchange):
        p = [torch.nn.Parameter(torch.zeros(n)) for n in (d // 2, d - d // 2)]
        for q in p:
            q.grad = torch.randn(q.shape)
        C = tw.TopK(density=0.01) >> tw.QSGD(bits=4)
        inner = torch.optim.SGD(p, lr=0.1)
        return p, tw.LocalSGD(p, inner, compressor=C, exchange=exchange)

    def measure(d, exchange):
        p, optimizer = begin(300_000, exchange)
        optimizer.step()
        p, optimizer = begin(d, exchange)
        optimizer.inner.step()
        before = now()
        open("/proc/self/clear_refs", "w").write("5")
        optimizer.sync()
        return (peak() - before) / (4 * d)

    d = 16_000_000
    print(measure(d, tw.Gather()), measure(d, tw.Server()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_round_in_place_adds_a_tenth_of_a_vector_to_anchor_and_residual() -> None:
    script = textwrap.dedent(MEASURE)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    )
    in_place, plain = map(float, done.stdout.split())
    assert in_place < 0.10
    # The same measure sees the vectors of a round that is not in place.
    assert plain > 1.0
