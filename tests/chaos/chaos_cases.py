"""What the tests of chaos share: the nursery on a line, and what must be true of a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from thinwire.cli.chaos_plan import Event, Story
from thinwire.cli.chaos_verdict import CONSERVED, problem
from thinwire.cli.gang import environment


@contextmanager
def nursery() -> Iterator[Any]:
    """Yields a function that plays a story and returns its result."""
    process = subprocess.Popen(
        [sys.executable, "-m", "thinwire.cli.chaos_nursery"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**environment(), "RUST_LOG": "off"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline()) == {"ready": True}

        def play(story: Story) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(story.as_dict()) + "\n")
            process.stdin.flush()
            result: dict[str, Any] = json.loads(process.stdout.readline())
            return result

        yield play
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def story(kind: str, form: str, *events: Event, seed: int = 1) -> Story:
    return Story(0, seed, kind, form, events)


def check(result: dict[str, Any], spread: float) -> None:
    """Asserts that a story lost nothing, and ended at most so far from its calm run."""
    apart = abs(result["accuracy"] - result["calm_accuracy"])
    assert problem({**result, "within_spread": True}) is None, result
    assert result["conservation_error"] <= CONSERVED
    assert apart <= spread, result
    assert result["left_over"] == 0


def descendants() -> set[int]:
    """Returns the numbers of all processes that run a nursery or were forked by one."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if b"chaos_nursery" in file.read():
                        found.add(int(name))
            except OSError:
                continue
    return found
