"""Every public name is explained, and everything the README and the examples show runs."""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from house_source import SRC, files, module_of, tree_of

import thinwire as tw

ROOT = SRC.parents[1]
SENTENCE = re.compile(r"[A-Z0-9`].*[.:]\Z", re.DOTALL)


def first_sentence(doc: str | None) -> bool:
    """Whether a docstring's first paragraph is a sentence of two words at least."""
    paragraph = inspect.cleandoc(doc or "").split("\n\n")[0]
    return bool(SENTENCE.match(paragraph)) and len(paragraph.split()) > 1


def values_explained() -> dict[str, str]:
    """The docstrings that follow assignments at the top of a module, by the name assigned."""
    found = {}
    for path in files():
        body = tree_of(path).body
        for before, after in itertools.pairwise(body):
            if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                continue
            targets = (
                before.targets
                if isinstance(before, ast.Assign)
                else [before.target]
                if isinstance(before, ast.AnnAssign)
                else []
            )
            found |= {t.id: str(after.value.value) for t in targets if isinstance(t, ast.Name)}
    return found


def test_the_door_lists_exactly_what_it_holds() -> None:
    assert sorted(set(tw.__all__)) == sorted(tw.__all__)
    assert all(hasattr(tw, name) for name in tw.__all__)
    door = (
        "annotations",
        "TYPE_CHECKING",
        "Any",
        "import_module",
        "iter_modules",
    )
    shown = {
        name
        for name, value in vars(tw).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name not in door
    }
    assert shown <= set(tw.__all__)


@pytest.mark.parametrize("name", sorted(set(tw.__all__) - {"__version__"}))
def test_a_public_name_begins_with_a_sentence(name: str) -> None:
    value = getattr(tw, name)
    own = value.__doc__ if inspect.isclass(value) or inspect.isfunction(value) else None
    assert first_sentence(own or values_explained().get(name)), own


def test_first_sentence_fails_on_none_on_a_word_and_on_a_signature() -> None:
    assert first_sentence("Takes the mean.\n\nMore.")
    for doc in (None, "", "Mean.", "takes the mean.", "Takes the mean", "Seat(rank: int, N: int)"):
        assert not first_sentence(doc)


def public_methods() -> list[tuple[str, object]]:
    found = []
    for name in tw.__all__:
        value = getattr(tw, name)
        if inspect.isclass(value) and value.__module__.startswith("thinwire"):
            for part, method in vars(value).items():
                function = method.fget if isinstance(method, property) else method
                if not part.startswith("_") and inspect.isfunction(function):
                    found.append((f"{name}.{part}", function))
    return found


SHELL = [name for name, _ in public_methods() if name.startswith(("LocalSGD", "LockStep"))]


@pytest.mark.parametrize("name", SHELL)
def test_a_method_of_the_shell_begins_with_a_sentence(name: str) -> None:
    assert first_sentence(inspect.getdoc(dict(public_methods())[name]))


@pytest.mark.parametrize("path", files(), ids=[str(p.relative_to(SRC)) for p in files()])
def test_a_module_begins_with_a_sentence(path: Path) -> None:
    doc = ast.get_docstring(tree_of(path))
    if module_of(path) == "":  # the door begins with the package's own name
        doc = (doc or "").replace("thinwire: t", "T", 1)
    assert first_sentence(doc), doc


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(program: str | Path, folder: Path, *, code: bool = False) -> str:
    """Runs a program in an empty folder, warnings as errors, and returns what it prints."""
    command = [sys.executable, "-W", "error", *(["-c"] if code else []), str(program)]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_readmes_python_runs_from_top_to_bottom(tmp_path: Path) -> None:
    blocks = python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    if not blocks:
        pytest.skip("the README has no Python block yet")
    run("\n".join(blocks), tmp_path, code=True)


def test_python_blocks_finds_python_and_nothing_else() -> None:
    text = "a\n```python\nx = 1\n```\n```\nno\n```\n```sh\nno\n```\n```python\ny = 2\n```\n"
    assert python_blocks(text) == ["x = 1\n", "y = 2\n"]


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=[p.name for p in EXAMPLES])
def test_an_example_runs_and_says_something(path: Path, tmp_path: Path) -> None:
    assert run(path, tmp_path).strip()
    assert list(tmp_path.iterdir()) == []


def test_run_fails_on_a_program_that_fails_or_warns(tmp_path: Path) -> None:
    assert run("print(1)", tmp_path, code=True) == "1\n"
    with pytest.raises(AssertionError):
        run("import warnings; warnings.warn('no')", tmp_path, code=True)


@pytest.mark.parametrize("path", EXAMPLES, ids=[p.name for p in EXAMPLES])
def test_an_example_fits_one_screen(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
