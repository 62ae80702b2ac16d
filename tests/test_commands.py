"""The command janus-jax: it finds the command that its first argument names, and imports nothing else."""

import subprocess
import sys
import types

import pytest

import janus_jax
from janus_jax.__main__ import COMMANDS, main
from tests.docs.pages import ROOT


def test_every_package_that_runs_is_a_command():
    packages = {f"janus_jax.{path.parent.name}" for path in (ROOT / "janus_jax").glob("*/__main__.py")}
    assert {package for package, _ in COMMANDS.values()} == packages


def test_help_has_a_line_for_each_command(capsys):
    assert main(["--help"]) == main(["-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        assert sum(line.split()[:1] == [name] for line in lines) == 2, "one line in each of the two outputs"


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"janus_jax {janus_jax.__version__} (jax ")


@pytest.mark.parametrize("status", [0, 3])
def test_a_command_gets_the_other_arguments_and_its_status_is_returned(monkeypatch, status):
    received = []
    fake = types.SimpleNamespace(main=lambda argv: received.append(argv) or status)
    monkeypatch.setitem(sys.modules, "janus_jax.data.__main__", fake)
    assert main(["prepare", "--config=x.py", "--help"]) == status
    monkeypatch.setattr(sys, "argv", ["janus-jax", "prepare"])
    assert main() == status
    assert received == [["--config=x.py", "--help"], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a command: prepare, train"),
        ([""], "name a command: prepare, train"),
        (["trian", "--workdir=x"], "trian: unknown command; did you mean train?"),
        (["data"], "data: unknown command; did you mean prepare?"),
        (["--config=x.py"], "--config=x.py: unknown command; --help lists the commands"),
        (["a\nb" * 1000], "a ba b"),
    ],
)
def test_a_mistake_is_one_line_with_status_2(capsys, arguments, message):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.endswith("; --help lists the commands\n")
    assert err.count("\n") == 1
    assert len(err) < 200


def test_help_version_and_mistakes_import_no_command():
    program = (
        "import sys; from janus_jax.__main__ import main; main(['--help']), main(['--version']), main(['trian'])\n"
        "sys.exit(sorted(name for name in sys.modules if name.partition('.')[0] in ('jax', 'numpy')) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_jax_one_line_names_the_environment():
    command = [sys.executable, "-S", "-m", "janus_jax.data"]  # -S: without installed packages
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "this Python has no jax; activate the environment (source .venv/bin/activate)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "janus_jax", "trian"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: trian: unknown command")
