"""Quantities as people write them: rates, times, sizes, counts and shares."""

from __future__ import annotations

import math
import re

from thinwire.errors import ConfigError

PREFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
BINARY = {"k": 2.0**10, "m": 2.0**20, "g": 2.0**30, "t": 2.0**40}
_NUMBER = r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*"
_RATE = re.compile(_NUMBER + r"(?:([kmgt]?)bit(?:/s)?|([kmgtKMGT]?)b/s|([kKMGT]?)B/s|)\s*")
_TIME = re.compile(_NUMBER + r"(us|ms|s|min|h|)\s*")
_SIZE = re.compile(_NUMBER + r"(?:([kKMGT])(i?))?B?\s*")
_COUNT = re.compile(_NUMBER + r"([kKMBTmb]?)\s*")
_SHARE = re.compile(_NUMBER + r"(%?)\s*")
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0, "h": 3600.0}


def rate(text: str) -> float:
    """Returns bits per second.

    Raises:
        ConfigError: the text is no rate, or the rate is zero; with an example of a right one.

    Example:
        >>> rate("100mbit"), rate("1.5 Gbit/s"), rate("40 MB/s"), rate("2e6")
        (100000000.0, 1500000000.0, 320000000.0, 2000000.0)
    """
    lowered = re.sub(r"(?i)bits?", "bit", text.strip())
    found = _RATE.fullmatch(re.sub(r"[KMGT](?=bit)", lambda m: m[0].lower(), lowered))
    value = math.nan
    if found:
        bits, small, capital = (
            None if p is None else PREFIX[p.lower()] for p in found.groups()[1:]
        )
        value = _number(found[1]) * (bits or small or 8 * (capital or 0.125))
    if not found or math.isnan(value):
        # "bps" is bits to most people and bytes to `tc`.
        raise ConfigError(f"{text!r} is no rate; write 100mbit, 1.5gbit or 12.5MB/s")
    if not 0 < value < math.inf:
        raise ConfigError(f"a bandwidth of {text!r} carries nothing; write one such as 100mbit")
    return value


def seconds(text: str) -> float:
    """Returns seconds; a bare number is seconds.

    Raises:
        ConfigError: the text is no time.

    Example:
        >>> seconds("20ms"), seconds("0.8"), seconds("2min")
        (0.02, 0.8, 120.0)
    """
    found = _TIME.fullmatch(text)
    value = math.nan if not found else _number(found[1]) * SECONDS[found[2]]
    if not math.isfinite(value):
        raise ConfigError(f"{text!r} is no time; write 20ms, 0.8s or 2min")
    return value


def count(text: str) -> int:
    """Returns a whole number, such as parameters.

    Raises:
        ConfigError: the text is no whole number of at least 1.

    Example:
        >>> count("1.1e9"), count("70B"), count("350M"), count("7850")
        (1100000000, 70000000000, 350000000, 7850)
    """
    found = _COUNT.fullmatch(text)
    value = math.nan
    if found:
        value = _number(found[1]) * PREFIX[found[2].lower().replace("b", "g")]
    return _whole(value, 1, f"{text!r} is no whole number of at least 1; write 1.1e9, 350M or 70B")


def size(text: str) -> int:
    """Returns bytes.

    Raises:
        ConfigError: the text is no whole number of bytes.

    Example:
        >>> size("256MB"), size("64MiB"), size("1.5 kB"), size("4096")
        (256000000, 67108864, 1500, 4096)
    """
    found = _SIZE.fullmatch(text)
    value = math.nan
    if found:
        prefixes = BINARY if found[3] else PREFIX
        value = _number(found[1]) * prefixes[(found[2] or "").lower()]
    return _whole(value, 0, f"{text!r} is no number of bytes; write 256MB, 64MiB or 4096")


def share(text: str) -> float:
    """Returns a fraction from 0 to 1.

    Raises:
        ConfigError: the text is none.

    Example:
        >>> share("90%"), share("0.9"), share("0")
        (0.9, 0.9, 0.0)
    """
    found = _SHARE.fullmatch(text)
    value = math.nan if not found else _number(found[1]) / (100 if found[2] else 1)
    if not 0 <= value <= 1:
        raise ConfigError(f"{text!r} is no share of a whole; write 1% or 0.01")
    return value


def say_rate(bits: float) -> str:
    """Returns bits per second as a person reads them.

    Example:
        >>> say_rate(1e8), say_rate(2.5e9), say_rate(56e3)
        ('100 Mbit/s', '2.5 Gbit/s', '56 kbit/s')
    """
    return _said(bits, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"), 1e3)


def say_seconds(t: float) -> str:
    """Returns seconds as a person reads them.

    Example:
        >>> say_seconds(0.02), say_seconds(3.25), say_seconds(310), say_seconds(8000)
        ('20 ms', '3.25 s', '5.17 min', '2.22 h')
    """
    if t >= 3600:
        return f"{t / 3600:.3g} h"
    if t >= 120:
        return f"{t / 60:.3g} min"
    if t >= 1 or t == 0:
        return f"{t:.3g} s"
    return f"{t * 1e3:.3g} ms" if t >= 1e-3 else f"{t * 1e6:.3g} us"


def _said(value: float, names: tuple[str, ...], step: float) -> str:
    for name in names:
        if value < 999.5 or name == names[-1]:
            return f"{value:.3g} {name}"
        value /= step
    raise AssertionError


def _whole(value: float, least: int, wrong: str) -> int:
    if not least <= value < 1e15 or value != round(value):
        raise ConfigError(wrong)
    return int(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # such as 1.2.3
        return math.nan
