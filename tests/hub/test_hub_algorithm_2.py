"""Qsparse-local-SGD, Algorithm 2, once more in a few lines of NumPy: the library must follow it.

The witness is given the library's own float32 differences and the gaps drawn, and nothing else:
it keeps its own clock, copies, residuals and model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from laws.talks import RUN, SEED
from peer_talks import same_bits

import thinwire as tw
from thinwire.errors import NonFiniteError
from thinwire.exchange import Here
from thinwire.exchange.driver import lockstep
from thinwire.flat import Spans
from thinwire.keys import Key
from thinwire.round import RoundState, one_round
from thinwire.schedule import H_at
from thinwire.stats import Stats

N, K, TICKS, ETA = 5, 6, 300, 0.05
SPANS = Spans(("w", "b"), ((3, 8), (9,)))
C = tw.TopK(k=K, scope="global") >> tw.Sign()


def gap(H, rank: int, round: int) -> int:
    return H_at(H, round, Key(SEED, round, rank))


class Run:
    """N workers on a quadratic each, on the library's rounds; keeps what they said and when."""

    def __init__(self, exchange: tw.Exchange, H, compressor=C, d: int = SPANS.d) -> None:
        self.exchange, self.H, self.C = exchange, H, compressor
        g = torch.Generator().manual_seed(1)
        self.centers = torch.randn(N, d, generator=g)
        self.noise = g
        self.start = torch.randn(d, generator=g)
        self.states = []
        for rank in range(N):
            outer = tw.Adopt().init(self.start)
            mem = exchange.init(self.here(rank, 0))
            self.states.append(RoundState(self.start, mem, outer, 0))
        self.params = [self.start.clone() for _ in range(N)]
        self.local = [0] * N
        self.deltas: list[dict[int, np.ndarray]] = []
        self.stats = [Stats() for _ in range(N)]

    def here(self, rank: int, round: int) -> Here:
        key = Key(SEED, round, rank)
        return Here(rank, N, round, key, self.C, SPANS, RUN, H=self.H)

    def tick(self) -> None:
        talks, spoke = [], {}
        for rank, state in enumerate(self.states):
            noise = torch.randn(SPANS.d, generator=self.noise)
            step = self.params[rank] - self.centers[rank] + 0.3 * noise
            self.params[rank] = self.params[rank] - ETA * step
            self.local[rank] += 1
            here = self.here(rank, state.round)
            if self.local[rank] >= gap(self.H, rank, state.round):
                spoke[rank] = (state.anchor - self.params[rank]).numpy()
                talks.append(one_round(state, [self.params[rank]], self.exchange, tw.Adopt(), here))
            else:
                talks.append(self.silent(state, here))
        self.states = lockstep(talks, self.stats)
        for rank in spoke:
            self.params[rank], self.local[rank] = self.states[rank].anchor.clone(), 0
        self.deltas.append(spoke)

    def silent(self, state: RoundState, here: Here):
        mem = yield from self.exchange.attend(state.anchor, state.mem, here)
        return replace(state, mem=mem)

    @property
    def x(self) -> torch.Tensor:
        state = self.states[getattr(self.exchange, "root", 0)]
        return self.exchange.agreed(state.anchor, state.mem)


def sign_top_k(u: np.ndarray) -> np.ndarray:
    kept = np.sort(np.argsort(-np.abs(u), kind="stable")[:K])
    g = np.zeros_like(u)
    # In float32 like the residual: where two entries nearly tie, another rounding keeps another.
    scale = np.float32(np.abs(u[kept]).sum(dtype=np.float64)) / np.float32(K)
    g[kept] = np.where(u[kept] >= 0, scale, -scale)
    return g


def algorithm_2(x: np.ndarray, gaps, deltas, divide_by=lambda spoke: N):
    m, copies = np.zeros((N, len(x)), np.float32), np.tile(x, (N, 1))
    next_time, spoken = [gaps(r, 0) for r in range(N)], [0] * N
    for t, given in enumerate(deltas, 1):
        S = [r for r in range(N) if next_time[r] == t]
        assert sorted(given) == S, "the library lets others speak"
        g = {r: sign_top_k(m[r] + given[r]) for r in S}
        for r in S:
            m[r] = m[r] + given[r] - g[r]
        x = x - sum((v.astype(np.float64) for v in g.values()), np.zeros_like(x)) / divide_by(S)
        for r in S:
            copies[r] = x
            spoken[r] += 1
            next_time[r] = t + gaps(r, spoken[r])
        yield x, copies.copy()


