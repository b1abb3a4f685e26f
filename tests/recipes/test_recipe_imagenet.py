"""The ImageNet recipe, whole: a folder of images, two epochs, two workers, and its bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision is not installed (the recipes extra)")
import imagenet_data
import imagenet_program
from imagenet_method import METHODS, StepSize, bits_a_round, preset
from PIL import Image
from torchvision.models import resnet50
from train_imagenet import arguments

import thinwire as tw
from thinwire.wire.frame import HEADER

KEPT, D = 99_400, 25_557_032
MBIT = {"sgd": 817.825, "ef-sign": 25.562, "topk": 4.560, "signtopk": 1.484}
N, BATCH = 2, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four classes of small JPEGs, each of a colour of its own."""
    root = tmp_path_factory.mktemp("images")
    draws = torch.Generator().manual_seed(0)
    for split, n in (("train", 3), ("val", 2)):
        for kind in range(4):
            place = root / split / f"class{kind}"
            place.mkdir(parents=True)
            for i in range(n):
                pixels = torch.randint(80, (40, 48, 3), generator=draws)
                pixels[..., kind % 3] += 60 * (1 + kind // 3)
                image = Image.fromarray(pixels.to(torch.uint8).numpy())
                image.save(place / f"{i}.jpg", quality=95)
    return root


def train(folder: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    """Runs the recipe under torchrun and returns its log."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(N), imagenet_program.__file__, "--data", str(folder)]
    command += [
        "--batch",
        str(BATCH),
        "--size",
        "32",
        "--epochs",
        "2",
        "--H",
        "3",
        "--loaders",
        "0",
    ]
    command += ["--snapshots", str(out), *more]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]


def events(log: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in log if line["event"] == event]


def optimizer(method: str, rank: int = 0) -> tw.LocalSGD:
    torch.manual_seed(0)
    model = resnet50()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    return tw.LocalSGD(model, inner, **preset(method, 4), group=tw.Seat(rank, N))


@pytest.mark.slow
@pytest.mark.parametrize("method", MBIT)
def test_a_round_says_the_papers_bits(method: str) -> None:
    kept, bits = bits_a_round(optimizer(method))
    assert kept == (KEPT if "top" in method else D)
    assert round(bits / 1e6, 3) == MBIT[method]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["topk", "signtopk"])
def test_framed_bytes_are_fewer_than_fixed_width_bits(method: str) -> None:
    one = optimizer(method)
    delta = torch.randn(one.spans.d, generator=torch.Generator().manual_seed(1))
    from thinwire.wire.body import pack

    body = pack(one.compressor.compress(delta, tw.Key(0), one.spans), one.compressor)
    assert 8 * (HEADER + len(body)) < bits_a_round(one)[1]


@pytest.mark.slow
@pytest.mark.network
def test_two_workers_train_two_epochs_and_a_stopped_run_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    log = train(folder, tmp_path / "a", "--classes", "1000", "--norms")
    start = log[0]["settings"]
    assert (start["kept"], round(start["fixed_width_bits"] / 1e6, 3)) == (KEPT, MBIT["signtopk"])
    rounds, tested = events(log, "round"), events(log, "evaluation")
    assert [line["step"] for line in rounds] == [3, 6]
    assert all(8 * line["uplink"] < start["fixed_width_bits"] for line in rounds)
    assert [line["epoch"] for line in tested] == [1, 2]
    assert all(0 <= line["top1"] <= line["top5"] <= 1 for line in tested)
    said = sum(line["uplink"] for line in rounds)
    assert abs(tested[-1]["uplink"] - N * said) < 0.02 * N * said  # the other worker's are its own
    assert events(log, "end")[-1]["status"] == "done"
    # Stopped after the first epoch, then asked for both: the same loss of the same anchor.
    train(folder, tmp_path / "b", "--classes", "1000", "--epochs", "1", "--every", "1")
    again = train(folder, tmp_path / "b", "--classes", "1000", "--every", "1")
    assert len(events(again, "resumed")) == 1
    assert events(again, "evaluation")[-1]["loss"] == tested[-1]["loss"]


def test_the_step_size_rises_for_five_epochs_and_falls_at_whole_rounds() -> None:
    at = StepSize(per_epoch=100, H=8)
    assert at(0) == pytest.approx(1 / 500)
    assert at(499) == 1.0
    assert [step for step in range(1, 9000) if at(step) < at(step - 1)] == [3000, 6000, 8000]
    assert all(drop % 8 == 0 for drop in StepSize(per_epoch=101, H=8).drops)
    assert at(8999) == pytest.approx(1e-3)


def test_shares_are_disjoint_and_go_on_from_any_batch(folder: Path) -> None:
    data = imagenet_data.images(folder / "train", 16, train=True)
    shares = [imagenet_data.Share(data, rank, 2, 2, seed=3, loaders=0) for rank in range(2)]
    whole = [list(share.epoch(1, 0)) for share in shares]
    assert [len(batches) for batches in whole] == [3, 3]
    (x, y), (again, labels) = whole[0][2], next(iter(shares[0].epoch(1, 2)))
    assert torch.equal(x, again)
    assert torch.equal(y, labels)
    assert not torch.equal(whole[0][0][0], next(iter(shares[0].epoch(2, 0)))[0])


def test_missing_images_and_wrong_methods_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(tw.ConfigError, match=r"no such folder; expected one folder a class"):
        imagenet_data.images(tmp_path / "train", 32, train=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(tw.ConfigError, match="empty: "):
        imagenet_data.images(tmp_path / "empty", 32, train=True)
    data = imagenet_data.images(folder / "train", 16, train=True)
    with pytest.raises(tw.ConfigError, match="fewer than one batch of 8 workers x 256"):
        imagenet_data.Share(data, 0, 8, 256, 0, 0)
    with pytest.raises(tw.ConfigError, match="no method 'adam'; choose sgd, ef-sign"):
        preset("adam", 4)
    with pytest.raises(SystemExit):
        arguments(["--data", "x", "--H", "0"])
    assert set(METHODS) >= set(MBIT)
