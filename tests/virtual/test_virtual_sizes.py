"""Sizes alone say what is really said: the same turns, to the same ranks, as long."""

from __future__ import annotations

import pytest
import torch

import thinwire as tw
from thinwire.exchange import hear
from thinwire.flat import Spans
from thinwire.transport.base import Reduce
from thinwire.virtual import Place, Sizes, sized_round
from thinwire.virtual.sizes import TENSOR, Sized
from thinwire.wire.frame import HEADER

EIGHT = tw.QSGD(bits=8, norm="max", scale="none", bucket=64, coding="fixed")
SIGNTOPK = tw.TopK(density=0.05) >> tw.Sign()
CASES = [
    (tw.Server(), SIGNTOPK),
    (tw.Server(tw.NoFeedback(), root=2), tw.Identity()),
    (tw.Server(downlink=tw.TopK(density=0.1)), SIGNTOPK),
    (tw.Server(), tw.TopK(density=0.01)),
    (tw.Gather(), SIGNTOPK),
    (tw.AllReduce(), tw.Identity()),
    (tw.Ring("ring", pipeline=100), EIGHT),
    (tw.Ring("two-phase", pipeline=70), EIGHT),
    (tw.Ring("two-phase"), tw.Identity()),
    (tw.Ring("gather", tw.Feedback()), SIGNTOPK),
    (tw.Gossip(), EIGHT),
    (tw.Gossip(tw.Exponential(), correction=0.5), EIGHT),
    (tw.Choco(), tw.TopK(density=0.1)),
    (tw.Choco(gamma=0.5), SIGNTOPK),
    (tw.DeepSqueeze(tw.Complete()), tw.QSGD(bits=8, norm="max", bucket=64, coding="fixed")),
    (tw.DPSGD(tw.RandomMatching(), mixing="before"), tw.Identity()),
    (tw.DPSGD(tw.OnePeerExponential()), tw.Identity()),
    (tw.EdgeGossip(), EIGHT),
    (tw.Marsit(K=2), tw.Sign()),
]
SPANS = Spans(("w", "b"), ((30, 60), (60,)))


def asks(talk):
    """Every ask of a talk of sizes, which looks at no answer."""
    said = []
    try:
        ask = next(talk)
        while True:
            said.append(ask)
            ask = talk.send([])
    except StopIteration:
        return said


def really_said(exchange, C, N, rounds):
    """Each rank's asks of each round, of talks that hear each other in one process."""
    workers = []
    for rank in range(N):
        torch.manual_seed(0)
        net = torch.nn.Linear(60, 31)
        inner = torch.optim.SGD(net.parameters(), lr=0.1)
        workers.append(
            tw.LocalSGD(net, inner, compressor=C, exchange=exchange, group=tw.Seat(rank, N))
        )
    heard = [Listener(w.stats) for w in workers]
    cluster = tw.LockStep(workers)
    said = []
    for round in range(rounds):
        for rank, worker in enumerate(workers):
            heard[rank].asks.clear()
            cluster._observers[rank] = heard[rank]
            draw = torch.Generator().manual_seed(99 * round + rank)
            for p in worker.param_groups[0]["params"]:
                p.grad = torch.randn(p.shape, generator=draw)
        cluster.step()
        said.append([list(h.asks) for h in heard])
    return workers[0].spans, said


class Listener:
    def __init__(self, stats):
        self.asks = []

    def asked(self, ask, rank):
        self.asks.append(ask)

    def answered(self, ask, answer, rank):
        pass


def shape(ask):
    if isinstance(ask, Reduce):
        return ("sum", ask.vector.numel())
    return ([p.to for p in ask.posts], [t.source for t in ask.takes])


ROUNDS = [
    (exchange, C, N, together)
    for exchange, C in CASES
    for N in (2, 4, 8)
    # Of all exchanges these look at how much is heard together.
    for together in (hear.TOGETHER, *([0] * isinstance(exchange, (tw.Gather, tw.Ring, tw.Marsit))))
    if not (isinstance(exchange, tw.Server) and exchange.root >= N)
]


@pytest.mark.parametrize(("exchange", "C", "N", "together"), ROUNDS, ids=repr)
def test_a_round_of_sizes_says_what_the_round_says(exchange, C, N, together, monkeypatch) -> None:
    monkeypatch.setattr(hear, "TOGETHER", together)
    rounds = 3
    spans, said = really_said(exchange, C, N, rounds)
    sizes = Sizes(C, spans)
    for round in range(rounds):
        for rank in range(N):
            ours = asks(sized_round(exchange, Place(rank, N, round, 0, sizes)))
            theirs = said[round][rank]
            assert [shape(a) for a in ours] == [shape(a) for a in theirs]
            for a, b in zip(ours, theirs, strict=True):
                for post, real in zip(
                    getattr(a, "posts", ()), getattr(b, "posts", ()), strict=True
                ):
                    # Sparse and entropy-coded frames vary by a little, as normal values do.
                    near = 0 if C.exact or post.frame.n == HEADER + 8 else 0.06
                    assert post.frame.n == pytest.approx(len(real.frame), rel=near, abs=near * 60)


def test_a_large_model_is_more_of_the_same_tensors() -> None:
    d = 5 * TENSOR + 12_345
    tensors = Spans(tuple("abcdef"), (*(((TENSOR,),) * 5), (12_345,)))
    for C in (EIGHT, tw.Identity(), tw.Sign(), tw.QSGD(bits=4, coding="fixed")):
        assert Sizes(C, d).whole == HEADER + C.nbytes(tensors)
    for C in (SIGNTOPK, tw.TopK(density=0.01) >> tw.QSGD(bits=4)):
        assert Sizes(C, d).whole <= HEADER + C.nbytes(tensors)
        assert Sizes(C, d).whole == pytest.approx(d / TENSOR * Sizes(C, TENSOR).whole, rel=0.01)


def test_a_model_of_70_billion_takes_no_memory_and_no_time() -> None:
    d = 70_000_000_000
    assert Sizes(tw.Identity(), d).whole == HEADER + 4 * d
    assert Sizes(tw.TopK(density=0.01) >> tw.Sign(), d).whole < 4 * d / 200
    assert len(Sized(d)) == d


def test_what_depends_on_what_is_learned_is_refused() -> None:
    with pytest.raises(tw.ConfigError, match="real frames"):
        asks(sized_round(tw.Asynchronous(), Place(0, 2, 0, 0, Sizes(SIGNTOPK, SPANS))))
