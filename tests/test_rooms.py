"""The house's rules: who imports whom, doors, names that agree, sizes."""

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from janus_jax import config, data, decode, objective
from janus_jax.data import corruption, sources
from janus_jax.objective import vocabulary
from janus_jax.train import optimizer

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "janus_jax"
# Top to bottom; train and convert stand last, side by side, and do not import each other.
ROOMS = ("text", "data", "model", "objective", "decode", "evaluate", "train", "convert")
FOUNDATION = {"config", "settings", "checks", "types", "parallel", "processes", "checkpoint", "door", "first_version"}
DOORS = ("data", "decode", "evaluate", "train")
# What an export carries along stands alone: it imports torch and transformers, and Hugging Face wants it in one file.
EXPORTED = PACKAGE / "convert/hf"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if EXPORTED not in path.parents)


def name(path):
    return str(path.relative_to(PACKAGE))


def room_of(path):
    """The room of a file, or None for the foundation."""
    first = path.relative_to(PACKAGE).parts[0]
    return first if first in ROOMS else None


def imported(path):
    """Dotted names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{path}:{node.lineno}: relative import")
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_rooms_and_foundation_are_all_there_is():
    parts = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert parts - {"__init__", "__pycache__"} == set(ROOMS) | FOUNDATION


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_only_from_rooms_above_and_the_foundation(path):
    room = room_of(path)
    above = set() if room is None else set(ROOMS[: ROOMS.index(room) + 1])
    if room == "convert":
        above.remove("train")
    used = {m.split(".")[1] for m in imported(path) if m.startswith("janus_jax.")} & set(ROOMS)
    assert used <= above


@pytest.mark.parametrize("path", FILES, ids=name)
def test_libraries_stay_in_their_place(path):
    libraries = {module.split(".")[0] for module in imported(path)}
    assert "flax" not in libraries or room_of(path) == "model"
    assert "orbax" not in libraries or path.parent.name == "checkpoint"
    assert not libraries & {"torch", "transformers", "tensorflow"} or room_of(path) == "convert"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_sizes_and_assertions(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 320, "two ideas in one file?"
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: errors for users are exceptions"
        if isinstance(node, ast.FunctionDef):
            first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
            assert node.end_lineno - first.lineno < 60, f"{path}:{node.lineno}: {node.name}: two ideas in one function?"


@pytest.mark.parametrize("room", DOORS)
def test_door_helps_and_reports_mistakes(room, capsys):
    main = importlib.import_module(f"janus_jax.{room}.__main__").main
    assert status(main, ["--help"]) == 0
    assert f"janus_jax.{room}" in capsys.readouterr().out
    assert status(main, []) == 2
    assert re.search("--(config|checkpoint|references)", capsys.readouterr().err)
    needed = {"decode": ["--checkpoint=x"], "evaluate": ["--references=x"]}.get(room, [])
    assert status(main, [*needed, "--no_such_flag=1"]) == 2
    assert "no_such_flag" in capsys.readouterr().err


def status(main, argv):
    """Exit status, returned (absl) or raised (argparse)."""
    try:
        return main(argv)
    except SystemExit as leave:
        return leave.code


def test_door_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "janus_jax.data", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--config" in done.stdout


def test_all_doors_are_tested():
    assert {p.parent.name for p in PACKAGE.glob("*/__main__.py")} <= set(DOORS) | {"convert"}


@pytest.mark.parametrize(
    ("literal", "table"),
    [
        (config.Source, sources.SOURCES),
        (config.MaskSampler, corruption.SAMPLERS),
        (config.Objective, objective.OBJECTIVES),
        (config.Optimizer, optimizer.OPTIMIZERS),
        (config.Schedule, optimizer.SCHEDULES),
        (config.Mode, decode.MODES),
        (config.ArDecode.__annotations__["stop"], decode.STOPS),
    ],
    ids=["sources", "samplers", "objectives", "optimizers", "schedules", "modes", "stops"],
)
def test_names_in_config_are_the_keys_in_the_rooms(literal, table):
    assert set(get_args(literal)) == set(table)


def test_loss_weights_are_the_terms():
    assert {f.name for f in dataclasses.fields(config.LossWeights)} == set(vocabulary.TERM_STREAMS)
    assert {f.name for f in dataclasses.fields(config.StopGradients)} <= set(vocabulary.TERM_STREAMS)


def test_public_names_exist():
    for module in (config, data, decode, objective):
        assert all(hasattr(module, exported) for exported in module.__all__)
