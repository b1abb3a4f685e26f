"""Virtual time is what the link model says, whoever computes it, and changes no bit."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
import torch

import thinwire as tw
from thinwire.errors import FrameError, TransportError
from thinwire.link import Link
from thinwire.transport.base import Post, Reduce, Take, turn
from thinwire.virtual import (
    Busy,
    Compute,
    Cores,
    Method,
    Sizes,
    Timeline,
    VirtualTime,
    run,
    run_sizes,
    run_training,
    speak_fast,
    speaks,
)  # fmt: skip
from thinwire.virtual.sizes import Sized
from thinwire.virtual.timeline import COMPUTE, SEND, TALK
from thinwire.wire import body

EIGHT = tw.QSGD(bits=8, norm="max", scale="none", bucket=64, coding="fixed")
LINK = Link(1e8, 0.02)


def says(to, n, at=0.0, times=1):
    yield Busy(at)
    for _ in range(times):
        yield from turn((Post(to, Sized(n), n),))


def hears(*sources, n):
    yield from turn(takes=tuple(Take(source, n) for source in sources))


def ended(*programs, links=LINK, **more):
    clock = VirtualTime(programs, links, **more)
    clock.run()
    return clock


def test_a_frame_takes_its_bytes_at_the_rate_and_the_latency() -> None:
    assert ended(says(1, 10**6, at=3.0), hears(0, n=10**6)).now == pytest.approx(
        3.02 + LINK.seconds(10**6)
    )


def test_frames_of_one_sender_leave_one_after_the_other() -> None:
    clock = ended(says(1, 1000, times=5), hears(0, 0, 0, 0, 0, n=1000))
    assert clock.now == pytest.approx(0.02 + 5 * LINK.seconds(1000))
    assert (clock.sent, clock.received, clock.frames) == ([5000, 0], [0, 5000], 5)


def test_frames_of_several_share_the_receivers_downlink() -> None:
    senders = [says(3, 10**5) for _ in range(3)]
    clock = ended(*senders, hears(0, 1, 2, n=10**5))
    assert clock.now == pytest.approx(0.02 + 3 * LINK.seconds(10**5))


def test_a_wide_downlink_takes_several_at_once() -> None:
    senders = [says(3, 10**5) for _ in range(3)]
    clock = ended(*senders, hears(0, 1, 2, n=10**5), links=Link(1e8, 0.02, down=1e10))
    assert clock.now == pytest.approx(0.02 + LINK.seconds(10**5), rel=0.02)


def test_a_downlink_serves_first_come_first() -> None:
    """A long frame that came first holds up a short one that came while it was on the line."""
    ends = {}

    def listens():
        for source, n in ((1, 1000), (0, 10**6)):
            yield from turn(takes=(Take(source, n),))
            ends[source] = clock.now

    clock = VirtualTime([says(2, 10**6), says(2, 1000, at=0.01), listens()], LINK)
    clock.run()
    long, short = LINK.seconds(10**6), LINK.seconds(1000)
    assert ends == {1: pytest.approx(0.02 + long + short), 0: pytest.approx(0.02 + long + short)}


def test_slow_and_fast_links_meet() -> None:
    slow = Link(1e6, 0.3)
    clock = ended(says(1, 10**4), hears(0, n=10**4), links=[slow, LINK])
    assert clock.now == pytest.approx(0.3 + slow.seconds(10**4))
    clock = ended(says(1, 10**4), hears(0, n=10**4), links=[LINK, slow])
    assert clock.now == pytest.approx(0.02 + slow.seconds(10**4))


def test_a_sum_ends_when_a_ring_would_end_it_and_is_the_sum() -> None:
    totals = []

    def sums(rank):
        yield Busy(float(rank))
        totals.append((yield Reduce(torch.full((1000,), float(rank)))))

    clock = ended(*(sums(rank) for rank in range(4)))
    assert clock.now == pytest.approx(3 + LINK.all_reduce(4000, 4))
    assert all(torch.equal(total, torch.full((1000,), 6.0)) for total in totals)


def test_ranks_that_wait_for_ever_are_named() -> None:
    with pytest.raises(TransportError, match="2 of 2 ranks wait for ever"):
        ended(hears(1, n=5), hears(0, n=5))
    with pytest.raises(TransportError, match="never taken"):
        ended(says(1, 5), says(0, 5))


def test_there_is_a_link_for_each() -> None:
    with pytest.raises(tw.ConfigError, match="3 links for 2 workers"):
        VirtualTime([says(1, 5), hears(0, n=5)], [LINK] * 3)


def test_a_timeline_says_who_did_what() -> None:
    line = Timeline()
    ended(says(1, 10**6, at=3.0), hears(0, n=10**6), timeline=line)
    sent = LINK.seconds(10**6)
    assert line.of(0, COMPUTE) == [(0.0, 3.0)]
    assert line.of(0, SEND) == [(3.0, pytest.approx(3.0 + sent))]
    assert line.of(1, TALK) == [(0.0, pytest.approx(3.02 + sent))]
    assert line.of(1, COMPUTE) == []


METHODS = [
    tw.qsparse_local_sgd(), tw.vanilla(), tw.vanilla(delegate=True), tw.qprsgd_ring(),
    tw.qprsgd_ring(form="ring"), tw.qprsgd_gossip(topology=tw.Exponential()), tw.choco_sgd(),
    tw.d_psgd(topology=tw.OnePeerExponential()), tw.d_psgd(topology=tw.RandomMatching()),
    tw.marsit(K=3),
]  # fmt: skip


@pytest.mark.parametrize("preset", METHODS, ids=lambda p: repr(p["exchange"]))
@pytest.mark.parametrize(("N", "cores"), [(2, 1), (13, None), (13, 3), (40, 2)])
def test_the_compiled_clock_is_the_engines_to_the_last_bit(preset, N, cores) -> None:
    sizes, H, rounds = Sizes(preset["compressor"], 4000), preset["H"], 5
    away = 0.05 if cores is None else 0.0
    compute = Compute(
        0.01, spread=0.5, straggle=0.2, away=away, away_for=0.3, own=0.002, hear=1e-6, cores=cores
    )
    slow, fast = Link(2e7, 0.03), Link(1e8, 0.001, down=3e7)
    links = [slow if rank % 3 else fast for rank in range(N)]
    quick = speak_fast(preset["exchange"], sizes, links, H, rounds, compute, lambda _: None)
    graph = getattr(preset["exchange"], "topology", None)
    if quick is None and graph is not None and not graph.fixed:
        return  # A worker that meets nobody is too far ahead: this run is the engine's.
    assert quick is not None
    programs = [
        speaks(preset["exchange"], sizes, (rank, N), H, rounds, compute, lambda *_: None)
        for rank in range(N)
    ]
    clock = VirtualTime(programs, links, cores=Cores(cores))
    clock.run()
    assert (quick.now, quick.sent, quick.received, quick.busy, quick.frames) == (
        clock.now, clock.sent, clock.received, clock.busy, clock.frames
    )  # fmt: skip


def cluster(preset, N, seed=0):
    workers, closures = [], []
    for rank in range(N):
        torch.manual_seed(0)
        net = torch.nn.Linear(20, 6)
        inner = torch.optim.SGD(net.parameters(), lr=1e-3)
        worker = tw.LocalSGD(net, inner, group=tw.Seat(rank, N), seed=seed, **preset)

        def closure(step, net=net, rank=rank):
            x = torch.linspace(-1, 1 + rank + step % 3, 20)
            net.zero_grad()
            net(x).square().sum().backward()

        workers.append(worker)
        closures.append(closure)
    return workers, closures


@pytest.mark.parametrize("preset", [tw.qprsgd_ring(H=4), tw.qprsgd_gossip(H=4), tw.vanilla()])
def test_sizes_keep_the_time_of_training_on_shared_cores_too(preset) -> None:
    N, rounds, compute = 4, 3, Compute(0.01, spread=0.3, own=0.003, hear=1e-6, cores=3)
    preset = {**preset, "compressor": EIGHT}
    workers, closures = cluster(preset, N)
    links, sizes = [Link(1e7, 0.01)] * N, Sizes(EIGHT, workers[0].spans)
    real = run_training(workers, closures, links, rounds, compute)
    sized = run_sizes(Method(preset["exchange"], sizes, preset["H"]), links, rounds, compute)
    assert (sized.now, sized.sent, sized.busy) == (real.now, real.sent, real.busy)


TRAINED = [
    tw.qsparse_local_sgd(H=2), tw.vanilla(delegate=True), tw.qprsgd_ring(H=2),
    tw.qprsgd_gossip(H=1, topology=tw.Exponential()), tw.choco_sgd(), tw.deep_squeeze(),
    tw.qsparse_async(),
]  # fmt: skip


@pytest.mark.parametrize("preset", TRAINED, ids=lambda p: repr(p["exchange"]))
def test_training_in_virtual_time_ends_in_the_bits_of_lock_step(preset) -> None:
    N, rounds = 5, 4
    compute = Compute(0.01, spread=1.0, straggle=0.2, away=0.1)
    lossy = Link(1e7, 0.01, jitter=0.05, loss=0.05)
    workers, closures = cluster(preset, N)
    run_training(workers, closures, [lossy] * N, rounds, compute)
    others, closures = cluster(preset, N)
    lockstep, step = tw.LockStep(others), 0
    last = 8 * rounds if isinstance(preset["exchange"], tw.Asynchronous) else rounds * preset["H"]
    while step < last:
        for closure in closures:
            closure(step)
        lockstep.step()
        step += 1
    for a, b in zip(workers, others, strict=True):
        assert torch.equal(a.anchor, b.anchor)
        assert a.stats.as_dict() == b.stats.as_dict()


def test_gossip_goes_on_without_a_frame_that_never_came_and_a_master_does_not() -> None:
    workers, closures = cluster(tw.choco_sgd(topology=tw.Complete()), 4)
    spoken = run_training(workers, closures, [Link(1e8, 0.01, drop=0.02)] * 4, 12, Compute(0.01))
    assert spoken.lost > 0
    assert sum(w.stats.lost for w in workers) == spoken.lost
    assert sum(w.stats.repairs for w in workers) > 0
    workers, closures = cluster(tw.qsparse_local_sgd(H=1), 4)
    with pytest.raises(FrameError):
        run_training(workers, closures, [Link(1e8, 0.01, drop=0.3)] * 4, 30, Compute(0.01))


STOPPED = [
    (tw.vanilla(), 0.02), (tw.vanilla() | {"exchange": tw.Gather(tw.NoFeedback())}, 0.02),
    (tw.qprsgd_ring(H=1), 0.02), (tw.qprsgd_ring(H=1, form="ring"), 0.02), (tw.marsit(K=2), 0.02),
    (tw.choco_sgd(EIGHT), 0.9), (tw.choco_sgd(EIGHT) | {"exchange": tw.EdgeGossip()}, 0.05),
]  # fmt: skip


def stopped(go) -> tuple[str, str]:
    """The rank and round that the error of a lost frame names last."""
    with pytest.raises(FrameError, match="0 bytes are no frame") as refused:
        go()
    return re.findall(r"frame from rank (\d+), round (\d+)", str(refused.value))[-1]


@pytest.mark.parametrize(("preset", "drop"), STOPPED)
def test_sizes_stop_at_the_frame_at_which_the_round_stops(preset, drop) -> None:
    # With this seed a ring loses a frame in its first lap, where who made it also sends it.
    N, rounds, compute = 4, 40, Compute(0.01, seed=2)
    links = [Link(1e8, 0.01, drop=drop)] * N
    workers, closures = cluster(preset, N, compute.seed)
    sizes = Sizes(preset["compressor"], workers[0].spans)
    method = Method(preset["exchange"], sizes, preset["H"])
    real = stopped(lambda: run_training(workers, closures, links, rounds, compute))
    assert stopped(lambda: run_sizes(method, links, rounds, compute)) == real


def test_sizes_of_gossip_go_on_without_a_frame_that_never_came() -> None:
    method = Method(tw.Gossip(), Sizes(EIGHT, 1000), H=1)
    lossy = run_sizes(method, [Link(1e8, 0.01, drop=0.1)] * 8, 20, Compute(0.01))
    whole = run_sizes(method, [Link(1e8, 0.01)] * 8, 20, Compute(0.01))
    assert (lossy.frames, whole.lost) == (whole.frames, 0)
    assert 0 < lossy.lost < lossy.frames
    assert lossy.now > whole.now


def test_stragglers_cost_what_the_slowest_takes() -> None:
    method = Method(tw.Gather(), Sizes(EIGHT, 1000), H=4)
    even = run_sizes(method, [LINK] * 8, 20, Compute(0.01))
    late = run_sizes(method, [LINK] * 8, 20, Compute(0.01, straggle=0.05, straggle_by=10.0))
    again = run_sizes(method, [LINK] * 8, 20, Compute(0.01, straggle=0.05, straggle_by=10.0))
    assert late == again
    # Of 32 steps a round, at least one straggles in most rounds.
    assert even.now + 20 * 0.09 * 0.6 < late.now < even.now + 20 * 0.09 * 2.5
    assert late.sent == even.sent


def test_a_picture_changes_no_time() -> None:
    method = Method(tw.Ring(), Sizes(EIGHT, 1000), H=2)
    compute = Compute(0.01, spread=0.3)
    plain = run_sizes(method, [LINK] * 6, 4, compute)
    assert run_sizes(method, [LINK] * 6, 4, compute, timeline=Timeline()) == plain


def test_bytes_of_a_worker_are_flat_in_N_for_ring_and_gossip() -> None:
    def busiest(exchange, C, N, d):
        return max(run_sizes(Method(exchange, Sizes(C, d), 1), [LINK] * N, 1, Compute(0.1)).sent)

    for N in (64, 256, 1000):
        gossip = [busiest(tw.Gossip(), EIGHT, n, 7850) for n in (8, N)]
        assert gossip[0] == gossip[1]
    ring = [busiest(tw.Ring(), EIGHT, n, 10**7) for n in (8, 64, 256)]
    # 2 (N - 1) / N of the vector, and a header a frame.
    assert ring[1] == pytest.approx(ring[0] * (63 / 64) / (7 / 8), rel=0.01)
    assert ring[2] == pytest.approx(ring[0] * (255 / 256) / (7 / 8), rel=0.01)


def test_more_frames_than_fit_are_refused_with_a_way_out() -> None:
    method = Method(tw.Gather(), Sizes(EIGHT, 7850), H=1)
    with pytest.raises(tw.ConfigError, match="take fewer workers"):
        run_sizes(method, [LINK] * 10_000, 1, Compute(0.01))


def test_more_real_frames_than_fit_are_refused_as_well(monkeypatch) -> None:
    workers, closures = cluster(tw.qprsgd_ring(H=1), 5)
    monkeypatch.setattr(run, "MOST_FRAMES", 39)
    with pytest.raises(tw.ConfigError, match="more than 39 frames a round"):
        run_training(workers, closures, [LINK] * 5, 1, Compute(0.01))
    monkeypatch.setattr(run, "MOST_FRAMES", 40)
    assert run_training(workers, closures, [LINK] * 5, 1, Compute(0.01)).frames == 40


HEARD_BY_ALL = [
    tw.qsparse_local_sgd(H=1, exchange=tw.Gather()),
    tw.qprsgd_gossip(H=1, topology=tw.Complete()),
]


@pytest.mark.parametrize("preset", HEARD_BY_ALL, ids=lambda p: repr(p["exchange"]))
def test_a_frame_is_decoded_once_however_many_hear_it(preset, monkeypatch) -> None:
    N, rounds, unpack, decoded = 5, 3, body._unpack, []

    def counted(reader, *asked):
        decoded.append(reader.where)
        return unpack(reader, *asked)

    def decodes() -> int:
        decoded.clear()
        workers, closures = cluster(preset, N)
        run_training(workers, closures, [LINK] * N, rounds, Compute(0.01))
        return len(decoded)

    monkeypatch.setattr(body, "_unpack", counted)
    assert decodes() == N * rounds
    monkeypatch.setattr(run, "decoded_once", nullcontext)
    assert decodes() >= N * (N - 1) * rounds


def test_a_hub_is_not_simulated_and_says_so() -> None:
    method = Method(tw.Hub(), Sizes(tw.Sign(), 100), H=1)
    with pytest.raises(tw.ConfigError, match="real frames"):
        run_sizes(method, [LINK] * 2, 1, Compute(0.01))


def test_compute_is_drawn_by_key_and_has_the_rates_asked_for() -> None:
    compute = Compute(1.0, straggle=0.1, straggle_by=3.0, away=0.01, away_for=20.0, seed=4)
    took = [compute.seconds(rank, step) for rank in range(20) for step in range(500)]
    assert sum(took) == pytest.approx(
        sum(compute.steps(rank, 0, 500) for rank in range(20)), rel=1e-9
    )
    assert sum(t == 3.0 for t in took) / 10**4 == pytest.approx(0.1, abs=0.015)
    assert sum(took) / 10**4 == pytest.approx(1 + 0.2 + 0.2, rel=0.1)
    factors = [Compute(1.0, spread=0.3).factor(rank) for rank in range(2000)]
    assert sorted(factors)[1000] == pytest.approx(1.0, abs=0.03)
    with pytest.raises(tw.ConfigError, match="straggle"):
        Compute(1.0, straggle=2.0)
    with pytest.raises(tw.ConfigError, match="give away or cores, not both"):
        Compute(1.0, away=0.1, cores=2)
