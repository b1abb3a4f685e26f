"""Durability: what was appended is there after a crash at any byte; damage is an error."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_cases import PER_WORKER, SIGNTOPK, STREAM, Worker, core, same_state

import thinwire as tw
from thinwire.errors import ConfigError
from thinwire.hub import journal as journal_module
from thinwire.hub.journal import HEAD, MAGIC, MARK, Journal, Record, record_at
from thinwire.hub.snapshot import about_of, check_same_run, decode, encode

ABOUT = {"settings": {"H": 4}, "tensors": [["w", "(2,)", "float32", "parameter"]], "run": 3}
RECORDS = [bytes([n]) * (1 + 7 * n) for n in range(12)]


def written(folder: Path) -> bytes:
    journal = Journal(folder)
    assert journal.recover()[0] is None
    journal.begin(0)
    journal.snapshot(0, [b"first ", b"state"])
    journal.append([Record.of(r) for r in RECORDS[:5]])
    journal.append([Record.of(r) for r in RECORDS[5:]])
    journal.close()
    return (folder / f"journal-{0:016d}.twj").read_bytes()


def recovered(folder: Path) -> tuple[bytes | None, list[bytes]]:
    journal = Journal(folder)
    try:
        snapshot, records = journal.recover()
        return snapshot, list(records)
    finally:
        journal.close()


def places(data: bytes) -> list[tuple[int, int]]:
    """(byte, records before it) of each place where one may be cut."""
    found, at, records = [(len(MAGIC), 0)], len(MAGIC), 0
    while at < len(data):
        record = record_at(memoryview(data), at)
        at += HEAD.size + len(record)
        records += record[: len(MARK)] != MARK
        found.append((at, records))
    return found


def test_every_cut_of_the_journal_gives_the_records_before_it(tmp_path: Path) -> None:
    data = written(tmp_path)
    file = tmp_path / f"journal-{0:016d}.twj"
    assert places(data)[-1] == (len(data), len(RECORDS))
    for cut in range(len(MAGIC), len(data) + 1):
        file.write_bytes(data[:cut])
        end, records = max(place for place in places(data) if place[0] <= cut)
        assert recovered(tmp_path) == (b"first state", RECORDS[:records]), cut
        # The torn rest is beside it: appending goes on behind the last whole record.
        assert file.read_bytes() == data[:end]
        torn = list(tmp_path.glob("*.torn"))
        assert [t.read_bytes() for t in torn] == ([data[end:cut]] if cut > end else [])
        for t in torn:
            t.unlink()


def test_what_is_cut_off_is_said(tmp_path: Path, caplog) -> None:
    data = written(tmp_path)
    (tmp_path / f"journal-{0:016d}.twj").write_bytes(data[:-3])
    left = places(data)[-2][0]
    with caplog.at_level(logging.WARNING, "thinwire.hub"):
        recovered(tmp_path)
    (line,) = caplog.messages
    assert f"last {len(data) - 3 - left} bytes" in line
    assert f"journal-{0:016d}.{left}.torn" in line


def test_appending_goes_on_after_a_cut(tmp_path: Path) -> None:
    data = written(tmp_path)
    file = tmp_path / f"journal-{0:016d}.twj"
    for cut in (len(MAGIC), len(data) - 1, len(data)):
        file.write_bytes(data[:cut])
        journal = Journal(tmp_path)
        before = list(journal.recover()[1])
        journal.begin(0)
        journal.append([Record.of(b"more")])
        journal.close()
        assert recovered(tmp_path)[1] == [*before, b"more"]
    # The next file may have been begun, and no more.
    for cut in range(len(MAGIC) + 1):
        next_file = tmp_path / f"journal-{1:016d}.twj"
        next_file.write_bytes(MAGIC[:cut])
        journal = Journal(tmp_path)
        assert list(journal.recover()[1]) == [*RECORDS, b"more"]
        journal.begin(journal.generation)
        journal.append([Record.of(b"later")])
        journal.close()
        assert recovered(tmp_path)[1] == [*RECORDS, b"more", b"later"]


def test_every_altered_byte_of_the_last_record_cuts_it_and_zeros_are_no_record(
    tmp_path: Path,
) -> None:
    data = written(tmp_path)
    file = tmp_path / f"journal-{0:016d}.twj"
    start = len(data) - HEAD.size - len(RECORDS[-1])
    for at in range(start, len(data)):
        altered = bytearray(data)
        altered[at] ^= 0x40
        file.write_bytes(altered)
        assert recovered(tmp_path)[1] == RECORDS[:-1]
    file.write_bytes(data + bytes(100))
    assert recovered(tmp_path)[1] == RECORDS


def test_every_altered_byte_before_the_last_batch_is_an_error(tmp_path: Path) -> None:
    data = written(tmp_path)
    file = tmp_path / f"journal-{0:016d}.twj"
    for at in range(data.rfind(MARK) - HEAD.size):
        altered = bytearray(data)
        altered[at] ^= 0x40
        file.write_bytes(altered)
        with pytest.raises(ConfigError, match="damaged at byte"):
            recovered(tmp_path)
        assert file.read_bytes() == altered
    for cut in range(len(MAGIC)):
        file.write_bytes(data[:cut])
        with pytest.raises(ConfigError, match="damaged at byte 0"):
            recovered(tmp_path)


def test_a_mark_counts_only_where_it_says(tmp_path: Path) -> None:
    data = written(tmp_path)
    file = tmp_path / f"journal-{0:016d}.twj"
    first = data[len(MAGIC) : len(MAGIC) + HEAD.size + len(MARK) + 8]
    # A copy of it in a torn record says nothing of what stands before.
    file.write_bytes(data + b"torn" + first)
    assert recovered(tmp_path)[1] == RECORDS


def test_a_journal_without_marks_is_read(tmp_path: Path) -> None:
    written(tmp_path)
    file = tmp_path / f"journal-{0:016d}.twj"
    framed = [part for record in RECORDS for part in Record.of(record).framed()]
    file.write_bytes(b"".join([MAGIC, *framed]))
    assert recovered(tmp_path) == (b"first state", RECORDS)


def test_what_is_missing_is_an_error(tmp_path: Path) -> None:
    written(tmp_path)
    snapshots = [tmp_path / f"snapshot-{n:016d}.tws" for n in range(2)]
    journals = [tmp_path / f"journal-{n:016d}.twj" for n in range(2)]
    first, records = snapshots[0].read_bytes(), journals[0].read_bytes()
    snapshots[0].unlink()
    with pytest.raises(ConfigError, match="snapshot that they follow is missing"):
        recovered(tmp_path)
    journals[0].write_bytes(MAGIC[:3])
    assert recovered(tmp_path) == (None, [])
    snapshots[0].write_bytes(first)
    journals[0].rename(journals[1])
    with pytest.raises(ConfigError, match=f"{journals[0].name} is missing"):
        recovered(tmp_path)
    journals[0].write_bytes(records)
    snapshots[1].write_bytes(first)
    journals[1].unlink()
    with pytest.raises(ConfigError, match=f"{journals[1].name} is missing"):
        recovered(tmp_path)


def test_a_snapshot_is_whole_or_the_one_before_it_counts(tmp_path: Path) -> None:
    written(tmp_path)
    journal = Journal(tmp_path)
    list(journal.recover()[1])
    journal.begin(1)
    journal.append([Record.of(b"later")])
    journal.close()
    # The new generation has begun and its snapshot is not there yet: both files count.
    assert recovered(tmp_path) == (b"first state", [*RECORDS, b"later"])
    (tmp_path / f"snapshot-{1:016d}.part").write_bytes(b"half a snap")
    assert recovered(tmp_path) == (b"first state", [*RECORDS, b"later"])
    journal = Journal(tmp_path)
    journal.snapshot(1, [b"second state"])
    journal.close()
    assert recovered(tmp_path) == (b"second state", [b"later"])
    assert len(list(tmp_path.glob("journal-*"))) == 1


def test_damage_that_a_crash_cannot_leave_is_an_error(tmp_path: Path) -> None:
    data = written(tmp_path)
    journal = Journal(tmp_path)
    journal.begin(1)
    journal.append([Record.of(b"later")])
    journal.close()
    (tmp_path / f"journal-{0:016d}.twj").write_bytes(data[:-1])
    with pytest.raises(ConfigError, match="damaged"):
        recovered(tmp_path)
    file = tmp_path / f"snapshot-{0:016d}.tws"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ConfigError, match="no snapshot"):
        recovered(tmp_path)


def test_one_folder_is_one_hubs(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    with pytest.raises(ConfigError, match="running"):
        Journal(tmp_path)
    first.close()
    Journal(tmp_path).close()


def test_a_folder_lasts_or_says_why_it_cannot_be_had(tmp_path: Path, monkeypatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(journal_module, "sync_folder", synced.append)
    Journal(tmp_path / "a" / "b").close()
    assert sorted(synced) == [tmp_path, tmp_path / "a"]
    Journal(tmp_path / "a" / "b").close()
    assert len(synced) == 2
    (tmp_path / "file").write_bytes(b"")
    for taken in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="cannot hold the state of a hub") as caught:
            Journal(taken)
        assert str(taken) in str(caught.value)


@pytest.mark.parametrize(
    "exchange",
    [
        tw.Hub(downlink=tw.Exact(memory=300)),
        tw.Hub(downlink=STREAM),
        tw.Hub(downlink=PER_WORKER),
        tw.Hub(outer=tw.DelayedNesterov(every=2), downlink=tw.Exact()),
    ],
    ids=repr,
)
def test_a_state_goes_to_bytes_and_back(exchange: tw.Hub) -> None:
    hub = core(exchange, SIGNTOPK)
    workers = [Worker(hub, f"w{n}") for n in range(2)]
    for n in range(9):
        workers[n % 2].say()
    content = b"".join(encode(hub.state, ABOUT))
    assert about_of(content) == ABOUT
    state = decode(content, exchange.downlink.repeats)
    same_state(state, hub.state)
    # What was encoded does not change with the state.
    parts = encode(hub.state, ABOUT)
    workers[0].say()
    assert b"".join(parts) == content
    with pytest.raises(ConfigError, match="another folder"):
        check_same_run(ABOUT, {**ABOUT, "settings": {"H": 8}}, "there")
    # What is kept of the past may be more or less after a restart.
    kept = [{**ABOUT, "settings": {"exchange": {"Exact": {"memory": n}}}} for n in (1, 2)]
    check_same_run(*kept, "there")


WRITER = """
import sys
from pathlib import Path
from thinwire.hub.journal import Journal, Record
journal = Journal(Path(sys.argv[1]))
list(journal.recover()[1])
journal.begin(0)
journal.snapshot(0, [b"s"])
n = 0
while True:
    journal.append([Record.of(b"%d" % (n + i) * 50) for i in range(3)])
    n += 3
    print(n, flush=True)
"""


def test_kill_9_loses_no_record_that_was_acknowledged(tmp_path: Path) -> None:
    for delay in (0.0, 0.011, 0.05):
        folder = tmp_path / str(delay)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE
        )
        first = process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        said = (first + process.stdout.read()).split()
        process.wait()
        process.stdout.close()
        _, records = recovered(folder)
        assert len(records) >= int(said[-1])
        assert records == [b"%d" % n * 50 for n in range(len(records))]
