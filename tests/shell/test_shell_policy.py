"""A round that is not finite is raised, skipped, or held without its culprits: by all alike."""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path

import pytest
import torch
from shell_cases import Run, backward, close, momentum, net, replicas_agree, same_bits, sgd, vector

import thinwire as tw
from thinwire.cli.gang import Gang

SIGNTOPK = tw.TopK(k=4) >> tw.Sign()
SITTING_OUT = {
    "server": (tw.Server(), SIGNTOPK),
    "server, root 2": (tw.Server(root=2), tw.TopK(k=3)),
    "server, downlink": (tw.Server(downlink=tw.Sign()), SIGNTOPK),
    "gather": (tw.Gather(), SIGNTOPK),
    "gather, in place": (tw.Gather(), tw.TopK(k=4)),
    "all-reduce": (tw.AllReduce(), tw.Identity()),
    "plain server": (tw.Server(tw.NoFeedback()), tw.Identity()),
    "ring": (tw.Ring("ring", tw.Feedback()), tw.Sign()),
    "two-phase": (tw.Ring("two-phase", tw.Feedback()), tw.QSGD(bits=4)),
    "ring of messages": (tw.Ring("gather", tw.Feedback()), SIGNTOPK),
}
SKIPPING = {**SITTING_OUT, "marsit": (tw.Marsit(K=3), tw.Sign())}


def make(name: str, policy: str, N: int = 3, **changes) -> Run:
    exchange, compressor = SKIPPING[name]
    settings = {"H": 2, "compressor": compressor, "exchange": exchange, "inner": momentum}
    return Run(N, **{**settings, "watch": tw.Watch(nonfinite=policy), **changes})


def poison(run: Run, *culprits: int, value: float = float("nan")) -> None:
    run.gradients()
    for culprit in culprits:
        run.nets[culprit][2].weight.grad[1, 2] = value
    run.cluster.step()
    run.done += 1


def held(run: Run) -> list:
    return copy.deepcopy([(s.anchor, s._state.mem, s._state.outer) for s in run.shells])


def finite_and_equal(run: Run) -> None:
    replicas_agree(run.nets)
    for model, shell in zip(run.nets, run.shells, strict=True):
        same_bits(vector(model), shell.anchor)
        for state in (shell.anchor, *shell._state.mem.values()):
            assert bool(state.isfinite().all())
        for p in shell.inner.state.values():
            assert all(bool(v.isfinite().all()) for v in p.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("culprits", [(0,), (2,), (0, 1), (0, 1, 2)], ids=str)
def test_a_skipped_round_says_nothing_and_changes_nothing_but_its_number(name, culprits) -> None:
    run = make(name, "skip", outer=tw.Nesterov()).steps(5)
    before = held(run)
    poison(run, *culprits)
    same_bits(held(run), before)
    assert [s.round for s in run.shells] == [3] * 3
    assert [(r[-1].skipped, r[-1].dropped) for r in run.reports] == [(True, ())] * 3
    finite_and_equal(run)
    run.steps(4)
    finite_and_equal(run)
    assert [r[-1].skipped for r in run.reports] == [False] * 3


def sums(run: Run) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Float64: the sum of all residuals, the anchor, and the master's own residual."""
    zero = torch.zeros_like(run.shells[0].anchor, dtype=torch.float64)
    owed = sum((s.residual.double() for s in run.shells if s.residual is not None), zero)
    down = sum((s._state.mem["down"].double() for s in run.shells if "down" in s._state.mem), zero)
    return owed, run.shells[0].anchor.double(), down


@pytest.mark.parametrize("name", SITTING_OUT)
@pytest.mark.parametrize("culprits", [(0,), (2,), (1, 3)], ids=str)
def test_a_round_without_its_culprits_conserves_what_the_others_learned(name, culprits) -> None:
    run = make(name, "drop", N=4).steps(5)
    owed, anchor, down = sums(run)
    twin = make(name, "drop", N=4).steps(5)
    twin.gradients()
    for shell in twin.shells:
        shell.inner.step()
    speakers = [rank for rank in range(4) if rank not in culprits]
    learned = sum(anchor - vector(twin.nets[rank]).double() for rank in speakers)
    poison(run, *culprits)
    owed_after, anchor_after, down_after = sums(run)
    applied = (anchor - anchor_after) + (down_after - down)
    if run.shells[0].residual is None:
        close(applied, learned / len(speakers), 1e-5)
    else:
        close(owed_after + len(speakers) * applied, learned + owed, 1e-5)
    assert [(r[-1].skipped, r[-1].dropped) for r in run.reports] == [(False, culprits)] * 4
    finite_and_equal(run)
    run.steps(4)
    finite_and_equal(run)


@pytest.mark.parametrize("name", ["server", "gather", "gather, in place", "ring of messages"])
def test_who_is_left_out_owes_what_it_owed_and_the_others_speak_as_ever(name) -> None:
    run = make(name, "drop").steps(5)
    owed = run.shells[2].residual.clone()
    pair = make(name, "raise", N=2)
    for rank in range(2):
        state = run.shells[rank].state_dict()
        pair.shells[rank].load_state_dict({**state, "settings": pair.shells[rank].settings()})
        pair.nets[rank].load_state_dict(run.nets[rank].state_dict())
    pair.done = run.done
    poison(run, 2)
    pair.step()
    same_bits(run.shells[2].residual, owed)
    for rank in range(2):
        same_bits(run.shells[rank].residual, pair.shells[rank].residual)
    close(run.shells[0].anchor, pair.shells[0].anchor)


@pytest.mark.parametrize("name", SITTING_OUT)
def test_where_nobody_is_left_the_round_is_skipped(name) -> None:
    run = make(name, "drop").steps(3)
    before = held(run)
    poison(run, 0, 1, 2)
    same_bits(held(run), before)
    assert [r[-1].skipped for r in run.reports] == [True] * 3


def test_a_sum_that_overflows_is_skipped() -> None:
    plain = tw.Server(tw.NoFeedback())
    run = Run(2, lambda p: torch.optim.SGD(p, lr=1.0), exchange=plain, watch=tw.Watch("drop"))
    before = held(run)
    run.gradients()
    for m in run.nets:
        m[2].bias.grad.fill_(3e38)
    run.cluster.step()
    same_bits(held(run), before)
    assert run.reports[0][-1].skipped


def test_after_ten_refused_rounds_in_a_row_the_error_is_raised() -> None:
    run = make("server", "skip", H=1)
    for _ in range(10):
        poison(run, 1)
    with pytest.raises(tw.NonFiniteError, match=r"round 10: rank 1, tensor '2\.weight'"):
        poison(run, 1)


def test_the_log_names_the_culprit_and_what_was_done(caplog) -> None:
    run = make("server", "drop").steps(1)
    with caplog.at_level(logging.WARNING, "thinwire"):
        poison(run, 1)
    told = "NaN or infinity in round 0: rank 1, tensor '2.weight'. The round is held without"
    assert [told in r.getMessage() for r in caplog.records] == [True, True]  # rank 0 and rank 1
    assert "starts anew for 1 tensors" in caplog.text


def test_buffers_that_are_not_finite_skip_the_round() -> None:
    def model() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.BatchNorm1d(3))

    run = Run(2, sgd, model, buffers="average", watch=tw.Watch("drop")).steps(2)
    anchor = run.shells[0].anchor.clone()
    run.nets[1][1].running_mean[0] = float("nan")
    run.step()
    same_bits(run.shells[0].anchor, anchor)
    assert run.reports[0][-1].skipped


