"""When a round runs, what it reports, and what the shell and LockStep refuse."""

from __future__ import annotations

import pytest
import torch
from shell_cases import Run, adam, backward, momentum, net, replicas_agree, same_bits, sgd, vector

import thinwire as tw
from thinwire.exchange import hear
from thinwire.wire.frame import HEADER

SIGNTOPK = tw.TopK(density=0.1) >> tw.Sign()


def rounds_at(H, steps: int) -> list[int]:
    """The steps after which a round had run."""
    model = net()
    optimizer = tw.LocalSGD(model, sgd(model.parameters()), H=H)
    at = []
    for step in range(1, steps + 1):
        before = optimizer.round
        backward(model, 0, step)
        optimizer.step()
        if optimizer.round != before:
            at.append(step)
    return at


@pytest.mark.parametrize(
    ("H", "expected"),
    [
        (1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (4, [4, 8]),
        (((0, 1), (2, 3)), [1, 2, 5, 8]),
        (((0, 3), (1, 1), (3, 2)), [3, 4, 5, 7, 9]),
        (lambda round: 1 + round % 2, [1, 3, 4, 6, 7, 9]),
    ],
)
def test_a_round_runs_after_H_local_steps_of_its_own(H, expected) -> None:
    assert rounds_at(H, 9) == expected


WRONG_H = [0, -1, 1.5, "4", None, True, (), ((1, 2),), ((0, 0),), ((0, 1), (0, 2)), ((0, 2), (3,))]


@pytest.mark.parametrize("H", [*WRONG_H, [(0, 1)], ((0, 1.5),), ((0, 1), (5, 2), (3, 4)), (0, 4)])
def test_a_wrong_H_is_refused_by_its_value(H) -> None:
    model = net()
    with pytest.raises(tw.ConfigError, match="H="):
        tw.LocalSGD(model, sgd(model.parameters()), H=H)


@pytest.mark.parametrize("returned", [0, -3, 1.5, None, "2"])
def test_a_function_that_returns_no_count_is_refused(returned) -> None:
    model = net()
    with pytest.raises(tw.ConfigError, match=r"H\(0\) returned"):
        tw.LocalSGD(model, sgd(model.parameters()), H=lambda round: returned)
    with pytest.raises(tw.ConfigError, match=r"H\(16\) returned"):
        tw.LocalSGD(model, sgd(model.parameters()), H=lambda round: returned if round == 16 else 2)


def test_a_function_is_asked_again_in_rounds_nobody_probed() -> None:
    model = net()
    optimizer = tw.LocalSGD(model, sgd(model.parameters()), H=lambda round: 0 if round == 3 else 1)
    for _ in range(3):
        optimizer.step()
    with pytest.raises(tw.ConfigError, match=r"H\(3\) returned 0"):
        optimizer.step()


def test_functions_that_differ_are_refused_before_the_first_round() -> None:
    nets = [net(), net()]
    shells = [
        tw.LocalSGD(m, sgd(m.parameters()), group=tw.Seat(r, 2), H=(lambda round, r=r: 1 + r))
        for r, m in enumerate(nets)
    ]
    with pytest.raises(tw.ConfigError, match="rank 1 differs from rank 0 in H"):
        tw.LockStep(shells)


def test_sync_runs_a_round_now_and_the_count_starts_again() -> None:
    run = Run(2, momentum, H=4, compressor=SIGNTOPK, exchange=tw.Server()).steps(2)
    run.cluster.sync()
    replicas_agree(run.nets)
    assert [r.local_steps for r in run.reports[0]] == [2]
    run.steps(3)
    assert run.shells[0].round == 1
    run.step()
    assert [(r.round, r.local_steps) for r in run.reports[1]] == [(0, 2), (1, 4)]
    run.cluster.sync()
    assert run.reports[0][-1].local_steps == 0


def test_sync_alone_says_the_residual_until_nothing_is_owed() -> None:
    run = Run(2, momentum, H=1, compressor=tw.TopK(k=2), exchange=tw.Server()).steps(3)
    owed = [s.residual.abs().sum().item() for s in run.shells]
    assert min(owed) > 0
    for _ in range(20):
        run.cluster.sync()
    for shell in run.shells:
        same_bits(shell.residual, torch.zeros_like(shell.residual))
    replicas_agree(run.nets)


def test_sync_of_one_worker_alone_runs_a_round() -> None:
    model = net()
    optimizer = tw.LocalSGD(model, sgd(model.parameters()), H=8)
    optimizer.sync()
    assert optimizer.round == 1


ROUND = tw.Ring("gather", tw.Feedback())


@pytest.mark.parametrize("exchange", [tw.Server(), tw.Server(root=2), tw.Gather(), ROUND], ids=repr)
@pytest.mark.parametrize("together", [hear.TOGETHER, 0])
def test_reports_count_every_byte_and_what_leaves_arrives(exchange, together, monkeypatch) -> None:
    monkeypatch.setattr(hear, "TOGETHER", together)
    N, sign = 4, tw.Sign()
    run = Run(N, sgd, H=2, compressor=sign, exchange=exchange)
    hello = [shell.stats.totals() for shell in run.shells]
    run.steps(6)
    frame = HEADER + sign.nbytes(run.shells[0].spans)
    for each in run.reports:
        assert [(r.round, r.local_steps, r.residual_cleared) for r in each] == [
            (0, 2, False),
            (1, 2, False),
            (2, 2, False),
        ]
        assert all(r.uplink == frame for r in each)
    for at_once in zip(*run.reports, strict=True):
        assert sum(r.sent for r in at_once) == sum(r.received for r in at_once) > 0
        if not isinstance(exchange, tw.Server):
            assert all(r.sent == r.received == (N - 1) * frame for r in at_once)
        else:
            assert all(r.sent == frame for n, r in enumerate(at_once) if n != exchange.root)
            assert at_once[exchange.root].received == (N - 1) * frame
    for rank, shell in enumerate(run.shells):
        sums = [
            sum(getattr(r, n) for r in run.reports[rank]) for n in ("uplink", "sent", "received")
        ]
        assert [a + b for a, b in zip(hello[rank], sums, strict=True)] == list(shell.stats.totals())


def test_a_ring_of_long_segments_counts_what_it_makes_as_one_of_short(monkeypatch) -> None:
    counted = []
    for together in (hear.TOGETHER, 0):
        monkeypatch.setattr(hear, "TOGETHER", together)
        run = Run(4, sgd, compressor=tw.QSGD(bits=8, scale="none"), exchange=tw.Ring("two-phase"))
        run.steps(3)
        sent = sum(s.stats.totals()[1] for s in run.shells)
        counted.append((sent, [s.stats.framed for s in run.shells]))
    assert counted[0] == counted[1]


def test_a_report_comes_after_the_round_is_done() -> None:
    model, seen = net(), []
    optimizer = tw.LocalSGD(
        model, sgd(model.parameters()), on_round=lambda r: seen.append((r.round, optimizer.round))
    )
    optimizer.step()
    optimizer.step()
    assert seen == [(0, 1), (1, 2)]


def test_one_worker_sends_nothing() -> None:
    reports = []
    model = net()
    optimizer = tw.LocalSGD(
        model, sgd(model.parameters()), on_round=reports.append, **tw.ef_sign_sgd()
    )
    optimizer.step()
    assert (reports[0].sent, reports[0].received) == (0, 0)
    assert reports[0].uplink == HEADER + tw.Sign().nbytes(optimizer.spans)


class Drop:
    """One worker with a residual, so far from a round that only `sync` runs one."""

    def __init__(self, fraction: float | None, exchange: tw.Exchange | None = None) -> None:
        self.model, self.reports = net(), []
        self.optimizer = tw.LocalSGD(
            self.model,
            sgd(self.model.parameters()),
            H=1000,
            compressor=tw.TopK(k=2),
            exchange=exchange or tw.Server(),
            clear_residual_at_drop=fraction,
            on_round=self.reports.append,
        )
        self.n = 0

    def rate(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr

    def round(self, lr: float) -> tuple[bool, bool]:
        """One round at that rate: (reported as cleared, u was delta alone)."""
        self.rate(lr)
        backward(self.model, 0, self.n)
        self.n += 1
        self.optimizer.step()
        owed, anchor = self.optimizer.residual, self.optimizer.anchor
        delta = anchor - vector(self.model)
        self.optimizer.sync()
        said, left = anchor - self.optimizer.anchor, self.optimizer.residual
        with_it = torch.allclose(said + left, delta + owed, rtol=0, atol=1e-6)
        without = torch.allclose(said + left, delta, rtol=0, atol=1e-6)
        assert with_it or without
        return self.reports[-1].residual_cleared, not with_it


def test_the_residual_is_cleared_exactly_at_drops_and_booked() -> None:
    worker = Drop(0.5)
    rates = [0.1, 0.1, 0.01, 0.01, 0.2, 0.2, 0.11, 0.11, 0.05, 0.001]
    drops = [False, False, True, False, False, False, False, False, True, True]
    seen = [worker.round(lr) for lr in rates]
    assert [booked for booked, _ in seen] == drops
    assert [cleared for _, cleared in seen] == drops


def test_a_fall_in_small_steps_is_no_drop() -> None:
    worker = Drop(0.5)
    assert not any(any(worker.round(0.1 * 0.8**n)) for n in range(12))


def test_a_fall_to_exactly_the_fraction_is_a_drop() -> None:
    worker = Drop(0.5)
    worker.round(0.1)
    assert worker.round(0.05) == (True, True)


def test_without_a_fraction_the_residual_is_never_cleared() -> None:
    worker = Drop(None)
    assert not any(any(worker.round(lr)) for lr in (0.1, 0.001, 0.1, 0.0))


def test_without_feedback_there_is_nothing_to_clear_or_book() -> None:
    worker = Drop(0.5, tw.Server(tw.NoFeedback(permit="biased")))
    assert worker.optimizer.residual is None
    for lr in (0.1, 0.001):
        worker.rate(lr)
        worker.optimizer.sync()
    assert [r.residual_cleared for r in worker.reports] == [False, False]


def test_a_drop_between_rounds_is_seen_by_all_ranks_at_the_next() -> None:
    run = Run(
        2, momentum, H=3, compressor=tw.TopK(k=2), exchange=tw.Gather(), clear_residual_at_drop=0.5
    )
    run.steps(4)
    for shell in run.shells:
        shell.param_groups[0]["lr"] /= 10
    run.steps(5)
    for each in run.reports:
        assert [r.residual_cleared for r in each] == [False, True, False]
    replicas_agree(run.nets)


def test_a_refused_round_clears_nothing_and_the_drop_is_booked_when_it_is_done() -> None:
    run = Run(
        2, sgd, H=1, compressor=tw.TopK(k=2), exchange=tw.Server(), clear_residual_at_drop=0.5
    ).steps(2)
    owed = [s.residual.clone() for s in run.shells]
    for shell in run.shells:
        shell.param_groups[0]["lr"] /= 10
    run.gradients()
    run.nets[1][0].weight.grad.fill_(float("nan"))
    with pytest.raises(tw.NonFiniteError):
        run.cluster.step()
    for shell, before in zip(run.shells, owed, strict=True):
        same_bits(shell.residual, before)
    with torch.no_grad():
        run.nets[1][0].weight.copy_(run.nets[0][0].weight)
    run.step()
    for each in run.reports:
        assert [r.residual_cleared for r in each] == [False, False, True]


def test_repr_names_all_that_was_chosen() -> None:
    model = net()
    optimizer = tw.LocalSGD(
        model, adam(model.parameters()), H=((0, 1), (9, 4)), compressor=SIGNTOPK,
        exchange=tw.Server(root=0), outer=tw.Nesterov(lr=0.5),
    )  # fmt: skip
    assert repr(optimizer) == (
        "LocalSGD(Adam, H=((0, 1), (9, 4)), compressor=TopK(density=0.1) >> Sign(), "
        f"exchange={tw.Server()!r}, outer=Nesterov(lr=0.5))"
    )


def test_a_group_added_later_is_refused_and_not_added() -> None:
    model = net()
    optimizer = tw.LocalSGD(model, sgd(model.parameters()))
    with pytest.raises(tw.ConfigError, match="agreed with all ranks"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    assert len(optimizer.param_groups) == len(optimizer.inner.param_groups) == 1


def test_place_is_rank_and_N() -> None:
    assert [s.place for s in Run(3).shells] == [(0, 3), (1, 3), (2, 3)]
    model = net()
    assert tw.LocalSGD(model, sgd(model.parameters())).place == (0, 1)


@pytest.mark.parametrize("call", ["step", "sync"])
def test_a_worker_on_a_seat_refuses_to_go_alone_and_moves_nothing(call: str) -> None:
    run = Run(2)
    run.gradients()
    before = vector(run.nets[0])
    with pytest.raises(tw.ConfigError, match="stepped by its LockStep"):
        getattr(run.shells[0], call)()
    same_bits(vector(run.nets[0]), before)
    assert run.shells[0].round == 0
    run.cluster.step()
    assert run.shells[0].round == 1


def seats(*places: tuple[int, int]) -> list[tw.LocalSGD]:
    shells = []
    for rank, N in places:
        model = net()
        shells.append(tw.LocalSGD(model, sgd(model.parameters()), group=tw.Seat(rank, N)))
    return shells


@pytest.mark.parametrize(
    "places",
    [
        [(1, 2), (0, 2)],
        [(0, 2)],
        [(0, 2), (0, 2)],
        [(0, 1), (0, 1)],
        [(0, 2), (1, 3)],
        [(0, 2), (1, 2), (2, 2)],
        [(1, 1)],
        [(0, 2), (2, 2)],
        [],
    ],
)
def test_lockstep_refuses_wrong_seats(places) -> None:
    with pytest.raises(tw.ConfigError, match="in rank order"):
        tw.LockStep(seats(*places))


def test_lockstep_takes_right_seats_and_as_many_closures_as_workers() -> None:
    cluster = tw.LockStep(seats((0, 2), (1, 2)))
    assert cluster.step() == [None, None]
    assert cluster.step([lambda: 1, lambda: 2]) == [1, 2]
    with pytest.raises(ValueError):
        cluster.step([lambda: 1])


DIFFERENCES = {
    "H": {"H": 2},
    "compressor": {"compressor": tw.TopK(k=1), "exchange": tw.Server()},
    "exchange": {"exchange": tw.Gather(tw.NoFeedback())},
    "outer": {"outer": tw.Nesterov()},
    "seed": {"seed": 1},
    "buffers": {"buffers": "average"},
    "clear_residual_at_drop": {"clear_residual_at_drop": 0.5},
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_workers_that_differ_in_a_setting_are_refused(name: str) -> None:
    nets = [net(), net()]
    shells = [
        tw.LocalSGD(m, sgd(m.parameters()), group=tw.Seat(r, 2), **(DIFFERENCES[name] if r else {}))
        for r, m in enumerate(nets)
    ]
    with pytest.raises(tw.ConfigError, match=f"rank 1 differs from rank 0 in {name}: .* against"):
        tw.LockStep(shells)


def mixed(first: torch.nn.Module, second: torch.nn.Module, **arguments) -> tw.LockStep:
    return tw.LockStep(
        [
            tw.LocalSGD(m, sgd(m.parameters()), group=tw.Seat(r, 2), **arguments)
            for r, m in enumerate((first, second))
        ]
    )


def test_workers_with_other_shapes_or_names_are_refused() -> None:
    other = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    with pytest.raises(
        tw.ConfigError, match=r"tensor 0: 0.weight \(4, 6\).* against 0.weight \(5, 6\)"
    ):
        mixed(net(), other)
    with pytest.raises(tw.ConfigError, match=r"tensor 2: none .*2.weight \(3, 5\)"):
        mixed(net(), net()[:1])
    renamed = torch.nn.Sequential(*net().children(), torch.nn.Identity())
    mixed(net(), renamed)


def test_workers_whose_tensors_have_other_dtypes_are_refused() -> None:
    # Replicas that must hold the same bits cannot, where one rounds to bfloat16.
    with pytest.raises(tw.ConfigError, match="rank 1 differs from rank 0"):
        mixed(net(), net(dtype=torch.bfloat16))


def test_workers_whose_shared_buffers_differ_are_refused() -> None:
    def with_norm(track: bool) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5, track_running_stats=track)
        )

    with pytest.raises(tw.ConfigError, match="rank 1 differs from rank 0"):
        mixed(with_norm(False), with_norm(True), buffers="broadcast")


def test_workers_start_from_rank_0s_parameters() -> None:
    nets = [net(5), net(6), net(7)]
    first = vector(nets[0])
    shells = [tw.LocalSGD(m, sgd(m.parameters()), group=tw.Seat(r, 3)) for r, m in enumerate(nets)]
    tw.LockStep(shells)
    replicas_agree(nets)
    same_bits(vector(nets[2]), first)
    for shell in shells:
        same_bits(shell.anchor, first)


@pytest.mark.parametrize("fraction", [-0.5, 1.5, "half", float("nan")])
def test_a_drop_fraction_out_of_range_is_refused_when_it_is_written(fraction) -> None:
    model = net()
    with pytest.raises(tw.ConfigError, match="clear_residual_at_drop is"):
        tw.LocalSGD(model, sgd(model.parameters()), clear_residual_at_drop=fraction)


@pytest.mark.parametrize("buffers", ["mean", None, True])
def test_an_unknown_choice_of_buffers_is_refused(buffers) -> None:
    model = net()
    with pytest.raises(tw.ConfigError, match="buffers is"):
        tw.LocalSGD(model, sgd(model.parameters()), buffers=buffers)
    with pytest.raises(tw.ConfigError, match="buffers"):
        tw.LocalSGD(list(model.parameters()), sgd(model.parameters()), buffers="average")


@pytest.mark.parametrize("seed", [1.5, "7", None, True])
def test_a_seed_that_is_no_whole_number_is_refused_when_it_is_written(seed) -> None:
    model = net()
    with pytest.raises(tw.ConfigError, match="seed is"):
        tw.LocalSGD(
            model,
            sgd(model.parameters()),
            seed=seed,
            compressor=tw.QSGD(bits=8),
            exchange=tw.Gather(tw.Feedback(permit="any")),
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"compressor": 0.01},
        {"compressor": "TopK"},
        {"compressor": tw.TopK},
        {"exchange": "server"},
        {"exchange": tw.Server},
        {"outer": "nesterov"},
        {"outer": tw.Average},
    ],
    ids=repr,
)
def test_an_argument_that_is_no_setting_is_refused_by_name(wrong) -> None:
    # On one rank of many it must become an agreed refusal: any other error leaves the rest waiting.
    (name,) = wrong
    model = net()
    with pytest.raises(tw.ConfigError, match=name):
        tw.LocalSGD(model, sgd(model.parameters()), **wrong)
