"""A hub that fails tells nothing more: what was told is on the disk, and its end is a sentence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_cases import RUN, SEED, SIGNTOPK, SPANS, STREAM, begun, core, first_model
from live_hub import SETTINGS, Entry, certificates, live, net

import thinwire as tw
from thinwire.errors import ConfigError, ThinwireError
from thinwire.hub import server as server_module
from thinwire.hub.commits import Commits
from thinwire.hub.core import Core
from thinwire.hub.journal import Journal, Record
from thinwire.hub.said import Said
from thinwire.hub.server import HubServer
from thinwire.hub.turns import Turns
from thinwire.wire.body import pack
from thinwire.wire.frame import Address, Kind, seal

NAMES = "abcd"
LOST = MemoryError("no room")


ASIDE = pytest.mark.parametrize("aside", [True, False])


def lose(*given: Any) -> None:
    raise LOST


def said(n: int, sequence: int) -> Said:
    payload = SIGNTOPK.compress(first_model(), tw.Key(SEED, sequence, n + 1), SPANS)
    where = Address(RUN, sequence, n + 1)
    frame = seal(Kind.SAID, where, pack(payload, SIGNTOPK))
    return Said(NAMES[n], 0, frame, 0.0)


def turns_of(
    folder: Path, aside: bool, act: Callable[[Core, Turns], Any]
) -> tuple[list[BaseException], list[bytes]]:
    """What failed, and the records of updates on the disk, after a life of four workers."""
    hub = core(tw.Hub(downlink=STREAM))
    for name in NAMES:
        hub.join(name, 1.0, 0.0)
    journal = begun(folder)
    failed: list[BaseException] = []

    async def main() -> None:
        turns = Turns(hub, Commits(journal, 0.0, failed.append), aside)
        await act(hub, turns)
        await turns.close()

    asyncio.run(main())
    journal.close()
    again = Journal(folder)
    records = list(again.recover()[1])
    again.close()
    return failed, records


@ASIDE
def test_an_error_behind_an_update_tells_nothing_of_its_turn_or_after(
    tmp_path: Path, aside: bool
) -> None:
    async def act(hub: Core, turns: Turns) -> None:
        for n in range(4):
            await turns.update(said(n, 0))
        reply = hub._replies.reply
        hub._replies.reply = lose
        wrong = await asyncio.gather(
            *(turns.update(said(n, 1)) for n in range(4)), return_exceptions=True
        )
        assert wrong == [LOST] * 4
        assert hub.state.applied > 4  # At least one was applied before.
        hub._replies.reply = reply
        # Sent again, it would be known as applied, and is in no journal.
        for ask in (turns.update(said(0, 1)), turns.do(lambda: (1, ()))):
            with pytest.raises(MemoryError):
                await ask

    failed, records = turns_of(tmp_path, aside, act)
    assert failed == [LOST]
    assert len(records) == 4


@ASIDE
def test_an_error_of_a_call_that_changes_the_core_ends_all_as_well(
    tmp_path: Path, aside: bool
) -> None:
    async def act(hub: Core, turns: Turns) -> None:
        def enter() -> tuple[int, list[Record]]:
            hub.join("e", 1.0, 0.0)
            raise LOST

        with pytest.raises(MemoryError):
            await turns.do(enter)
        with pytest.raises(MemoryError):
            await turns.update(said(0, 0))

    assert turns_of(tmp_path, aside, act) == ([LOST], [])


@ASIDE
def test_an_error_while_the_model_moves_tells_nobody(tmp_path: Path, aside: bool) -> None:
    async def act(hub: Core, turns: Turns) -> None:
        take = hub._steps.take
        hub._steps.take = lambda *given: [*take(*given), lose()]
        with pytest.raises(MemoryError):
            await turns.update(said(0, 0))
        with pytest.raises(MemoryError):
            await turns.update(said(1, 0))

    assert turns_of(tmp_path, aside, act) == ([LOST], [])


def serving(folder: Path, act: Callable[[HubServer], Any], entry: Entry | None = None) -> None:
    """Runs a hub until it stops by itself or `act` is done."""

    async def main() -> None:
        hub = HubServer(SETTINGS, list(net().named_parameters()), folder, entry or Entry())
        try:
            await hub.start("127.0.0.1:0")
        except ConfigError:
            hub.journal.close()
            raise
        await act(hub)
        await hub.serve(0.1)

    asyncio.run(main())


@pytest.mark.network
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device"), "the disk failed: .*No space left.*See to it"),
        (MemoryError("no room"), r"an error of its own: MemoryError\('no room'\)"),
    ],
)
def test_a_hub_that_failed_ends_with_a_sentence_and_comes_back(
    tmp_path: Path, error: Exception, sentence: str, caplog
) -> None:
    async def act(hub: HubServer) -> None:
        def fail(*given: Any) -> None:
            raise error

        hub.journal.append = fail
        with pytest.raises(type(error)):
            await hub.turns.do(lambda: (None, [Record.of(b"x")]))

    with caplog.at_level(logging.ERROR, "thinwire.hub"), pytest.raises(ThinwireError) as caught:
        serving(tmp_path, act)
    assert caught.match(sentence)
    assert str(tmp_path) in str(caught.value)
    (line,) = [record for record in caplog.records if record.name == "thinwire.hub"]
    assert (line.exc_info is None) == isinstance(error, OSError)
    with live(tmp_path) as hub:
        assert hub.state.applied == 0


@pytest.mark.network
def test_a_snapshot_that_fails_is_tried_again(tmp_path: Path, monkeypatch, caplog) -> None:
    async def act(hub: HubServer) -> None:
        monkeypatch.setattr(server_module, "encode", lose)
        for _ in range(2):
            hub._snapshot = asyncio.create_task(hub._take_snapshot())
            await hub._snapshot
            assert hub._snapshot is None
        monkeypatch.undo()
        assert await hub.turns.do(lambda: (3, ())) == 3
        await hub._take_snapshot()
        assert hub.journal.generation == 1
        hub.stop()

    with caplog.at_level(logging.ERROR, "thinwire.hub"):
        serving(tmp_path, act)
    assert [line.split(":")[0] for line in caplog.messages] == ["no snapshot 1"] * 2


@pytest.mark.network
def test_a_state_that_cannot_be_written_at_the_end_is_a_sentence(
    tmp_path: Path, monkeypatch
) -> None:
    async def act(hub: HubServer) -> None:
        def full(*given: Any) -> None:
            raise OSError(28, "No space left on device")

        hub.journal.snapshot = full
        hub.stop()

    with pytest.raises(ThinwireError, match="the disk failed"):
        serving(tmp_path, act)
    with live(tmp_path):
        pass


@pytest.mark.network
def test_files_of_tls_that_are_none_are_named(tmp_path: Path) -> None:
    pem = certificates(tmp_path)
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")

    async def act(hub: HubServer) -> None:
        raise AssertionError("it came up")

    for entry, word in (
        (Entry(junk, pem["hub.key"]), "junk.pem and .*hub.key are no certificate and its key"),
        (Entry(pem["hub"], junk), "hub.pem and .*junk.pem are no certificate and its key"),
        (Entry(pem["hub"], pem["alice.key"]), "hub.pem and .*alice.key are no certificate"),
        (Entry(pem["hub"], pem["hub.key"], junk), "junk.pem holds no authority"),
    ):
        with pytest.raises(ConfigError, match=word):
            serving(tmp_path / "state", act, entry)


def test_a_state_that_is_gone_or_cannot_be_written_is_no_new_run(
    tmp_path: Path, monkeypatch
) -> None:
    model = list(net().named_parameters())
    hub = HubServer(SETTINGS, model, tmp_path)
    hub.journal.append([Record.of(b"x")])
    hub.journal.close()
    (snapshot,) = tmp_path.glob("snapshot-*")
    (journal,) = tmp_path.glob("journal-*")
    for lost, word in ((journal, "is missing"), (snapshot, "that they follow is missing")):
        there = lost.read_bytes()
        lost.unlink()
        files = sorted(tmp_path.iterdir())
        with pytest.raises(ConfigError, match=word):
            HubServer(SETTINGS, model, tmp_path)
        assert sorted(tmp_path.iterdir()) == files
        lost.write_bytes(there)

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "begin", full)
    with pytest.raises(ConfigError, match=r"cannot be read and written: .*No space left"):
        HubServer(SETTINGS, model, tmp_path / "new")
