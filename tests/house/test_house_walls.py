"""The house stands as HOUSE.md draws it: arrows point down, and core rooms touch nothing."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from house_source import (
    LEVEL,
    SRC,
    existing,
    files,
    imports,
    module_of,
    offences,
    own_imports,
    room_of,
    tree_of,
)

IDS = [str(path.relative_to(SRC)) for path in files()]
LIVE = (
    "hub.service", "hub.server", "hub.threads", "hub.dial", "hub.join",
    "runs.log", "snapshots.draws", "transport.gang", "elastic.quorum",
    "transport.watchdog", "transport.distributed", "transport.paced",
)  # fmt: skip
"""What lives: it reads the clock that it hands to the hub's core as an argument, or keeps the
program's own draws."""
CORE = [
    path for path in files() if room_of(module_of(path)) != "cli" and module_of(path) not in LIVE
]
LONGEST = 300
LONG = {
    "kernels/reference.py": "the definition of every kernel, in one place to read them together",
    "shell.py": "one class that behaves like a torch optimizer, a third of it docstrings",
}


def upward(room: str, imported: set[str]) -> list[str]:
    """Those of the imported modules that stand above `room`."""
    return sorted(m for m in imported if LEVEL[room_of(m)] > LEVEL[room])


@pytest.mark.parametrize("path", files(), ids=IDS)
def test_arrows_point_down_only(path: Path) -> None:
    room = room_of(module_of(path))
    assert room in LEVEL, f"{path.name} is in a room that HOUSE.md does not know"
    assert upward(room, own_imports(path)) == []


def test_an_arrow_that_points_up_is_seen() -> None:
    assert upward("flat", {"errors", "compress.topk", "kernels"}) == ["compress.topk"]
    assert upward("exchange", {"wire.body", "round", ""}) == ["", "round"]
    local = ast.parse("def f():\n    from thinwire.cli import main\n    import thinwire.round")
    assert set(imports(local, "thinwire")) == {"thinwire.cli.main", "thinwire.round"}
    relative = ast.parse("from . import flat\nfrom .wire import body\nfrom .. import round")
    assert set(imports(relative, "thinwire.kernels")) == {
        "thinwire.kernels.flat",
        "thinwire.kernels.wire.body",
        "thinwire.round",
    }
    assert existing("wire.body.pack") == "wire.body"
    assert existing("LocalSGD") == ""


def test_the_walk_sees_the_imports_that_are_there() -> None:
    assert {"exchange", "outer"} <= own_imports(SRC / "round.py")
    assert "compress.halves" in own_imports(SRC / "compress" / "topk.py")
    assert len(files()) > 40


def test_rooms_form_no_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for path in files():
        room = room_of(module_of(path))
        arrows.setdefault(room, set()).update({room_of(m) for m in own_imports(path)} - {room})
    order = list(TopologicalSorter(arrows).static_order())
    assert order.index("errors") < order.index("exchange") < order.index("shell")
    with pytest.raises(CycleError):
        list(TopologicalSorter({**arrows, "errors": {"round"}}).static_order())


@pytest.mark.parametrize("path", CORE, ids=[str(p.relative_to(SRC)) for p in CORE])
def test_a_core_room_touches_no_socket_clock_screen_or_global_draw(path: Path) -> None:
    assert offences(tree_of(path), "thinwire") == []


@pytest.mark.parametrize(
    "line",
    [
        "import socket",
        "from time import monotonic",
        "def f():\n    import random",
        "import numpy.random",
        "torch.manual_seed(0)",
        "torch.rand(3)",
        "x.normal_()",
        "torch.randperm(n)",
        "np.random.rand(3)",
        "np.random.default_rng(0)",
        "print(1)",
        "os.environ.get('A')",
        "os.getenv('A')",
    ],
)
def test_an_offence_is_seen(line: str) -> None:
    assert len(offences(ast.parse(line), "thinwire")) >= 1


def test_a_draw_from_a_generator_is_no_offence() -> None:
    assert offences(ast.parse("torch.rand(3, generator=g)\nkernels.randk(u)"), "thinwire") == []


@pytest.mark.parametrize("path", files(), ids=IDS)
def test_a_file_fits_the_eye(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    name = str(path.relative_to(SRC))
    if name in LONG:
        assert lines > LONGEST, f"{name} is short now: take it off the list"
    else:
        assert lines <= LONGEST, f"{name} has {lines} lines; at most {LONGEST}"
