"""How a run is watched: a line now and then, or bars."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, TextColumn

from thinwire.cli.progress import Board, board


def test_without_a_terminal_a_run_says_ten_lines(capsys) -> None:
    with board() as drawn:
        run = drawn.add("Qsparse H=4", 40, 1000)
        for step in range(1, 41):
            run.tell(step, step // 4, 2.5, 100 * step, 200 * step)
        run.end()
    said = capsys.readouterr()
    text = " ".join(said.err.split())
    assert said.out == ""
    assert text.count("Qsparse H=4: step") == 10
    assert "step 40 of 40, round 10, loss 2.500, 8.00 kB sent, 40x, " in text
    assert text.endswith("/s, 0 s left")


def test_on_a_terminal_each_run_has_a_bar_while_it_lasts() -> None:
    console = Console(force_terminal=True, width=120, record=True)
    bar = Progress(TextColumn("{task.description} {task.fields[note]}"), console=console)
    drawn = Board(console, bar)
    first, second = drawn.add("first", 8, 1000), drawn.add("second", 8, 1000)
    first.tell(4, 1, 1.0, 0, 0)
    second.tell(4, 1, 1.0, 1000, 1000)
    notes = [task.fields["note"] for task in bar.tasks]
    assert notes[0].startswith("round 1, loss 1.000, 0 B sent, -, ")
    assert "16x" in notes[1]
    first.end()
    assert [task.description for task in bar.tasks] == ["second"]
    drawn.say("first is done")
    assert "first is done" in console.export_text()
