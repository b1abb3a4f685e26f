"""One stream holds a place: a slow worker keeps it, a lost one returns, a later one has it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from live_hub import Limits, Live, join, live, train

from thinwire.errors import TransportError
from thinwire.hub import client, rpc, service
from thinwire.hub.client import HubTransport
from thinwire.hub.dial import HubRefused
from thinwire.hub.places import Places

pytestmark = pytest.mark.network

SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))
"""So that a hub writes no faster than its peer reads."""


class Gate:
    """Holds the next model back that a hub tells, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened, send = threading.Event(), threading.Event(), service.send

        async def gated(*args) -> None:
            if not self.reached.is_set():
                self.reached.set()
                while not self.opened.is_set():
                    await asyncio.sleep(0.01)
            await send(*args)

        monkeypatch.setattr(service, "send", gated)


@contextmanager
def hearing(hub: Live, monkeypatch: pytest.MonkeyPatch) -> Iterator[Future]:
    """A second process of worker "a": it joins, and hears the model until the body is done."""
    gate = Gate(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        try:
            coming = pool.submit(join, hub, worker="a")
            assert gate.reached.wait(20)
            yield coming
        finally:
            gate.opened.set()


class Mute:
    """Beats that say nothing."""

    def __init__(self, words, every: float) -> None:
        pass

    def stop(self) -> None:
        pass


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def wide() -> torch.nn.Module:
    """7 MB of parameters."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 200_000), torch.nn.Linear(200_000, 2))


def test_a_worker_that_hears_the_model_for_longer_than_the_timeout_is_not_lost(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    caplog.set_level(logging.INFO, "thinwire.hub")
    word, slow = HubTransport._word, threading.Event()

    def slowly(self):
        if slow.is_set():
            time.sleep(0.1)
        return word(self)

    monkeypatch.setattr(HubTransport, "_word", slowly)
    monkeypatch.setattr(rpc, "OPTIONS", (*rpc.OPTIONS, *SMALL_WINDOW))
    with live(tmp_path, model=wide(), limits=Limits(timeout=1.0)) as hub:
        slow.set()
        began = time.monotonic()
        optimizer, model = join(hub, model=wide(), worker="a")
        assert time.monotonic() - began > 2.0
        assert hub.server.core.live == 1
        assert "silent" not in caplog.text
        slow.clear()
        train(optimizer, model, 2)
        assert hub.state.applied == 2
        optimizer.leave()


@pytest.mark.parametrize("late", [False, True], ids=["told at once", "told by its update"])
def test_a_worker_that_is_lost_on_an_open_stream_joins_again_by_itself(
    tmp_path: Path, monkeypatch, caplog, late: bool
) -> None:
    caplog.set_level(logging.INFO, "thinwire.hub")
    monkeypatch.setattr(client, "Beats", Mute)
    if late:
        monkeypatch.setattr(Places, "_cancel", lambda self, place: None)
    with live(tmp_path, limits=Limits(timeout=0.5)) as hub:
        optimizer, model = join(hub, worker="a")
        train(optimizer, model, 1)
        until(lambda: hub.server.core.live == 0)
        train(optimizer, model, 2)
        assert hub.state.applied == 3
        assert optimizer.transport.reconnected >= 1
        assert "worker 'a' was silent for 0.5 s; it has to come back" in caplog.text
        optimizer.leave()


def test_an_update_of_the_first_process_while_the_second_hears_the_model_is_not_taken(
    tmp_path: Path, monkeypatch
) -> None:
    with live(tmp_path) as hub:
        first, model = join(hub, worker="a")
        train(first, model, 2)
        with hearing(hub, monkeypatch) as coming:
            with pytest.raises(HubRefused, match="taken this worker's place") as caught:
                train(first, model, 1, seed=9)
            assert caught.value.code == "ABORTED"
        second, again = coming.result(20)
        assert second.round == 2
        train(second, again, 2)
        assert hub.state.applied == 4
        first.transport.close()
        second.leave()


@pytest.mark.parametrize("ends", ["leave", "close"])
def test_the_first_process_takes_nothing_from_the_second_when_it_ends(
    tmp_path: Path, monkeypatch, ends: str
) -> None:
    with live(tmp_path) as hub:
        first, model = join(hub, worker="a")
        train(first, model, 1)
        with hearing(hub, monkeypatch) as coming:
            getattr(first.transport, ends)()
        second, again = coming.result(20)
        train(second, again, 2)
        assert (hub.state.applied, hub.server.core.live) == (3, 1)
        second.leave()
        assert hub.server.core.live == 0


def test_a_hub_that_goes_while_it_tells_its_model_is_waited_for(
    tmp_path: Path, monkeypatch
) -> None:
    first = Live(tmp_path)
    gate = Gate(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        try:
            coming = pool.submit(join, first, worker="a", patience=60.0)
            assert gate.reached.wait(20)
            first.stop()
        finally:
            gate.opened.set()
        second = Live(tmp_path, listen=f"127.0.0.1:{first.port}")
        optimizer, model = coming.result(60)
    assert torch.equal(optimizer.anchor, second.state.anchor)
    train(optimizer, model, 1)
    assert second.state.applied == 1
    optimizer.leave()
    second.stop()


def test_a_model_that_breaks_off_is_told_anew(tmp_path: Path, monkeypatch) -> None:
    send, broken = service.send, []

    async def breaking(parts, context, *more) -> None:
        if not broken:
            broken.append(1)
            await context.write(service.Down(piece=service.Piece(data=b"half of it")))
            raise RuntimeError("as a bug would")
        await send(parts, context, *more)

    monkeypatch.setattr(service, "send", breaking)
    with live(tmp_path) as hub:
        optimizer, model = join(hub, worker="a")
        assert torch.equal(optimizer.anchor, hub.state.anchor)
        train(optimizer, model, 1)
        assert hub.state.applied == 1
        optimizer.leave()


def test_a_worker_that_could_not_join_leaves_no_thread_behind(tmp_path: Path, monkeypatch) -> None:
    def beating() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if t.name == "thinwire-beat"}

    hub, before = Live(tmp_path), beating()
    gate = Gate(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(join, hub, worker="a", patience=0.5)
        assert gate.reached.wait(20)
        hub.stop()
        gate.opened.set()
        with pytest.raises(TransportError, match=r"cannot be reached for 0\.5 s"):
            coming.result(30)
    until(lambda: beating() <= before)