def check_follows(run: Run, divide_by=lambda spoke: N) -> None:
    start = run.start.double().numpy()
    mine = algorithm_2(start, lambda r, n: gap(run.H, r, n), run.deltas, divide_by)
    for (x, copies), (there, anchors) in zip(mine, run.trace, strict=True):
        assert np.abs(x - there).max() <= 1e-6 * max(1, np.abs(x).max())
        assert np.abs(copies - anchors).max() <= 1e-6 * max(1, np.abs(x).max())


def traced(exchange: tw.Exchange, H) -> Run:
    run = Run(exchange, H)
    run.trace = []
    for _ in range(TICKS):
        run.tick()
        anchors = torch.stack([s.anchor for s in run.states]).double().numpy()
        run.trace.append((run.x.double().numpy(), anchors))
    return run


@pytest.mark.parametrize("root", [0, 3])
@pytest.mark.parametrize("H", [tw.RandomGaps(8), tw.RandomGaps(3), ((0, 1), (5, 4))], ids=repr)
def test_three_hundred_ticks_follow_algorithm_2(H, root) -> None:
    check_follows(traced(tw.Asynchronous(root=root), H))


def test_dividing_by_who_spoke_would_be_noticed() -> None:
    run = traced(tw.Asynchronous(), tw.RandomGaps(4))
    with pytest.raises(AssertionError):
        check_follows(run, divide_by=lambda spoke: max(1, len(spoke)))


def test_at_gap_one_it_is_the_server_to_the_last_bit() -> None:
    for outer in (tw.Average(), tw.Nesterov()):
        run = Run(tw.Asynchronous(outer=outer), 1)
        run.tick()
        x, state = run.start, outer.init(run.start)
        mems = [tw.Server().init(run.here(r, 0)) for r in range(N)]
        again = Run(tw.Asynchronous(outer=outer), 1)
        for round in range(20):
            if round:
                run.tick()
            again.tick()
            deltas = [torch.from_numpy(run.deltas[round][r]) for r in range(N)]
            talks = [tw.Server().round(x, deltas[r], mems[r], run.here(r, round)) for r in range(N)]
            results = lockstep(talks, [Stats() for _ in range(N)])
            mems = [mem for _, mem in results]
            x, state = outer.step(x, results[0][0], state)
            same_bits(run.x, x)
            for mine, mem in zip(run.states, mems, strict=True):
                same_bits(mine.anchor, x)
                same_bits(mine.mem["residual"], mem["residual"])


def test_gaps_are_uniform_and_differ_between_workers() -> None:
    drawn = [[gap(tw.RandomGaps(8), r, n) for n in range(2000)] for r in range(3)]
    for gaps in drawn:
        counts = np.bincount(gaps, minlength=9)
        assert counts[0] == 0
        assert counts[1:].min() > 190
    assert drawn[0][:40] != drawn[1][:40]


def test_only_those_who_spoke_receive_and_a_silent_tick_costs_nothing() -> None:
    run = Run(tw.Asynchronous(), tw.RandomGaps(8))
    before = [0] * N
    for _ in range(60):
        run.tick()
        now = [s.received["ANCHOR"] for s in run.stats]
        for rank in range(1, N):  # rank 0 is the master: what it tells itself is on no wire
            assert (now[rank] > before[rank]) == (rank in run.deltas[-1])
        before = now


def test_a_nan_is_refused_by_all_who_spoke_with_it() -> None:
    run = Run(tw.Asynchronous(), 1)
    run.params[2][4] = float("nan")
    with pytest.raises(NonFiniteError, match="rank 2, tensor 'w'"):
        run.tick()


def test_random_gaps_are_refused_where_all_must_speak_at_once() -> None:
    net = torch.nn.Linear(2, 1)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(tw.ConfigError, match="would never meet"):
        tw.LocalSGD(net, inner, H=tw.RandomGaps(4))
    with pytest.raises(tw.ConfigError, match="most is 0"):
        tw.RandomGaps(0)


def test_sync_calls_all_workers_and_leaves_them_with_one_model() -> None:
    nets = [torch.nn.Linear(4, 3) for _ in range(3)]
    preset = tw.qsparse_async(H=tw.RandomGaps(5), compressor=tw.TopK(k=2))
    shells = [
        tw.LocalSGD(m, torch.optim.SGD(m.parameters(), lr=0.1), group=tw.Seat(r, 3), **preset)
        for r, m in enumerate(nets)
    ]
    cluster, g = tw.LockStep(shells), torch.Generator().manual_seed(0)
    for step in range(40):
        for m in nets:
            m.zero_grad()
            m(torch.randn(2, 4, generator=g)).square().mean().backward()
        cluster.step()
        if step % 7 == 3:
            cluster.sync()
            for shell in shells:
                same_bits(shell.anchor, shells[0].agreed)
    assert len({shell.round for shell in shells}) > 1
