import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import thinwire
from thinwire.cli import app, main
from thinwire.errors import ConfigError
from thinwire.version import __version__


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


def test_help_names_every_command_and_fits_80_columns(run):
    for arguments in ([], ["--help"]):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        for command in app.registered_commands:
            assert (command.name or command.callback.__name__) in out
        for group in app.registered_groups:
            assert group.name in out
        assert max(len(line) for line in out.splitlines()) <= 80


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("demo", ["--workers", "--seed", "--epochs", "--json", "--picture", "--log"]),
        ("doctor", ["--json", "--warm"]),
    ],
)
def test_help_of_a_command_names_its_options(run, command, options):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert [option for option in options if option not in out] == []


def test_version_is_the_packages(run):
    assert run("--version") == (0, f"thinwire {__version__}\n", "")


def test_help_imports_neither_torch_nor_numba_beyond_the_packages_door():
    # The package's own __init__ is stood in for: this is about what the command line imports.
    program = """if True:
        import sys, types
        door = types.ModuleType("thinwire")
        door.__path__ = [sys.argv[1]]
        sys.modules["thinwire"] = door
        from thinwire.cli import main
        try:
            main(["--help"])
        except SystemExit:
            heavy = {"torch", "numba", "numpy", "sklearn", "matplotlib"} & sys.modules.keys()
            sys.exit(f"imported {heavy}" if heavy else 0)
    """
    folder = str(Path(thinwire.__file__).parent)
    ended = subprocess.run(
        [sys.executable, "-c", program, folder], check=False, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_unknown_command_is_answered_with_the_choices_in_one_line(run):
    code, out, err = run("dance")
    assert (code, out) == (2, "")
    assert err.startswith("thinwire: No such command 'dance'; choose from ")
    assert "demo, demo-hub, doctor" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--workers", "99"], ["'--workers'", "16", "`thinwire demo --help`"]),
        (["demo", "--workers", "many"], ["'--workers'", "integer"]),
        (["demo", "--speed", "9"], ["No such option", "--speed"]),
        (["demo", "--json", "no/such/folder/f.json"], ["no/such/folder", "make it first"]),
        (["demo", "--picture", "."], [". is a folder"]),
        (["demo", "--log", "no/such/folder/l"], ["no/such/folder", "make it first"]),
    ],
)
def test_a_wrong_argument_ends_in_one_line_that_names_it(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("thinwire: ")
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


def test_an_error_of_ours_ends_in_one_line_without_a_traceback(run, monkeypatch):
    def broken():
        raise ConfigError("H is 0;\n  choose 1 or more")

    monkeypatch.setattr(app, "registered_commands", [])
    app.command("broken")(broken)
    assert run("broken") == (2, "", "thinwire: H is 0; choose 1 or more\n")


def test_an_error_that_is_not_ours_keeps_its_traceback(run, monkeypatch):
    def broken():
        raise RuntimeError("a bug")

    monkeypatch.setattr(app, "registered_commands", [])
    app.command("broken")(broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["broken"])


def test_ctrl_c_ends_with_130_and_one_line(run, monkeypatch):
    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(app, "registered_commands", [])
    app.command("interrupted")(interrupted)
    code, _, err = run("interrupted")
    assert (code, err) == (130, "thinwire: interrupted\n")


def test_python_m_thinwire_cli_is_the_same_program():
    ended = subprocess.run(
        [sys.executable, "-m", "thinwire.cli", "--version"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.stdout == f"thinwire {__version__}\n"


@pytest.mark.network
def test_doctor_finds_two_workers_that_end_in_equal_bits(run, tmp_path):
    file = tmp_path / "doctor.json"
    code, out, _ = run("doctor", "--json", str(file))
    assert code == 0
    assert "ok: 2 processes, equal bits" in out
    said = json.loads(file.read_text())
    assert said["command"] == "doctor"
    (findings,) = said["results"]
    assert findings["self_test"]["ok"]
    assert findings["self_test"]["round_trip_ms"] > 0
    assert 0 <= findings["kernels"]["compiled"] <= findings["kernels"]["kernels"]


def test_doctor_exits_1_when_the_self_test_fails(run, monkeypatch):
    module = sys.modules["thinwire.cli.doctor"]  # `thinwire.cli.doctor` is the command in it
    failed = {"ok": False, "kernels": "cpu", "error": "rank 1 is silent", "round_trip_ms": None}
    monkeypatch.setattr(module, "self_test", lambda kernels: failed)
    code, out, _ = run("doctor")
    assert code == 1
    assert "FAILED: rank 1 is silent" in out
