"""What a hub owns goes to JSON and back, and a model to serve comes from a file or a function."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import thinwire as tw
from thinwire.cli.hub import chosen_settings, read_settings
from thinwire.cli.hub_model import load_model
from thinwire.errors import ConfigError
from thinwire.hub.meter import Meter, escape, prometheus
from thinwire.hub.settings import HubSettings, difference, read_description, spans_of
from thinwire.parameters import described

KEPT = {"memory": 100}
ALL = [
    HubSettings(),
    HubSettings(H=tw.RandomGaps(4), seconds=1.5, seed=9),
    HubSettings(H=((0, 1), (10, 8)), compressor=tw.Sign()),
    HubSettings(exchange=tw.Hub(tw.NoFeedback(), tw.DelayedNesterov(), tw.FixedN(3))),
    chosen_settings(8, True, 2.0, 0.02, 0.0, False, KEPT, "weight", 5, "scale", "nesterov", 1),
    chosen_settings(
        8, False, None, 0.02, 0.1, False, {}, "7", None, "accept", "delayed-nesterov", 1
    ),
    chosen_settings(8, False, None, 0.02, 0.1, True, KEPT, "live", None, "accept", "average", 1),
]


@pytest.mark.parametrize("settings", ALL, ids=repr)
def test_settings_go_to_json_and_back(settings: HubSettings, tmp_path: Path) -> None:
    text = json.dumps(settings.as_dict())
    again = HubSettings.from_dict(json.loads(text))
    assert again.as_dict() == json.loads(text)
    assert again.exchange == settings.exchange
    (tmp_path / "settings.json").write_text(text)
    assert read_settings(tmp_path / "settings.json").as_dict() == json.loads(text)


def test_settings_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="function"):
        HubSettings(H=lambda round: 3)
    with pytest.raises(ConfigError, match="no settings of a hub"):
        HubSettings.from_dict({"H": 3})
    with pytest.raises(ConfigError, match="no setting is called"):
        HubSettings.from_dict({**HubSettings().as_dict(), "compressor": {"Eval": {}}})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "none.json")
    for more in ({"outer": "adam"}, {"count": "all"}):
        asked = {"count": "live", "outer": "average", **more}
        head, tail = (8, False, None, 0.01, 0.01, False, {}, asked["count"]), (None, "accept")
        with pytest.raises(ConfigError, match="choose one of"):
            chosen_settings(*head, *tail, asked["outer"], 0)


def test_exact_replies_and_residuals_are_not_asked_for_at_once() -> None:
    with pytest.raises(ConfigError, match="--down 0 asks for exact replies"):
        chosen_settings(8, False, None, 0.01, 0.0, True, {}, "live", None, "accept", "average", 0)


def test_shapes_of_described_tensors_are_read_back() -> None:
    named = [(n, torch.zeros(s)) for n, s in (("a", (3, 4)), ("b", ()), ("c", (5,)), ("d", (0,)))]
    spans = spans_of(described(named, "parameter"))
    assert spans.shapes == ((3, 4), (), (5,), (0,))
    assert spans.d == 18


def test_a_setting_that_one_side_lacks_is_a_difference() -> None:
    hub = {"settings": {"H": 8, "seconds": None}, "tensors": []}
    found = difference(hub, {"settings": {"H": 8, "secones": None}, "tensors": []})
    assert found == (
        "settings",
        "seconds is unknown here and None on the hub; leave it out to adopt the hub's",
    )
    for text in ("[]", "{}", '{"settings": {}, "tensors": [1]}', "nonsense"):
        with pytest.raises(ValueError, match=r"lacks|Expecting"):
            read_description(text)


def test_a_model_comes_from_a_checkpoint_or_a_function(tmp_path: Path, monkeypatch) -> None:
    net = torch.nn.Linear(3, 2)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    for (name, mine), (other, loaded) in zip(
        net.named_parameters(), load_model(str(tmp_path / "net.pt")), strict=True
    ):
        assert name == other
        assert torch.equal(mine, loaded)
    (tmp_path / "my_models.py").write_text(
        "import torch\ndef small():\n    return torch.nn.Linear(3, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert [n for n, _ in load_model("my_models:small")] == ["weight", "bias"]
    sys.modules.pop("my_models")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for source, word in (
        ("list.pt", "holds no"),
        ("junk.pt", "no checkpoint"),
        ("nowhere", "is no file"),
        ("nowhere:small", "cannot be called"),
        ("json:small", "cannot be called"),
    ):
        with pytest.raises(ConfigError, match=word):
            load_model(source)


def test_prometheus_text_counts_staleness_cumulatively() -> None:
    from hub_cases import Worker, core

    from thinwire.hub.state import BUCKETS

    hub = core(tw.Hub(downlink=tw.Exact()))
    a, b = Worker(hub, "a"), Worker(hub, "b")
    for _ in range(3):
        a.say()
    b.say()
    meter = Meter(0.0)
    meter.answered("a", 10, 20, 0, 1.0)
    lines = prometheus(meter.status(hub.state, 2.0, 7, 41)).splitlines()
    assert 'thinwire_hub_staleness_bucket{le="0"} 3' in lines
    assert 'thinwire_hub_staleness_bucket{le="3"} 4' in lines
    assert 'thinwire_hub_staleness_bucket{le="+Inf"} 4' in lines
    # What is staler than the last bound is under none.
    assert sum("staleness_bucket" in line for line in lines) == BUCKETS
    assert "thinwire_hub_staleness_sum 3" in lines
    assert 'thinwire_hub_worker_up_bytes_total{worker="a"} 10' in lines
    assert 'thinwire_hub_worker_down_bytes_total{worker="a"} 20' in lines
    assert 'thinwire_hub_worker_staleness{worker="b"} 0' in lines
    assert escape('a"\n') == 'a\\"\\n'


def test_a_rate_is_of_the_last_minute_and_silence_of_the_last_word() -> None:
    from hub_cases import core

    hub = core(tw.Hub())
    hub.join("a", 1.0, 1000.0)
    meter = Meter(1000.0, hub.heard)

    def seen(now: float) -> tuple[float, float | None]:
        (worker,) = meter.status(hub.state, now, 7, 41)["workers"]
        return worker["rate"], worker["silent"]

    assert seen(1001.0) == (0.0, 1.0)
    for n in range(600):  # Two a second for five minutes.
        meter.answered("a", 10, 20, 0, 1002.0 + n / 2)
        assert seen(1002.0 + n / 2)[0] == pytest.approx(2.0 if n else 0.0, rel=0.01)
    hub.heard["a"] = 1310.0
    assert 0.0 < seen(1331.5)[0] < 1.1
    assert seen(1380.0) == (0.0, 70.0)
    hub.leave("a")
    assert seen(1380.0) == (0.0, None)


def test_a_round_may_end_early_only_where_nobody_waits() -> None:
    net = torch.nn.Linear(2, 1)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(tw.ConfigError, match=r"due= is for exchange=Hub"):
        tw.LocalSGD(net, inner, due=lambda local: True)


def test_a_group_has_no_hub() -> None:
    net = torch.nn.Linear(2, 1)
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(tw.ConfigError, match=r"thinwire\.join"):
        tw.LocalSGD(net, inner, exchange=tw.Hub())
