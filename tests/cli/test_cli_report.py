"""`thinwire report`: the page as a browser sees it, and what bad input is told."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest
from run_cases import write_run

from thinwire.cli import main
from thinwire.cli.report_series import tasks_of
from thinwire.runs import read_runs

CHROMIUM = shutil.which("chromium")
PHONE = 400
MEASURE = """<!doctype html><body><iframe style="width: %dpx; height: 2000px; border: 0"
srcdoc="%s"></iframe><script>
const frame = document.querySelector("iframe"), said = document.body.dataset;
frame.onload = () => {
  const page = frame.contentDocument, small = [], out = [];
  for (const text of page.querySelectorAll("figure svg text")) {
    const svg = text.closest("svg"), figure = svg.getBoundingClientRect();
    const box = text.getBoundingClientRect(), scale = figure.width / svg.viewBox.baseVal.width;
    const size = parseFloat(frame.contentWindow.getComputedStyle(text).fontSize) * scale;
    if (size < 11) small.push(text.textContent);
    if (box.left < figure.left - 1 || box.right > figure.right + 1) out.push(text.textContent);
  }
  said.small = small.join("|"); said.out = out.join("|");
  said.wide = page.documentElement.scrollWidth;
  said.figures = page.querySelectorAll("figure svg path").length;
};
</script></body>"""


def report(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, arguments)])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_run(folder / f"q{seed}.jsonl", "Qsparse SignTopK 1 %", seed, H=8)
        write_run(folder / f"t{seed}.jsonl", "TopK-SGD", seed, H=1)
    write_run(folder / "q4.jsonl", "Qsparse SignTopK 1 %", 0, H=4)
    assert report(folder, "-o", folder / "r.html") == 0
    return folder / "r.html"


def test_seeds_of_one_method_are_one_series_and_settings_tell_namesakes_apart(page: Path) -> None:
    runs, _ = read_runs([page.parent])
    (series,) = tasks_of(runs).values()
    assert {s.label: len(s.runs) for s in series} == {
        "Qsparse SignTopK 1 % (H 8)": 2,
        "Qsparse SignTopK 1 % (H 4)": 1,
        "TopK-SGD": 2,
    }


def test_a_curve_is_the_mean_of_its_seeds_within_their_band(page: Path) -> None:
    runs, _ = read_runs([page.parent])
    series = next(s for s in tasks_of(runs)["digits"] if s.label == "TopK-SGD")
    ends = series.last("test_error")
    point = series.curve("evaluations", "uplink", "test_error")[-1]
    assert (point.low, point.high) == (min(ends), max(ends))
    assert point.y == pytest.approx(sum(ends) / 2)
    assert series.ratio == pytest.approx(4 * 1000 * 4 * 48 / series.last("uplink")[0])


def test_the_page_asks_for_nothing_outside_itself(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "<script" not in text
    assert not re.findall(r"url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text


def test_figures_table_and_legend_are_there(page: Path) -> None:
    text = page.read_text()
    assert text.count("<figure>") == 9  # two metrics by three axes, classes, two norms
    for name in ("test error", "bytes said, all workers", "seconds", "epochs", "header", "index"):
        assert name in text
    assert text.count("<tr>") == 4
    assert not re.search(r"(stroke|fill): #(0072b2|d55e00|111111|0a0a0a)", text)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt install chromium)")
@pytest.mark.slow
def test_a_phone_reads_the_page_without_an_error(page: Path, tmp_path: Path) -> None:
    measured = tmp_path / "measured.html"
    measured.write_text(MEASURE % (PHONE, escape(page.read_text())))
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --enable-logging=stderr"
    )
    done = subprocess.run(
        [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=800,2000", "--dump-dom", measured.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert "data-wide" in done.stdout
    said = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<body[^>]*>", done.stdout)[0]))
    assert said["small"] == ""
    assert said["out"] == ""
    assert int(said["wide"]) <= PHONE
    assert int(said["figures"]) > 100


def test_a_picture_is_a_png(page: Path, tmp_path: Path) -> None:
    assert report(page.parent, "-o", tmp_path / "r.png") == 0
    assert (tmp_path / "r.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_runs_of_two_tasks_are_drawn_apart_and_said(page: Path, tmp_path: Path, capsys) -> None:
    other = write_run(tmp_path / "x.jsonl", "TopK-SGD", task="words")
    assert report(page.parent, other, "-o", tmp_path / "r.html") == 0
    assert "2 tasks, which do not compare: digits; words" in capsys.readouterr().err
    text = (tmp_path / "r.html").read_text()
    assert "which do not compare" in text
    assert text.count("<section>") == 2


def test_what_is_readable_is_drawn_beside_what_is_not(page: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert report(page.parent, tmp_path, "-o", tmp_path / "r.html") == 0
    assert "empty.jsonl: the log is empty." in capsys.readouterr().err
    assert "empty.jsonl: the log is empty." in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.jsonl",), "nothing to draw in none.jsonl"),
        (("none.jsonl", "-o", "r.pdf"), "r.pdf: name a .html page or a .png picture"),
        ((), "Missing argument"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report(*arguments) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
