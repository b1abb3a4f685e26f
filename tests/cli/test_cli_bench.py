"""`thinwire bench kernels`: every operation, its fields, and what a wrong option gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from thinwire.cli import main
from thinwire.cli.bench_kernels import choose_bytes, level_bytes

FIELDS = {
    "op",
    "elements",
    "threads",
    "seconds",
    "copy_seconds",
    "torch_seconds",
    "bytes",
    "entropy_bytes",
}


def test_every_operation_is_timed_and_weighed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kernels.json"
    options = ["--sizes", "1e5", "--threads", "1", "--repeats", "1", "--json", str(file)]
    with pytest.raises(SystemExit) as stop:
        main(["bench", "kernels", *options])
    assert not stop.value.code
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["command"] == "bench kernels"
    assert written["machine"]["cores"] >= 1
    results = written["results"]
    assert len({r["op"] for r in results}) == len(results) > 20
    for r in results:
        assert set(r) == FIELDS
        assert (r["elements"], r["threads"]) == (100_000, 1)
        assert r["seconds"] > 0
        assert r["copy_seconds"] > 0
        if r["entropy_bytes"] is not None:
            assert r["bytes"] >= r["entropy_bytes"]
    shown = capsys.readouterr().out
    assert all(r["op"] in shown for r in results)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sizes", "huge"], "no size 'huge'; choose from 1e5, 1e6, resnet50, gpt2"),
        (["--threads", "0"], "'0' threads; give whole numbers from 1 to"),
        (["--threads", "many"], "'many' threads"),
        (["--threads", "100000"], "'100000' threads"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "kernels", *options])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


def test_entropies_are_those_of_plain_cases() -> None:
    assert choose_bytes(1 << 16, 1) == 2
    assert level_bytes(torch.tensor([0, 1, 2, 3] * 8)) == 8
    assert level_bytes(torch.zeros(100, dtype=torch.int64)) == 0
