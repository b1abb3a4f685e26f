"""What an elastic group refuses, decides and tells; and what a worker that returns may keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from elastic.elastic_sim import Simulated

import thinwire as tw
from thinwire.elastic import Lighthouse, Quorum
from thinwire.elastic.history import History
from thinwire.elastic.meet import Record, decide
from thinwire.errors import ConfigError, FrameError


def worker(elastic: Simulated, exchange: tw.Exchange | None = None, **more: Any) -> tw.LocalSGD:
    p = torch.nn.Parameter(torch.zeros(4))
    inner = torch.optim.SGD([p], lr=1.0)
    more = {"compressor": tw.TopK(k=1)} | more
    return tw.LocalSGD([p], inner, exchange=exchange or tw.Gather(), group=elastic, **more)


def test_a_group_that_could_go_on_in_two_halves_is_refused() -> None:
    for N in range(1, 8):
        assert Simulated(N, "a").min_replicas == N // 2 + 1
        for few in range(N // 2 + 1):
            with pytest.raises(ConfigError, match="both halves"):
                Simulated(N, "a", min_replicas=few)
    with pytest.raises(ConfigError, match="must lie in"):
        Simulated(4, "a", min_replicas=5)


@pytest.mark.parametrize(
    ("exchange", "C"),
    [
        (tw.Gossip(), tw.QSGD(bits=8, scale="none")),
        (tw.Choco(), tw.TopK(k=1)),
        (tw.Server(downlink=tw.TopK(k=1)), tw.TopK(k=1)),
        (tw.Server(root=1), tw.TopK(k=1)),
        (tw.Asynchronous(), tw.TopK(k=1)),
        (tw.AllReduce(), tw.Identity()),
    ],
    ids=repr,
)
def test_an_exchange_that_cannot_lose_a_worker_is_refused(exchange: tw.Exchange, C: Any) -> None:
    def join() -> None:
        elastic = Simulated(2, "a")
        # A root that is not there is refused at once, the others when it joins.
        next(elastic.joining(worker(elastic, exchange, compressor=C)))

    with pytest.raises(ConfigError):
        join()


def test_a_policy_that_could_not_be_taken_back_is_refused() -> None:
    elastic = Simulated(2, "a")
    made = worker(elastic, watch=tw.Watch(nonfinite="skip"))
    with pytest.raises(ConfigError, match="use 'raise'"):
        next(elastic.joining(made))


def hello(name: str, **other: Any) -> dict[str, Any]:
    base = {"name": name, "round": 3, "stamp": 2, "last": [2, 5], "start": "x", "ready": True}
    return {**base, "settings": {"H": 4}, **other}


def test_whoever_differs_from_the_furthest_is_told_why_and_the_others_go_on() -> None:
    other = hello("b", settings={"H": 8}, round=2)
    decision = decide([other, hello("a"), hello("c")], 0, N=3)
    assert decision.leader == 1
    assert list(decision.problems) == [0]
    assert "H: 8 against 4" in decision.problems[0]


def test_two_workers_of_one_name_are_one_too_many() -> None:
    decision = decide([hello("a"), hello("a")], 0, N=3)
    assert list(decision.problems) == [1]
    assert "two workers are called 'a'" in decision.problems[1]


def test_of_more_workers_than_are_configured_the_furthest_behind_goes() -> None:
    hellos = [hello("a"), hello("b", round=1, last=[1, 1]), hello("c"), hello("d")]
    decision = decide(hellos, 0, N=3)
    assert list(decision.problems) == [1]
    assert "at most" in decision.problems[1]


def test_workers_on_the_same_rounds_and_other_bits_have_diverged() -> None:
    assert decide([hello("a"), hello("b", start="y")], 0, N=2).diverged == (1,)
    fresh = {"round": 0, "last": None, "stamp": 0}
    assert decide([hello("a", **fresh), hello("b", start="y", **fresh)], 0, N=2).diverged == ()


def test_a_record_is_read_back_to_the_bit_and_a_broken_one_is_refused() -> None:
    history = History().after((1, 7), ("a", "b"))
    momentum = {"momentum": torch.randn(5), "count": torch.tensor([3])}
    record = Record(history, torch.randn(5), momentum, torch.randn(2))
    like = Record(
        History(), torch.zeros(5), {k: v * 0 for k, v in momentum.items()}, torch.zeros(2)
    )
    frame = record.seal(9, 1)
    assert len(frame) <= record.bound
    told = like.unseal(frame, 9, 1)
    assert told.history == history
    assert torch.equal(told.anchor, record.anchor)
    assert torch.equal(told.outer["momentum"], momentum["momentum"])
    assert torch.equal(told.outer["count"], momentum["count"])
    assert torch.equal(told.buffers, record.buffers)
    for broken in (frame[:-1], frame[:-1] + b"\0", b""):
        with pytest.raises(FrameError):
            like.unseal(broken, 9, 1)
    with pytest.raises(FrameError):
        Record(History(), torch.zeros(4), momentum, torch.zeros(2)).unseal(frame, 9, 1)


@pytest.mark.parametrize("data", [None, {}, {"round": 1, "reigns": [[1]], "stamp": 0}])
def test_what_is_no_history_is_refused(data: Any) -> None:
    with pytest.raises(FrameError, match="no history"):
        History.from_json(data)


def kept(rounds: tuple[tuple[str, ...], ...], saved_at: int) -> torch.Tensor:
    """Returns what is left of a residual of ones, saved by "a" at that round, after these."""
    elastic = Simulated(3, "a")
    made = worker(elastic)
    history = History()
    for names in rounds:
        history = history.after((1, 1), names)
        if history.round == saved_at:
            elastic.standing = type(elastic.standing)(history)
            saved = made.state_dict()
    saved["mem"]["residual"] = torch.ones(4)
    saved["round"] = saved_at
    again = Simulated(3, "a")
    other = worker(again)
    again.standing = type(again.standing)(history)
    other.load_state_dict(saved)
    assert other.residual is not None
    return other.residual


def test_a_worker_that_returns_keeps_its_residual_unless_it_has_spoken_since() -> None:
    both, alone = ("a", "b"), ("b", "c")
    assert torch.equal(kept((both, both, alone, alone), 2), torch.ones(4))
    assert torch.equal(kept((both, both, both, alone), 2), torch.zeros(4))


def test_a_lighthouse_has_an_address_and_ends() -> None:
    with Lighthouse(min_replicas=2, bind="127.0.0.1:0") as lighthouse:
        assert lighthouse.address.startswith("http://")


def test_without_torchft_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"thinwire\[elastic\]"):
        Quorum("http://localhost:1", N=3, name="a")