@pytest.mark.parametrize("policy", ["skip", "drop"])
@pytest.mark.parametrize("exchange", [tw.Choco(), tw.Gossip(), tw.Asynchronous()], ids=repr)
def test_where_not_all_hear_of_it_at_once_only_raise_will_do(exchange, policy) -> None:
    with pytest.raises(tw.ConfigError, match="in the same round, such as"):
        Run(2, compressor=tw.QSGD(bits=8, scale="none"), exchange=exchange, watch=tw.Watch(policy))


def test_one_bit_rounds_cannot_be_held_without_some() -> None:
    with pytest.raises(tw.ConfigError, match="without some workers; use nonfinite='skip'"):
        Run(2, compressor=tw.Sign(), exchange=tw.Marsit(), watch=tw.Watch("drop"))


def test_ranks_that_would_do_different_things_are_told_before_the_first_round() -> None:
    nets = [torch.nn.Linear(2, 1) for _ in range(2)]
    shells = [
        tw.LocalSGD(n, sgd(n.parameters()), group=tw.Seat(r, 2), watch=tw.Watch(policy))
        for r, (n, policy) in enumerate(zip(nets, ("skip", "raise"), strict=True))
    ]
    with pytest.raises(tw.ConfigError, match="rank 1 differs from rank 0 in watch"):
        tw.LockStep(shells)


def test_a_wrong_policy_is_refused_with_the_choices() -> None:
    with pytest.raises(tw.ConfigError, match="'ignore'; choose one of 'raise', 'skip', 'drop'"):
        tw.Watch(nonfinite="ignore")
    with pytest.raises(tw.ConfigError, match="watch is 'skip'; give a Watch"):
        Run(1, watch="skip")


def poisoned_anchors(rank: int, N: int, args: dict, say) -> None:
    """Trains each method with one rank's NaN in its third step; says its bits."""
    for name in args["names"]:
        exchange, compressor = SITTING_OUT[name]
        model = net()
        optimizer = tw.LocalSGD(
            model, momentum(model.parameters()), H=2, compressor=compressor, exchange=exchange,
            watch=tw.Watch(nonfinite=args["policy"], compare=1),
        )  # fmt: skip
        for step in range(8):
            backward(model, rank, step)
            if step in (3, 4) and rank == 1:
                model[2].weight.grad[1, 2] = float("nan")
            optimizer.step()
        say("end", name=name, anchor=optimizer.anchor.tolist())


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("policy", ["skip", "drop"])
def test_processes_do_the_same_as_the_simulation_to_the_last_bit(policy, monkeypatch) -> None:
    path = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    monkeypatch.setenv("PYTHONPATH", path)
    names = [name for name in SITTING_OUT if name != "all-reduce"]  # Its order is the engine's.
    args = {"names": names, "policy": policy}
    with Gang(3, "test_shell_policy:poisoned_anchors", args) as gang:
        said = {(m["name"], m["rank"]): m["anchor"] for m in gang.messages() if m["event"] == "end"}
    for name in names:
        run = make(name, policy)
        for step in range(8):
            poison(run, *((1,) if step in (3, 4) else ()))
        for rank in range(3):
            assert said[name, rank] == run.shells[0].anchor.tolist(), name
