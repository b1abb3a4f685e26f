"""How every bench ends: its table in a file and on the screen."""

from __future__ import annotations

from pathlib import Path


def publish(text: str, out: Path) -> None:
    """Writes the table to its file and shows it."""
    out.write_text(text, encoding="utf-8")
    print(text)


def publish_goals(text: str, out: Path) -> None:
    """The same, and fails where a goal is missed."""
    publish(text, out)
    if "MISSED" in text:
        raise SystemExit("a goal is missed; see the table")
