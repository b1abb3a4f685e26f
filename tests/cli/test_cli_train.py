"""`thinwire train mnist`: what it reports, and what missing or broken files are told."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from mnist_files import idx, write_digits

import thinwire as tw
from thinwire.cli import main
from thinwire.cli.idx import FILES, load_mnist, read_idx
from thinwire.cli.mnist import train
from thinwire.cli.mnist_setting import Setting

KEYS = {"preset", "steps", "rounds", "framed_bytes", "fixed_width_bits", "test_error", "seconds"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_digits(tmp_path, zipped=True)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def test_it_says_which_form_a_ring_took_and_why(folder: Path, tmp_path: Path, capsys) -> None:
    log = tmp_path / "r.jsonl"
    more = ("--preset", "qprsgd_ring", "--workers", 2, "--max-steps", 8, "--log", log)
    assert run("train", "mnist", "--data", folder, *more) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Ring takes the form 'two-phase': any rank reaches any other" in said
    start = json.loads(log.read_text().splitlines()[0])
    assert "two-phase" in json.dumps(start)


def test_it_reports_the_cost_to_the_target(folder: Path, tmp_path: Path, capsys) -> None:
    out, log = tmp_path / "r.json", tmp_path / "r.jsonl"
    assert run("train", "mnist", "--data", folder, "--workers", 3, "--json", out, "--log", log) == 0
    document = json.loads(out.read_text())
    assert document.keys() == {"thinwire", "command", "machine", "seed", "results"}
    (result,) = document["results"]
    assert result.keys() >= KEYS
    assert result["reached"]
    assert result["test_error"] <= 0.10
    # SignTopK with k = 40 of 7850: 13 bits an index, one a sign, 32 the scale.
    assert result["fixed_width_bits"] == result["rounds"] * 3 * (40 * 14 + 32)
    assert result["framed_bytes"] <= result["rounds"] * 3 * 90
    assert "reached 0.1" in capsys.readouterr().out
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events[0] == "start"
    assert events[-1] == "end"


@pytest.mark.parametrize("preset", tw.PRESETS)
def test_every_preset_trains_and_the_same_seed_gives_the_same_figures(folder, preset) -> None:
    setting = Setting(preset=preset, H=1, workers=4, max_steps=16, target_error=0.0)
    ends = [train(setting, load_mnist(folder)) for _ in range(2)]
    for end in ends:
        del end["seconds"]
    assert ends[0] == ends[1]
    assert ends[0]["rounds"] == 16


def test_plain_and_gzipped_files_are_the_same(folder: Path) -> None:
    zipped = folder / f"{FILES['test_images']}.gz"
    plain = folder / FILES["test_images"]
    plain.write_bytes(gzip.decompress(zipped.read_bytes()))
    assert torch.equal(read_idx(plain), read_idx(zipped))


CUT = gzip.compress(idx(torch.zeros(300, 28, 28)), mtime=0)[:60]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("test_labels", None, "no such file; expected there the four IDX files"),
        ("test_labels", b"<html>not found", "is no IDX file of unsigned bytes"),
        ("test_labels", b"\x00\x00\x08\x01\x00", "is cut short after 5 bytes"),
        ("test_labels", idx(torch.zeros(100))[:-3], "announces (100,), which is 100 bytes"),
        ("test_labels", idx(torch.full((100,), 11)), "must be digits 0 to 9"),
        ("test_labels", idx(torch.zeros(99)), "the test images have shape (100, 28, 28)"),
        ("train_images", CUT, "cannot be read"),
        ("train_images", idx(torch.zeros(300, 1, 1)), "MNIST's are (28, 28)"),
        ("train_images", idx(torch.zeros(0, 28, 28)), "the train images have shape (0, 28, 28)"),
    ],
)
def test_missing_and_broken_files_are_one_sentence(
    folder: Path, name: str, content: bytes | None, says: str, capsys
) -> None:
    for file in (folder / FILES[name], folder / f"{FILES[name]}.gz"):
        file.unlink(missing_ok=True)
    if content is not None:
        (folder / FILES[name]).write_bytes(content)
    assert run("train", "mnist", "--data", folder) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert error.startswith("thinwire: ")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--preset", "adam"], "no preset 'adam'; choose qsparse_local_sgd"),
        (["--preset", "vanilla", "--H", 8], "vanilla takes one local step a round"),
        (["--preset", "choco_sgd", "--no-feedback"], "cannot run without feedback"),
        (["--preset", "vanilla", "--k", 3], "keeps no k entries"),
        (["--H", 0], "H is 0"),
        (["--step-size", -1], "step_size is -1.0"),
        (["--target-error", 2], "target error is 2.0"),
        (["--workers", 301], "301 workers cannot share 300 images"),
    ],
)
def test_wrong_options_are_one_sentence(folder, options, says: str, tmp_path, capsys) -> None:
    assert run("train", "mnist", "--data", folder, "--log", tmp_path / "log", *options) == 2
    assert says in capsys.readouterr().err


def test_a_run_with_snapshots_goes_on_where_it_was_and_counts_on(folder, tmp_path) -> None:
    def trained(max_steps: int, where: str | None) -> dict:
        setting = Setting(H=2, workers=3, max_steps=max_steps, target_error=0.0)
        kept = None if where is None else tmp_path / where
        return train(setting, load_mnist(folder), snapshots=kept, every=4)

    calm = trained(40, None)
    trained(23, "kept")
    again = trained(40, "kept")
    # What the ranks tell each other about snapshots is sent, too, and counted.
    assert again.pop("sent_bytes") > calm.pop("sent_bytes")
    assert {**again, "seconds": 0} == {**calm, "seconds": 0}


def test_other_settings_of_the_program_are_refused_too(folder, tmp_path, capsys) -> None:
    given = ("train", "mnist", "--data", folder, "--workers", 2, "--snapshots", tmp_path / "kept")
    given += ("--every", 1, "--target-error", 0, "--log", tmp_path / "log")
    assert run(*given, "--max-steps", 16) == 0
    assert run(*given, "--max-steps", 16, "--batch", 4) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the snapshot is of a run with batch 8, this one has 4" in said
