"""What a caller can make a hub say, keep and do is bounded."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from live_hub import Limits, Rude, hello, join, live, train

from thinwire.hub.dial import HubRefused
from thinwire.hub.hub_pb2 import Piece, Up
from thinwire.hub.rates import Rates
from thinwire.hub.refused import LONGEST, Refused, one_line


@pytest.mark.network
def test_what_a_caller_wrote_leaves_the_hub_as_one_short_line(tmp_path: Path, caplog) -> None:
    keys = ("H\n2026 WARNING refused (OK): forged", "\ud800", "\x1b[2J\u2028", "x" * 4_000_000)
    with live(tmp_path) as hub, caplog.at_level(logging.WARNING, "thinwire.hub"):
        rude, known = Rude(hub.address), hub.server.description
        for key in keys:
            settings = {**known["settings"], key: 1}
            said = rude.say(hello(hub, description=json.dumps({**known, "settings": settings})))
            assert said[0] == "INVALID_ARGUMENT", said
            assert said[1].isprintable()
            assert "worker 'rude' differs from the hub" in said[1]
            assert len(said[1]) <= LONGEST
        start, depths = json.dumps(known["settings"])[:-1], (100, 400, 460, 480, 700, 950, 100_000)
        for depth in depths:
            deep = '{"a": ' * depth + "1" + "}" * depth
            about = f'{{"settings": {start}, "A": {deep}}}, "tensors": []}}'
            code, _ = rude.say(hello(hub, description=about))
            assert code == "INVALID_ARGUMENT", depth
        rude.close()
        lines = [line for line in caplog.messages if line.startswith("refused (INVALID_ARGUMENT)")]
        assert len(lines) == len(keys) + len(depths)
        assert all(line.isprintable() and len(line) < LONGEST + 100 for line in lines)


def test_a_sentence_is_cut_after_it_was_escaped() -> None:
    assert one_line("Größe 3") == "Größe 3"
    assert one_line("x" * LONGEST) == "x" * LONGEST
    for long in ("x" * (LONGEST + 1), "\n" * (LONGEST // 2 + 1)):
        assert len(one_line(long)) == LONGEST
        assert one_line(long).endswith("...")


@pytest.mark.network
@pytest.mark.parametrize("n", [0, 1, 4095])
def test_a_piece_that_adds_little_is_refused(tmp_path: Path, n: int) -> None:
    with live(tmp_path) as hub:
        rude = Rude(hub.address)
        code, sentence = rude.say(hello(hub), Up(piece=Piece(data=bytes(n), last=False)))
        assert code == "DATA_LOSS"
        assert f"sends a piece of {n} bytes that does not end its frame" in sentence
        rude.close()


def test_an_allowance_belongs_to_its_worker_and_grows_with_time() -> None:
    rates = Rates(2.0)
    for _ in range(3):
        rates.spend("a", 0.0)
    for _ in range(2):
        with pytest.raises(Refused, match=r"'a' sends more than 2\.0 updates a second"):
            rates.spend("a", 0.1)
    rates.spend("b", 0.1)
    rates.spend("a", 0.5)
    for _ in range(100):
        Rates(None).spend("a", 0.0)


@pytest.mark.network
def test_a_new_stream_brings_no_new_allowance(tmp_path: Path) -> None:
    with live(tmp_path, limits=Limits(rate=0.1)) as hub:
        first, model = join(hub, worker="a")
        train(first, model, 1)
        first.transport.close()
        second, model = join(hub, worker="a")
        with pytest.raises(HubRefused, match=r"more than 0\.1 updates a second"):
            train(second, model, 1)
        assert hub.state.applied == 1
        second.transport.close()
