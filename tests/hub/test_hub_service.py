"""A live hub on loopback: joining, training, returning, refusing, draining."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
import torch
from hub_cases import same_state
from live_hub import (
    SETTINGS,
    Entry,
    Limits,
    Lines,
    Live,
    Rude,
    certificates,
    hello,
    join,
    live,
    net,
    train,
)

import thinwire as tw
from thinwire.errors import ConfigError, NonFiniteError, TransportError
from thinwire.hub import rpc
from thinwire.hub import server as server_module
from thinwire.hub.dial import Dial, HubRefused
from thinwire.hub.hub_pb2 import Beat, Piece, Up
from thinwire.hub.settings import HubSettings
from thinwire.wire.body import pack
from thinwire.wire.frame import Address, Kind, seal

pytestmark = pytest.mark.network


@pytest.fixture
def log():
    lines, logger = Lines(), logging.getLogger("thinwire.hub")
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    yield lines.said
    logger.removeHandler(lines)


@pytest.mark.parametrize("few", [0, 1 << 20])
def test_workers_join_adopt_train_and_hold_the_hubs_bits(
    tmp_path: Path, few: int, monkeypatch
) -> None:
    # The core's turns, on a thread of their own and on the loop.
    monkeypatch.setattr(server_module, "FEW", few)
    with live(tmp_path) as hub:
        optimizers = [join(hub, seed) for seed in range(3)]
        for optimizer, _ in optimizers:
            assert optimizer.compressor == SETTINGS.compressor
            assert optimizer.exchange == SETTINGS.exchange
            assert torch.equal(optimizer.anchor, hub.state.anchor)
        for turn in range(5):
            for seed, (optimizer, model) in enumerate(optimizers):
                train(optimizer, model, 1, 10 * turn + seed)
                assert torch.equal(optimizer.anchor, hub.state.anchor)
        for optimizer, _ in optimizers:
            sent = optimizer.transport
            assert (sent.sent, sent.acknowledged, sent.reconnected) == (5, 5, 0)
            assert optimizer.stats.sent["SAID"] > 0
            optimizer.leave()
        assert hub.state.applied == 15
        assert hub.server.core.live == 0


@pytest.mark.parametrize("few", [0, 1 << 20])
def test_a_hub_that_comes_back_goes_on_and_its_workers_go_on_by_themselves(
    tmp_path: Path, few: int, monkeypatch
) -> None:
    monkeypatch.setattr(server_module, "FEW", few)
    first = Live(tmp_path)
    optimizer, model = join(first, worker="a", patience=60.0)
    train(optimizer, model, 4)
    before = copy.deepcopy(first.state)
    first.stop()
    trained = threading.Thread(target=train, args=(optimizer, model, 3))
    trained.start()
    time.sleep(0.3)
    second = Live(tmp_path, listen=f"127.0.0.1:{first.port}")
    assert second.state.applied >= before.applied
    trained.join(60)
    assert second.state.applied == 7
    assert torch.equal(optimizer.anchor, second.state.anchor)
    assert optimizer.transport.acknowledged == 7
    optimizer.leave()
    second.stop()


def test_what_was_acknowledged_is_in_the_folder_at_every_moment(tmp_path: Path) -> None:
    # A copy of the folder at any moment is what a power cut would leave.
    with live(tmp_path / "hub") as hub:
        optimizer, model = join(hub, worker="a")
        for count in range(1, 6):
            train(optimizer, model, 1, count)
            there = tmp_path / f"copy-{count}"
            shutil.copytree(tmp_path / "hub", there)
            now = copy.deepcopy(hub.state)
            again = Live(there)
            same_state(again.state, now)
            again.stop()
        optimizer.leave()


def test_snapshots_take_the_journals_place_while_it_serves(tmp_path: Path) -> None:
    with live(tmp_path, limits=Limits(timeout=0.4, snapshot=500)) as hub:
        optimizer, model = join(hub, worker="a")
        for turn in range(8):
            train(optimizer, model, 3, turn)
            time.sleep(0.1)
        assert hub.server.journal.generation > 1
        assert len(list(tmp_path.glob("journal-*"))) <= 2
        state = copy.deepcopy(hub.state)
        optimizer.leave()
    again = Live(tmp_path)
    assert torch.equal(again.state.anchor, state.anchor)
    assert again.state.applied == 24
    again.stop()


def test_a_worker_returns_with_its_residual(tmp_path: Path) -> None:
    with live(tmp_path) as hub:
        optimizer, model = join(hub, worker="a")
        train(optimizer, model, 3)
        saved, residual = optimizer.state_dict(), optimizer.residual.clone()
        optimizer.transport.close()  # as a crash would
        again, model = join(hub, worker="a", resume=saved)
        assert again.round == 3
        assert torch.equal(again.residual, residual)
        assert torch.equal(again.anchor, hub.state.anchor)
        train(again, model, 2)
        again.transport.close()
        late, model = join(hub, worker="a", resume=saved)
        assert late.round == 5  # What it owed then has partly been said since.
        assert not late.residual.any()
        train(late, model, 1)
        assert hub.state.applied == 6
        with pytest.raises(ConfigError, match="rank"):
            join(hub, worker="b", resume=saved)
        late.leave()


def test_each_wrong_caller_is_told_why_with_a_code_of_its_own(tmp_path: Path, log) -> None:
    codes = {}
    with live(tmp_path, entry=Entry(token="a long secret")) as hub:
        known = {"token": "a long secret"}
        optimizer, model = join(hub, worker="a", **known)
        train(optimizer, model, 2)
        before = copy.deepcopy(hub.state)

        def refused(**more) -> HubRefused:
            with pytest.raises(HubRefused) as caught:
                join(hub, worker="w", **{**known, **more})
            return caught.value

        wrong = {
            "model": refused(model=torch.nn.Linear(6, 5)),
            "settings": refused(H=9),
            "compressor": refused(compressor=tw.Sign()),
            "token": refused(token="another secret"),
            "no token": refused(token=None),
        }
        assert "tensor 0 is weight (5, 6) float32 parameter here" in wrong["model"].sentence
        assert "and 0.weight (5, 6) float32 parameter on the hub" in wrong["model"].sentence
        assert "H is 9 here and 2 on the hub" in wrong["settings"].sentence
        assert "compressor is Sign() here and Chain(" in wrong["compressor"].sentence
        codes |= {name: error.code for name, error in wrong.items()}

        rude = Rude(hub.address, (("authorization", "Bearer a long secret"),))
        member, C = hub.state.members["a"], SETTINGS.compressor
        d, run = hub.server.spans.d, hub.server.core.run
        body = pack(C.compress(torch.ones(d), tw.Key(0), hub.server.spans), C)
        optimizer.transport.close()

        def update(frame: bytes) -> tuple[str, str]:
            return rude.say(hello(hub, "a"), Up(piece=Piece(data=frame, last=True, base=0)))

        at = lambda **o: Address(**{"run": run, "round": 2, "rank": member.number, **o})
        said = {
            "version": rude.say(hello(hub, protocol=0)),
            "another run": update(seal(Kind.SAID, at(run=run ^ 1), body)),
            "replayed": update(seal(Kind.SAID, at(round=0), body)),
            "altered": update(seal(Kind.SAID, at(), body)[:-1] + b"?"),
            "nan": update(seal(Kind.ALARM, at(), (1).to_bytes(4, "little"))),
            "too long": update(bytes(hub.server.service.bound + 1)),
            "not joined": rude.say(Up(beat=Beat())),
            "no hello": rude.say(),
            "no message": rude.say(b"\xff\xff\xff"),
        }
        words = {
            "version": "an older protocol version, 0; this hub speaks 1",
            "another run": "is of run",
            "replayed": "applied before",
            "altered": "checksum",
            "nan": "NaN or an infinity in tensor '0.bias'",
            "too long": "sends more than",
            "not joined": "begins with a hello",
            "no hello": "begins with a hello",
        }
        for name, word in words.items():
            assert word in said[name][1], (name, said[name])
        codes |= {name: code for name, (code, _) in said.items()}
        rude.close()
        distinct = ["model", "settings", "token", "version", "another run", "replayed", "nan"]
        distinct += ["altered", "too long", "not joined"]
        assert len({codes[name] for name in distinct}) == len(distinct), codes
        for name in distinct:
            assert sum(f"({codes[name]})" in line for line in log) >= 1, name
        same_state(hub.state, before)
        # The hub is up, and the worker it knows goes on.
        optimizer, model = join(hub, worker="a", **known)
        train(optimizer, model, 1)
        assert hub.state.applied == 3
        optimizer.leave()


def test_a_refused_caller_learns_nothing_of_the_model(tmp_path: Path) -> None:
    with live(tmp_path, entry=Entry(token="a long secret")) as hub:
        rude = Rude(hub.address)
        code, sentence = rude.say(hello(hub))
        assert (code, sentence) == (
            "UNAUTHENTICATED", "the token is missing or wrong; give the hub's own with token=",
        )  # fmt: skip
        for method, request in ((rpc.SETTINGS, b""), (rpc.STATUS, b"")):
            with pytest.raises(grpc.RpcError) as caught:
                rude.channel.unary_unary(method, bytes, bytes)(request, timeout=10)
            assert caught.value.details() == sentence
        rude.close()
        assert hub.state.members == {}


def test_a_nan_stops_its_worker_and_not_the_hub(tmp_path: Path, log) -> None:
    with live(tmp_path) as hub:
        optimizer, model = join(hub, worker="a")
        train(optimizer, model, 1)
        with torch.no_grad():
            model[0].weight[0, 0] = float("nan")
        with pytest.raises(NonFiniteError, match=r"tensor '0\.weight'"):
            train(optimizer, model, 1)
        assert any("OUT_OF_RANGE" in line and "0.weight" in line for line in log)
        other, healthy = join(hub, worker="b")
        train(other, healthy, 2)
        assert hub.state.applied == 3
        other.leave()
        optimizer.transport.close()


def test_without_tls_or_a_token_only_this_machine_may_enter(tmp_path: Path, log) -> None:
    open_hub = Entry()
    for address in ("0.0.0.0:0", "[::]:0", "10.0.0.1:7077", ":7077"):
        with pytest.raises(ConfigError, match="could be entered by anybody"):
            open_hub.check_address(address)
    assert "only this machine" in open_hub.check_address("127.0.0.1:0")
    assert "in clear" in Entry(token="12345678").check_address("0.0.0.0:1")
    with live(tmp_path):
        assert any("only this machine" in line for line in log)
    with pytest.raises(ConfigError, match="shorter"):
        Entry(token="1234")
    with pytest.raises(ConfigError, match="one of them is missing"):
        Entry(certificate=tmp_path)
    with pytest.raises(ConfigError, match="own as well"):
        Entry(clients=tmp_path)


def test_tls_and_mutual_tls_let_in_whom_they_should(tmp_path: Path, log) -> None:
    pem = certificates(tmp_path)
    tls = Entry(pem["hub"], pem["hub.key"])
    with live(tmp_path / "tls", entry=tls) as hub:
        optimizer, model = join(hub, authority=pem["authority"])
        train(optimizer, model, 1)
        optimizer.leave()
        with pytest.raises(TransportError, match="cannot be reached"):
            join(hub, authority=pem["other"], patience=1.0)
        with pytest.raises(TransportError, match=r"If it has TLS, give authority="):
            join(hub, patience=1.0)
    mutual = Entry(pem["hub"], pem["hub.key"], pem["authority"], ("alice",))
    with live(tmp_path / "mtls", entry=mutual) as hub:

        def enter(who: str):
            return join(
                hub, authority=pem["authority"], certificate=pem[who], key=pem[f"{who}.key"],
                patience=1.0,
            )  # fmt: skip

        optimizer, model = enter("alice")
        train(optimizer, model, 1)
        optimizer.leave()
        with pytest.raises(HubRefused, match="is of bob, who may not enter") as caught:
            enter("bob")
        assert caught.value.code == "PERMISSION_DENIED"
        assert any("PERMISSION_DENIED" in line for line in log)
        with pytest.raises(TransportError, match="and the hub's authority yours"):
            enter("stranger")
        with pytest.raises(TransportError, match="cannot be reached"):
            join(hub, authority=pem["authority"], patience=1.0)
        assert hub.state.applied == 1


def test_limits_on_rate_workers_and_silence_hold(tmp_path: Path, log) -> None:
    limits = Limits(workers=1, rate=2.0, timeout=0.6)
    with live(tmp_path, limits=limits) as hub:
        optimizer, model = join(hub, worker="a")
        with pytest.raises(HubRefused, match="full"):
            join(hub, worker="b")
        with pytest.raises(HubRefused, match=r"more than 2\.0 updates a second") as caught:
            train(optimizer, model, 50)
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        # Its beats end with its stream: then it is lost, and another may come.
        optimizer.transport.close()
        until = time.monotonic() + 10
        while not any("was silent" in line for line in log) and time.monotonic() < until:
            time.sleep(0.05)
        assert any("was silent" in line for line in log)
        assert not hub.server.core.live
        other, model = join(hub, worker="b")
        time.sleep(1.0)  # Beats keep it.
        assert hub.server.core.live == 1
        train(other, model, 1)
        other.leave()


def test_a_round_by_time_takes_fewer_steps_on_a_slower_machine(tmp_path: Path) -> None:
    settings = HubSettings(
        H=1000, seconds=0.2, compressor=SETTINGS.compressor, exchange=SETTINGS.exchange
    )
    with live(tmp_path, settings=settings) as hub:
        steps = {}
        for name, pause in (("fast", 0.005), ("slow", 0.06)):
            reports = []
            optimizer, model = join(hub, worker=name, on_round=reports.append)
            while len(reports) < 3:
                optimizer.zero_grad()
                model(torch.ones(1, 6)).sum().backward()
                time.sleep(pause)
                optimizer.step()
            steps[name] = max(r.local_steps for r in reports)
            optimizer.leave()
    assert 2 <= steps["slow"] <= 4
    assert steps["fast"] > 3 * steps["slow"]


def test_status_and_metrics_say_what_the_hub_did(tmp_path: Path) -> None:
    with live(tmp_path, metrics="127.0.0.1:0") as hub:
        optimizer, model = join(hub, worker='we"ird')
        train(optimizer, model, 3)
        status = Dial(hub.address).status()
        assert status["applied"] == 3
        assert status["workers"][0]["bytes_up"] == optimizer.stats.sent["SAID"]
        down = status["workers"][0]["bytes_down"]
        assert down == optimizer.stats.received["ANCHOR"] + optimizer.transport.told
        assert sum(status["staleness_histogram"]) == 3
        port = hub.server._metrics.sockets[0].getsockname()[1]
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
        lines = text.decode().splitlines()
        assert "thinwire_hub_applied_total 3" in lines
        assert 'thinwire_hub_worker_updates_total{worker="we\\"ird"} 3' in lines
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/else", timeout=10)
        optimizer.leave()


def test_a_second_process_of_a_worker_takes_the_first_ones_place(tmp_path: Path) -> None:
    with live(tmp_path) as hub:
        first, model = join(hub, worker="a")
        train(first, model, 2)
        second, again = join(hub, worker="a")
        assert second.round == 2
        train(second, again, 1)
        with pytest.raises(HubRefused, match="taken this worker's place"):
            train(first, model, 1, seed=9)
        second.leave()
        first.transport.close()


COMMAND = [sys.executable, "-m", "thinwire.cli"]


def test_the_command_serves_drains_at_sigterm_and_refuses_to_be_open(tmp_path: Path) -> None:
    torch.save(dict(net().named_parameters()), tmp_path / "model.pt")
    base = [*COMMAND, "hub", "--model-from", str(tmp_path / "model.pt"), "--H", "2"]
    refused = subprocess.run(
        [*base, "--state", str(tmp_path / "s"), "--listen", "0.0.0.0:0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "could be entered by anybody" in refused.stderr
    process = subprocess.Popen(
        [*base, "--state", str(tmp_path / "s"), "--listen", "127.0.0.1:0"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = next(line for line in process.stderr if "listens on" in line)
        address = line.split("listens on ")[1].split(",")[0]
        optimizer, model = join(address, model=net(), worker="a", patience=30.0)
        train(optimizer, model, 3)
        shown = subprocess.run(
            [*COMMAND, "hub-status", address, "--once", "--json", str(tmp_path / "status.json")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert "1 of 1 workers live; 3 updates applied" in shown.stdout
        data = json.loads((tmp_path / "status.json").read_text())
        assert data["results"][0]["applied"] == 3
        os.kill(process.pid, signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(30) == 0
        assert "draining" in said
        assert "down: 3 updates applied" in said
        optimizer.transport.close()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
