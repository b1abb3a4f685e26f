"""What a worker does while its hub is away, and what it says before it dials."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from live_hub import join, live, train

from thinwire.errors import ConfigError, NonFiniteError, TransportError
from thinwire.hub import dial
from thinwire.hub.client import _Ended
from thinwire.hub.dial import FIRST_WAIT, Dial, Waits


def test_patience_begins_at_a_failure_and_anew_when_the_hub_was_found(monkeypatch) -> None:
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(dial, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    waits = Waits(Dial("hub:1", patience=10.0))
    now[0] = 1000.0  # The hub was there all the time.
    for _ in range(4):
        waits.after(_Ended())
    assert slept == [0.1, 0.2, 0.4, 0.8]
    now[0] += 8.0
    waits.found()
    now[0] += 1000.0
    began = now[0]
    waits.after(_Ended())
    assert slept[-1] == 16 * FIRST_WAIT  # It may greet and fail each time.
    with pytest.raises(TransportError, match="cannot be reached for 10 s"):
        [waits.after(_Ended()) for _ in range(9)]
    assert 5.0 < now[0] - began <= 10.0


@pytest.mark.network
def test_a_nan_is_said_to_its_user_though_the_hub_is_gone(tmp_path: Path) -> None:
    with live(tmp_path) as hub:
        optimizer, model = join(hub, worker="a", patience=0.2)
        train(optimizer, model, 1)
    with pytest.raises(TransportError, match="cannot be reached"):
        train(optimizer, model, 1)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"tensor '0\.weight'"):
        train(optimizer, model, 1)
    optimizer.transport.close()


@pytest.mark.network
@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_token_that_travels_in_clear_is_warned_of(caplog, host: str, warns: bool) -> None:
    with caplog.at_level(logging.WARNING, "thinwire"), pytest.raises(TransportError):
        join(f"{host}:1", token="a long secret", patience=0.1)
    assert (f"travel in clear to {host}:1; if that hub has TLS" in caplog.text) == warns


def test_a_token_that_no_call_can_carry_is_refused() -> None:
    for token in ("two\nlines", "schlüssel"):
        with pytest.raises(ConfigError, match="one line of printable ASCII"):
            Dial("hub:1", token)
