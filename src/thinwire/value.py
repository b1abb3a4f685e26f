"""A setting is a value: frozen, equal by content, `repr` is the constructor, JSON and back."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, TypeVar

from thinwire.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Value:
    """The base of every setting: its `repr` builds it again, and so does its JSON.

    Example:
        >>> from thinwire import QSGD, TopK
        >>> TopK(density=0.01) >> QSGD(bits=4)
        TopK(density=0.01) >> QSGD(bits=4)
        >>> Value.from_json(TopK(k=40).to_json()) == TopK(k=40)
        True
    """

    _classes: ClassVar[dict[str, type[Value]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = Value._classes.setdefault(cls.__name__, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"two settings are called {cls.__name__}: {known} and {cls}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._chosen())})"

    def to_json(self) -> dict[str, Any]:
        """Returns `{class name: {field: value}}`, defaults left out."""
        chosen = {k: v.to_json() if isinstance(v, Value) else v for k, v in self._chosen()}
        return {type(self).__name__: chosen}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Any:
        """Returns the value that `to_json` wrote.

        Raises:
            ConfigError: the data names no setting of this version, or an argument it lacks.
        """
        chosen: Any = next(iter(data.values()), None) if isinstance(data, dict) else None
        if not (isinstance(chosen, dict) and len(data) == 1):
            raise ConfigError(f"{data!r} is no setting; one is written {{'TopK': {{'k': 40}}}}")
        (name,) = data
        if name not in Value._classes:
            known = ", ".join(sorted(Value._classes))
            raise ConfigError(f"no setting is called {name!r}; there are: {known}")
        arguments = {
            k: Value.from_json(v) if isinstance(v, dict) else tuple(v) if isinstance(v, list) else v
            for k, v in chosen.items()
        }
        try:
            return Value._classes[name](**arguments)
        except TypeError as error:
            raise ConfigError(f"{name}: {error}") from None

    def _chosen(self) -> list[tuple[str, Any]]:
        pairs = [(f, getattr(self, f.name)) for f in fields(self)]
        return [(f.name, v) for f, v in pairs if f.default is MISSING or v != f.default]


def one_of(owner: object, name: str, value: T, choices: tuple[T, ...]) -> None:
    """Raises a ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(c) for c in choices)
        raise ConfigError(f"{type(owner).__name__}: {name} is {value!r}; choose one of {listed}")


def in_range(owner: object, name: str, value: float, low: float, high: float) -> None:
    """Raises a ConfigError unless `low <= value <= high`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        raise ConfigError(
            f"{type(owner).__name__}: {name} is {value!r}; it must lie in [{low}, {high}]"
        )


def whole(owner: object, name: str, value: int, low: int, high: int) -> None:
    """Raises a ConfigError unless `value` is a whole number in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(
            f"{type(owner).__name__}: {name} is {value!r}; "
            f"it must be a whole number in [{low}, {high}]"
        )


def of_kind(owner: object, name: str, value: object, *kinds: type) -> None:
    """Raises a ConfigError unless `value` is an instance of one of these classes."""
    if not isinstance(value, kinds):
        names = " or ".join("None" if k is type(None) else f"a {k.__name__}" for k in kinds)
        raise ConfigError(f"{type(owner).__name__}: {name} is {value!r}; give {names}")
