"""A setting is a value: equal by content, hashable, its repr and its JSON build it again."""

from __future__ import annotations

import copy
import json
from dataclasses import FrozenInstanceError, fields

import pytest
from laws.law_cases import (
    COMPRESSORS,
    EXCHANGES,
    NAMES,
    OTHER_SETTINGS,
    OUTERS,
    PEERS,
    SETTINGS,
    WITHOUT,
    concrete,
)

import thinwire as tw
from thinwire.compress import Compressor
from thinwire.value import Value

settings = pytest.mark.parametrize("setting", SETTINGS, ids=repr)


@pytest.mark.parametrize(
    ("base", "listed"),
    [
        (Compressor, COMPRESSORS),
        (tw.Exchange, (*EXCHANGES, *PEERS, WITHOUT)),
        (tw.Outer, (*OUTERS, tw.Adopt())),
        (Value, SETTINGS),
    ],
    ids=["compressors", "exchanges", "outers", "settings"],
)
def test_every_registered_class_is_in_the_laws(base: type, listed: tuple[Value, ...]) -> None:
    assert concrete(base) == {type(value) for value in listed}


def test_a_class_the_laws_forgot_would_be_noticed() -> None:
    assert concrete(tw.Outer) != {type(value) for value in OUTERS[:2]}


def test_no_setting_is_listed_twice() -> None:
    assert len(set(SETTINGS)) == len(SETTINGS)


@settings
def test_repr_builds_it_again(setting: Value) -> None:
    again = eval(repr(setting), dict(NAMES))
    assert again == setting
    assert type(again) is type(setting)
    assert repr(again) == repr(setting)


@settings
def test_json_and_back(setting: Value) -> None:
    text = json.dumps(setting.to_json())
    again = Value.from_json(json.loads(text))
    assert again == setting
    assert type(again) is type(setting)
    assert json.dumps(again.to_json()) == text


@settings
def test_equal_by_content_and_by_nothing_else(setting: Value) -> None:
    twin = copy.deepcopy(setting)
    assert twin is not setting
    assert twin == setting
    assert hash(twin) == hash(setting)
    assert [other for other in SETTINGS if other == setting] == [setting]


@settings
def test_frozen(setting: Value) -> None:
    for field in fields(setting):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(setting, field.name, None)


@pytest.mark.parametrize(
    "data",
    [
        3,
        [],
        {},
        {"TopK": {"k": 1}, "Sign": {}},
        {"Nothing": {}},
        {"Value": {}},
        {"Compressor": {}},
        {"TopK": {"size": 3}},
        {"TopK": {}},
        {"TopK": 3},
        {"TopK": None},
        {"TopK": ["k", 3]},
        {"TopK": {"k": "3"}},
        {"TopK": {"k": {"Sign": {}}}},
    ],
    ids=repr,
)
def test_json_of_no_setting_is_a_config_error(data: object) -> None:
    with pytest.raises(tw.ConfigError):
        Value.from_json(data)  # type: ignore[arg-type]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(tw.ConfigError, match=r"'TopJ'.*QSGD.*TopK"):
        Value.from_json({"TopJ": {"k": 1}})


def test_other_settings_are_the_rest() -> None:
    rest = concrete(Value) - concrete(Compressor) - concrete(tw.Exchange) - concrete(tw.Outer)
    assert rest == {type(value) for value in OTHER_SETTINGS}
