"""What lies in the folder is whole, complete before older goes, and of one job."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shell_cases import same_bits, sgd, whole_state
from snapshot_cases import Kept, files_of, in_memory

import thinwire as tw
from thinwire.snapshots import folder as folders
from thinwire.snapshots.content import filler
from thinwire.snapshots.folder import Local, Remote, folder_of
from thinwire.snapshots.sets import File, complete

SETTINGS = {"H": 1, "compressor": tw.TopK(k=2), "exchange": tw.Server()}


def kept(folder, **changes) -> Kept:
    return Kept(folder, **{**SETTINGS, **changes})


def steps_in(folder: Path) -> list[int]:
    return sorted({File.of(name).step for name in files_of(folder)})


def test_the_newest_complete_sets_are_kept_and_older_ones_go(tmp_path: Path) -> None:
    run = kept(tmp_path, keep=2)
    for _ in range(5):
        run.step()
        run.settle()
    # The fifth is on the disk, but its ranks have not told each other yet.
    assert steps_in(tmp_path) == [3, 4, 5]
    run.close()


def test_nothing_is_removed_before_as_many_complete_sets_are_there(tmp_path: Path) -> None:
    kept(tmp_path, keep=3).steps(2).close()
    assert steps_in(tmp_path) == [1, 2]
    again = kept(tmp_path, keep=3)
    assert steps_in(tmp_path) == [1, 2]
    again.close()


@pytest.mark.parametrize("altered", ["cut", "flipped", "empty"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_file_that_is_cut_short_or_altered_is_never_loaded(
    tmp_path: Path, caplog, altered: str, rank: int
) -> None:
    calm = kept(in_memory()).steps(6)
    kept(tmp_path).steps(4).close()
    file = tmp_path / File(4, 2, rank).name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= altered == "flipped"
    file.write_bytes({"cut": content[:-7], "flipped": content, "empty": b""}[altered])
    with caplog.at_level(logging.WARNING, "thinwire"):
        again = kept(tmp_path, start=1)
    assert again.done == 3
    assert f"cut short or altered: {file.name}" in caplog.text
    assert "Going back to step 3" in caplog.text
    same_bits(whole_state(again.steps(3)), whole_state(calm))
    again.close()


def test_a_set_that_lacks_a_rank_is_not_taken_up_and_makes_way(tmp_path: Path, caplog) -> None:
    kept(tmp_path).steps(4).close()
    (tmp_path / File(4, 2, 1).name).unlink()
    with caplog.at_level(logging.WARNING, "thinwire"):
        again = kept(tmp_path)
    assert again.done == 3
    assert "not on every rank: steps [4]" in caplog.text
    assert File(4, 2, 0).name not in files_of(tmp_path)
    again.close()


def test_without_any_complete_set_every_rank_says_what_is_missing(tmp_path: Path) -> None:
    kept(tmp_path).steps(4).close()
    for step in steps_in(tmp_path):
        (tmp_path / File(step, 2, 1).name).unlink()
    before = files_of(tmp_path)
    with pytest.raises(tw.SnapshotError, match=r"none is complete\. ranks \[1\] see no snapshot"):
        kept(tmp_path)
    assert files_of(tmp_path) == before


def test_a_first_snapshot_that_was_never_complete_lets_the_run_start_anew(tmp_path: Path) -> None:
    kept(tmp_path).steps(1).close()
    (tmp_path / File(1, 2, 0).name).unlink()
    again = kept(tmp_path)
    assert again.resumed == [None, None]
    assert files_of(tmp_path) == []
    again.close()


def test_what_was_left_half_written_is_removed_and_not_read(tmp_path: Path) -> None:
    kept(tmp_path).steps(2).close()
    left = tmp_path / File(3, 2, 1).name
    left.with_suffix(".part").write_bytes(b"half")
    again = kept(tmp_path)
    assert again.done == 2
    assert not left.with_suffix(".part").exists()
    again.close()


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_is_one_error_on_every_rank_and_older_snapshots_stay(
    tmp_path: Path, monkeypatch, full: int
) -> None:
    run = kept(tmp_path).steps(3)
    run.settle()
    before = files_of(tmp_path)
    shelf = run.keepers[full]._shelf
    write = shelf._folder.write

    def no_room(name, fill):
        def some(file):
            file.write(b"x" * 1000)
            raise OSError(errno.ENOSPC, "No space left on device")

        write(name, some)

    monkeypatch.setattr(shelf._folder, "write", no_room)
    run.step()
    run.settle()
    with pytest.raises(tw.SnapshotError, match=f"rank {full}: .*No space left on device") as error:
        run.step()
    assert "complete before still are" in str(error.value)
    assert set(before) - {File(1, 2, r).name for r in range(2)} <= set(files_of(tmp_path))
    assert not [name for name in files_of(tmp_path) if name.endswith(".part")]
    # One may go on: with room again, the next snapshot is complete.
    monkeypatch.undo()
    run.steps(2)
    run.close()
    again = kept(tmp_path, start=1)
    assert again.done == run.done
    again.close()


@pytest.mark.parametrize("where", ["local", "memory"])
def test_two_jobs_on_one_folder_are_refused(tmp_path: Path, where: str) -> None:
    folder = tmp_path if where == "local" else in_memory()
    first = kept(folder).steps(2)
    with pytest.raises(tw.ConfigError, match="another job writes its snapshots to"):
        kept(folder)
    first.steps(1)
    first.close()
    again = kept(folder)
    assert again.done == 3
    again.close()


def test_a_dead_job_holds_no_folder(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from thinwire.snapshots.folder import folder_of\n"
        "folder_of(sys.argv[1]).claim('dead', set())\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert (tmp_path / "lock").exists()
    kept(tmp_path).steps(1).close()


def test_a_lock_of_a_dead_process_of_this_machine_is_taken_over_by_url() -> None:
    url = in_memory()
    first = Remote(url)
    first.claim("a", set())
    assert first.dead() is None
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    held = {**first._holder(), "process": dead.pid}
    first._fs.pipe_file(first._at("lock"), json.dumps(held).encode())
    assert Remote(url).dead() == "a"
    kept(url).close()
    elsewhere = json.dumps({**held, "host": "elsewhere"}).encode()
    first._fs.pipe_file(first._at("lock"), elsewhere)
    with pytest.raises(tw.ConfigError, match="if it has ended, remove lock there"):
        kept(url)
    # A rank on that machine can tell.
    Remote(url).claim("b", {"a"})


def test_who_lost_the_lock_writes_no_more() -> None:
    url = in_memory()
    first, second = Remote(url), Remote(url)
    first.claim("a", set())
    second.claim("b", {"a"})
    with pytest.raises(tw.ConfigError, match="another job writes its snapshots"):
        first.write("x", lambda file: None)
    second.write("x", lambda file: None)


OTHERS = {
    "H 1, this one has 2": {"H": 2},
    "compressor TopK": {"compressor": tw.TopK(k=3)},
    "outer Average": {"outer": tw.Nesterov()},
    "seed 0, this one has 4": {"seed": 4},
}


@pytest.mark.parametrize("told", OTHERS)
def test_a_snapshot_of_other_settings_is_refused_by_name(tmp_path: Path, told: str) -> None:
    kept(tmp_path).steps(2).close()
    before = files_of(tmp_path)
    with pytest.raises(tw.ConfigError, match=rf"is of a run with {told}.*or another folder"):
        kept(tmp_path, **OTHERS[told])
    assert files_of(tmp_path) == before


def test_a_snapshot_of_another_model_is_refused_by_tensor(tmp_path: Path) -> None:
    def other() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))

    kept(tmp_path).steps(2).close()
    with pytest.raises(
        tw.ConfigError, match=r"of another model: its tensor 0 is 0.weight \(5, 6\).*\(4, 6\)"
    ):
        kept(tmp_path, model=other)


def test_a_snapshot_of_another_inner_optimizer_is_refused(tmp_path: Path) -> None:
    kept(tmp_path).steps(2).close()
    with pytest.raises(tw.ConfigError, match="inner_class"):
        kept(tmp_path, inner=torch.optim.Adam)
    kept(tmp_path).close()


def test_a_snapshot_of_another_version_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("thinwire.snapshots.taking_up.FORMAT", 99)
    kept(tmp_path).steps(2).close()
    monkeypatch.undo()
    with pytest.raises(tw.ConfigError, match=r"in format 99, by thinwire .* reads format 1"):
        kept(tmp_path)


def test_what_no_snapshot_can_hold_is_refused_at_the_start_on_every_rank(tmp_path: Path) -> None:
    class Sampler:
        def state_dict(self):
            return {"position": 3, "order": iter(())}

        def load_state_dict(self, state): ...

    model = torch.nn.Linear(2, 1)
    optimizer = tw.LocalSGD(model, sgd(model.parameters()))
    for part, told in ((Sampler(), r"sampler\['order'\] is a"), (7, "sampler is 7; give a")):
        snapshots = tw.Snapshots(tmp_path)
        with pytest.raises(tw.ConfigError, match=told):
            snapshots.resume(model, optimizer, sampler=part)
    with tw.Snapshots(tmp_path) as snapshots:  # The folder was let go of.
        assert snapshots.resume(model, optimizer) is None


def test_a_part_that_no_snapshot_can_hold_any_more_is_one_error_on_every_rank(tmp_path) -> None:
    run = kept(tmp_path).steps(2)
    run.nets[1].state_dict = lambda: {"hook": print}
    run.step()
    with pytest.raises(tw.SnapshotError, match=r"rank 1: .*model\['hook'\] is a builtin_function"):
        run.step()
    run.close()


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    kept(tmp_path).steps(1).close()
    local = Local(tmp_path)
    content = bytes(local.read(File(1, 2, 0).name))
    head = content[: 8 + int.from_bytes(content[:8], "little")]

    def fill(file):
        file.write(head)
        torch.save({"model": Evil()}, file)

    for rank in range(2):
        local.write(File(1, 2, rank).name, fill)
    with pytest.raises(tw.SnapshotError, match=r"[Ww]eights"):
        kept(tmp_path)
    assert not (tmp_path / "evil").exists()


def test_a_file_under_another_files_name_is_refused(tmp_path: Path) -> None:
    kept(tmp_path).steps(2).close()
    (tmp_path / File(1, 2, 1).name).rename(tmp_path / File(2, 2, 1).name)
    with pytest.raises(tw.SnapshotError, match=r"says it is File\(step=1, N=2, rank=1\)"):
        kept(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\2" + b"\0" * 7 + b"[]"], ids=repr)
def test_whole_bytes_that_are_no_snapshot_are_refused(tmp_path: Path, content: bytes) -> None:
    for rank in range(2):
        Local(tmp_path).write(File(1, 2, rank).name, lambda file: file.write(content))
    with pytest.raises(tw.SnapshotError, match="says it is no snapshot"):
        kept(tmp_path)


def test_other_parts_than_were_saved_are_refused(tmp_path: Path) -> None:
    kept(tmp_path).steps(1).close()
    with pytest.raises(tw.ConfigError, match=r"holds the parts \['noise'\], resume was given \[\]"):
        kept(tmp_path, parts=False)


def test_a_step_before_resume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tw.ConfigError, match=r"call resume\(model, optimizer\) once before"):
        tw.Snapshots(tmp_path).after_step()


def test_one_rank_told_to_stop_stops_all_after_a_complete_snapshot(tmp_path: Path) -> None:
    calm = kept(in_memory()).steps(6)
    run = kept(tmp_path, every=100)
    assert not run.step()
    run.keepers[1].stop()
    assert run.step()
    assert [k.stopped for k in run.keepers] == [True, True]
    run.close()
    again = kept(tmp_path, start=1)
    assert again.done == 2
    same_bits(whole_state(again.steps(4)), whole_state(calm))
    again.close()


def test_heed_asks_only_every_so_many_rounds(tmp_path: Path) -> None:
    run = kept(tmp_path, every=100, heed=3)
    run.keepers[0].stop()
    assert [run.step() for _ in range(3)] == [False, False, True]
    run.close()


def test_by_url_the_same_files_lie_there(tmp_path: Path) -> None:
    url = in_memory()
    kept(url).steps(3).close()
    kept(tmp_path).steps(3).close()
    assert sorted(set(folder_of(url).names()) - {"lock"}) == files_of(tmp_path)
    assert "lock" not in folder_of(url).names()


def test_a_set_is_complete_where_every_rank_can_read_what_it_needs() -> None:
    def two(step: int) -> list[File]:
        return [File(step, 2, r) for r in range(2)]

    own = [[File(5, 2, 0), File(7, 2, 0)], [File(5, 2, 1)]]
    assert complete(own) == [(5, 2)]
    assert complete([[*two(5), File(4, 3, r)] for r in range(3)]) == [(5, 2), (4, 3)]
    assert complete([two(5), two(5), [File(5, 2, 0)]]) == []


def test_the_magic_is_this_formats() -> None:
    assert folders.MAGIC == b"twsnap\x00\x01"


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 64 KB that is really full when it is."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_on_a_disk_that_is_really_full_the_last_complete_set_is_taken_up(small_disk: Path) -> None:
    calm = kept(in_memory(), keep=9).steps(9)
    run, told = kept(small_disk, keep=9), None
    while told is None and run.done < 8:
        try:
            run.step()
        except tw.SnapshotError as error:
            told = str(error)
        run.settle()
    assert "No space left on device" in str(told)
    assert not [name for name in files_of(small_disk) if name.endswith(".part")]
    run.close()
    again = kept(small_disk, start=1, keep=9, every=1000)
    assert 1 <= again.done < 8
    same_bits(whole_state(again.steps(9 - again.done)), whole_state(calm))
    again.close()


@pytest.mark.parametrize("room", range(0, 12000, 500))
def test_whichever_write_fails_the_disks_own_word_is_told(room: int) -> None:
    class Full:
        left = room

        def write(self, data: bytes) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(data)

        def flush(self) -> None:
            pass

    with pytest.raises(OSError, match="No space left on device"):
        filler({"a": 1}, {"x": torch.zeros(4000)})(Full())
