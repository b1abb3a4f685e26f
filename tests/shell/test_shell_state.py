"""A run stopped anywhere and taken up again ends in the bits of one that never stopped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from shell_cases import (
    Run,
    adam,
    momentum,
    net,
    same_bits,
    sgd,
    through_a_file,
    whole_state,
)

import thinwire as tw

N, STEPS = 2, 7
PRESETS: dict[str, tw.Preset] = {
    "qsparse_local_sgd": tw.qsparse_local_sgd(H=3),
    "qsparse_async": tw.qsparse_async(H=tw.RandomGaps(3)),
    "qsparse_async nesterov": tw.qsparse_async(H=tw.RandomGaps(2), outer=tw.Nesterov()),
    "topk_sgd": tw.topk_sgd(k=2),
    "ef_sign_sgd": tw.ef_sign_sgd(),
    "local_sgd": tw.local_sgd(H=3),
    "vanilla": tw.vanilla(),
    "vanilla delegated": tw.vanilla(delegate=True),
    "qprsgd_ring": tw.qprsgd_ring(H=3),
    "qprsgd_ring ring": tw.qprsgd_ring(H=1, bits=4, form="ring"),
    "qprsgd_gossip": tw.qprsgd_gossip(H=2),
    "choco_sgd": tw.choco_sgd(),
    "deep_squeeze": tw.deep_squeeze(),
    "d_psgd": tw.d_psgd(tw.RandomMatching()),
    "squarm_sgd": tw.squarm_sgd(H=2),
    "marsit": tw.marsit(K=3),
}
TOP2 = tw.TopK(k=2)
OUTERS = [tw.Average(), tw.Nesterov()]


def saw(round: int) -> int:
    return 1 + round % 3


def test_every_preset_is_resumed_here() -> None:
    assert set(tw.PRESETS) <= {name.split()[0] for name in PRESETS}


def saved(run: Run) -> list[Any]:
    return through_a_file(
        [(m.state_dict(), s.state_dict()) for m, s in zip(run.nets, run.shells, strict=True)]
    )


def loaded(run: Run, states: list[Any], done: int) -> Run:
    for m, s, (model_state, shell_state) in zip(run.nets, run.shells, states, strict=True):
        m.load_state_dict(model_state)
        s.load_state_dict(shell_state)
    run.done = done
    return run


def resumes(make, steps: int = STEPS) -> None:
    """Stops after each step in turn, mid-round too, and asserts that the ends are equal bits.

    `make(seed)` makes a run whose first parameters depend on the seed.
    """
    run = make(0)
    stops = [saved(run)]
    for _ in range(steps):
        run.step()
        stops.append(saved(run))
    end = whole_state(run)
    for done, states in enumerate(stops):
        again = loaded(make(1), states, done).steps(steps - done)
        same_bits(whole_state(again), end, f"stopped after {done}")


def maker(inner, **arguments):
    return lambda seed: Run(N, inner, lambda: net(seed), **arguments)


@pytest.mark.parametrize("outer", OUTERS, ids=repr)
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("inner", [adam, momentum])
def test_every_preset_resumes_in_the_same_bits_from_any_step(inner, name, outer) -> None:
    if PRESETS[name]["exchange"].hands_anchor and outer == tw.Average():
        outer = tw.Adopt()
    if not PRESETS[name]["exchange"].replicates and outer == tw.Nesterov():
        with pytest.raises(tw.ConfigError, match="takes the plain outer step"):
            maker(inner, **{**PRESETS[name], "outer": outer})(0)
        return
    resumes(maker(inner, **{**PRESETS[name], "outer": outer}))


@pytest.mark.parametrize(
    "arguments",
    [
        {"compressor": tw.Sign(), "exchange": tw.Server(downlink=tw.Sign(), root=1)},
        {"compressor": tw.RandK(k=3), "exchange": tw.Gather()},
        {"compressor": tw.QSGD(bits=2, scale="none"), "exchange": tw.Gather(tw.NoFeedback())},
        {"compressor": TOP2, "exchange": tw.Server(tw.Feedback(decay=0.5)), "H": saw},
        {"compressor": TOP2, "exchange": tw.Server(), "H": ((0, 1), (2, 3))},
    ],
    ids=lambda a: repr(a["exchange"]),
)  # fmt: skip
def test_memory_draws_and_schedules_resume_in_the_same_bits(arguments) -> None:
    resumes(maker(adam, **arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_that_rounds_the_anchor_resumes_in_the_same_bits(dtype) -> None:
    resumes(
        lambda seed: Run(
            N,
            momentum,
            lambda: net(seed, dtype),
            H=3,
            compressor=tw.TopK(k=4) >> tw.Sign(),
            exchange=tw.Server(),
        )
    )


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop])
def test_other_inner_optimizers_resume_in_the_same_bits(inner) -> None:
    resumes(maker(lambda p: inner(p, lr=0.01), **PRESETS["qsparse_local_sgd"]))


def test_a_drop_seen_after_the_stop_is_measured_from_before_it() -> None:
    def make(seed: int) -> Run:
        return Run(
            N,
            sgd,
            lambda: net(seed),
            H=2,
            compressor=tw.TopK(k=2),
            exchange=tw.Server(),
            clear_residual_at_drop=0.5,
        )

    def drop(run: Run) -> Run:
        for shell in run.shells:
            shell.param_groups[0]["lr"] = 0.01
        return run

    run = make(0).steps(3)
    states = saved(drop(run))
    run.steps(3)
    again = loaded(make(1), states, 3).steps(3)
    same_bits(whole_state(again), whole_state(run))
    assert [r.residual_cleared for r in run.reports[0]] == [False, True, False]
    assert [r.residual_cleared for r in again.reports[0]] == [True, False]


def test_resumes_fails_where_the_stop_forgets_the_residual() -> None:
    def forgetful(seed: int) -> Run:
        run = maker(adam, compressor=tw.TopK(k=2), exchange=tw.Server())(seed)
        if seed:
            for shell in run.shells:
                load = shell.load_state_dict

                def without(state, load=load):
                    load(
                        {**state, "mem": {k: torch.zeros_like(v) for k, v in state["mem"].items()}}
                    )

                shell.load_state_dict = without
        return run

    with pytest.raises(AssertionError, match="stopped after 1"):
        resumes(forgetful)


def make_rich(**changes: Any) -> Run:
    arguments: dict[str, Any] = {
        "H": 3,
        "compressor": tw.TopK(k=2) >> tw.Sign(),
        "exchange": tw.Server(downlink=tw.Sign()),
        "outer": tw.Nesterov(),
        "seed": 3,
    }
    return Run(N, momentum, **{**arguments, **changes})


OTHERS: dict[str, dict[str, Any]] = {
    "H": {"H": 2},
    "compressor": {"compressor": tw.TopK(k=3) >> tw.Sign()},
    "exchange": {"exchange": tw.Server(downlink=tw.Sign(), root=1)},
    "outer": {"outer": tw.Average()},
    "seed": {"seed": 4},
    "buffers": {"buffers": "average"},
    "clear_residual_at_drop": {"clear_residual_at_drop": 0.5},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_other_settings_is_refused_and_nothing_changes(name: str) -> None:
    state = make_rich(**OTHERS[name]).steps(4).shells[0].state_dict()
    run = make_rich().steps(2)
    before = whole_state(run)
    with pytest.raises(tw.ConfigError, match=f"saved with settings .*{name}"):
        run.shells[0].load_state_dict(state)
    same_bits(whole_state(run), before)


def test_a_state_of_another_N_is_refused() -> None:
    state = Run(3).shells[0].state_dict()
    with pytest.raises(tw.ConfigError, match=r"saved with settings .*'N': 3"):
        Run(2).shells[0].load_state_dict(state)


def test_a_state_of_another_rank_is_refused_and_nothing_changes() -> None:
    run = make_rich().steps(4)
    before = whole_state(run)
    with pytest.raises(tw.ConfigError, match="saved with rank 1; here it is 0"):
        run.shells[0].load_state_dict(run.shells[1].state_dict())
    same_bits(whole_state(run), before)


def test_a_state_of_other_tensors_is_refused_and_nothing_changes() -> None:
    def other() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))

    state = Run(2, model=other).shells[0].state_dict()
    run = Run(2).steps(1)
    before = whole_state(run)
    with pytest.raises(tw.ConfigError, match="saved with tensors"):
        run.shells[0].load_state_dict(state)
    same_bits(whole_state(run), before)


def test_a_state_of_another_format_is_refused_and_nothing_changes() -> None:
    run = make_rich().steps(4)
    before = whole_state(run)
    with pytest.raises(tw.ConfigError, match="saved with format 99; here it is"):
        run.shells[0].load_state_dict({**run.shells[0].state_dict(), "format": 99})
    with pytest.raises(tw.ConfigError, match="lacks anchor, format"):
        run.shells[0].load_state_dict({})
    same_bits(whole_state(run), before)


@pytest.mark.parametrize("missing", ["inner", "anchor", "mem", "outer", "round", "local", "lr"])
def test_a_state_that_lacks_a_part_is_refused_and_nothing_changes(missing: str) -> None:
    run = make_rich().steps(4)
    state = run.shells[0].state_dict()
    del state[missing]
    other = make_rich().steps(1)
    before = whole_state(other)
    with pytest.raises(tw.ConfigError, match=missing):
        other.shells[0].load_state_dict(state)
    same_bits(whole_state(other), before)


def test_a_state_of_other_inner_groups_is_refused_and_nothing_changes() -> None:
    def grouped(params) -> torch.optim.Optimizer:
        first, *rest = params
        return torch.optim.SGD([{"params": [first]}, {"params": rest}], lr=0.1)

    state = Run(2, grouped).steps(1).shells[0].state_dict()
    run = Run(2, sgd).steps(2)
    before = whole_state(run)
    with pytest.raises(ValueError):
        run.shells[0].load_state_dict(state)
    same_bits(whole_state(run), before)


def test_a_state_of_another_inner_optimizer_is_refused_and_nothing_changes() -> None:
    # torch loads Adam's groups into SGD without a word, and its next step fails on them.
    state = Run(2, adam).steps(1).shells[0].state_dict()
    run = Run(2, momentum).steps(2)
    before = whole_state(run)
    with pytest.raises(tw.ConfigError, match="Adam"):
        run.shells[0].load_state_dict(state)
    same_bits(whole_state(run), before)


@pytest.mark.parametrize("part", ["anchor", "mem", "outer"])
def test_a_state_of_another_length_is_refused_and_nothing_changes(part: str) -> None:
    run = make_rich().steps(4)
    state = copy.deepcopy(run.shells[0].state_dict())
    if part == "anchor":
        state["anchor"] = state["anchor"][:-1]
    else:
        state[part] = {name: tensor[:-1] for name, tensor in state[part].items()}
    before = whole_state(run)
    with pytest.raises(tw.ConfigError, match=part):
        run.shells[0].load_state_dict(state)
    same_bits(whole_state(run), before)


def test_going_on_changes_nothing_in_a_state_saved_before() -> None:
    run = make_rich().steps(4)
    state = run.shells[0].state_dict()
    copied = copy.deepcopy(state)
    run.steps(5)
    same_bits(state, copied)


def test_writing_into_a_saved_state_changes_nothing_in_the_run() -> None:
    run = make_rich().steps(4)
    before = whole_state(run)
    state = run.shells[0].state_dict()
    for tensor in (state["anchor"], *state["mem"].values(), *state["outer"].values()):
        tensor.fill_(7.0)
    for entry in state["inner"]["state"].values():
        entry["momentum_buffer"].fill_(7.0)
    state["inner"]["param_groups"][0]["lr"] = 7.0
    same_bits(whole_state(run), before)


def test_going_on_changes_nothing_in_a_state_loaded_before() -> None:
    states = saved(make_rich().steps(4))
    copied = copy.deepcopy(states)
    loaded(make_rich(), states, 4).steps(5)
    same_bits(states, copied)


def test_a_run_goes_back_to_a_state_kept_in_memory() -> None:
    run = make_rich().steps(4)
    both = zip(run.nets, run.shells, strict=True)
    kept = [(copy.deepcopy(m.state_dict()), s.state_dict()) for m, s in both]
    run.steps(3)
    end = whole_state(run)
    for _ in range(2):
        loaded(run, kept, 4).steps(3)
        same_bits(whole_state(run), end)


def test_a_loaded_inner_optimizer_is_still_the_shells_own() -> None:
    run = make_rich()
    run.shells[0].load_state_dict(through_a_file(run.shells[0].state_dict()))
    shell = run.shells[0]
    assert shell.param_groups is shell.inner.param_groups
    assert shell.state is shell.inner.state
    shell.param_groups[0]["lr"] = 0.5
    assert shell.inner.param_groups[0]["lr"] == 0.5


def test_a_state_names_its_tensors_and_holds_plain_data() -> None:
    state = make_rich().steps(2).shells[1].state_dict()
    assert [name for name, *_ in state["tensors"]] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert (state["rank"], state["round"], state["local"]) == (1, 0, 2)
    same_bits(through_a_file(state), state)
