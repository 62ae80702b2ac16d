"""Rules of the package: which package imports which, commands, names that agree, no assertions."""

import ast
import dataclasses
import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from janus_jax import config, data, decode
from janus_jax.data import corruption, sources
from janus_jax.model.families import FAMILIES
from janus_jax.objective import terms
from janus_jax.train import optimizer

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "janus_jax"
# Top to bottom; train, convert and play stand last, side by side, and do not import each other.
PACKAGES = ("text", "data", "model", "objective", "decode", "evaluate", "train", "convert", "play")
LAST = {"train", "convert", "play"}
FOUNDATION = {
    "config", "settings", "checks", "describe", "command_line", "types", "parallel", "processes", "host_memory",
    "checkpoint", "first_version", "files", "metrics", "provenance",
}  # fmt: skip
# A table of names that settings and checks read too: plain data, although it lies in a package.
TABLE = "janus_jax.objective.terms"
COMMANDS = ("data", "decode", "evaluate", "train", "play")
# The files of an export stand alone: they import torch and transformers, and Hugging Face wants them in one file.
EXPORTED = PACKAGE / "convert/hf"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if EXPORTED not in path.parents)


def name(path):
    return str(path.relative_to(PACKAGE))


def package_of(path):
    """The package of a file, or None for the foundation."""
    *folders, file = path.relative_to(PACKAGE.parent).with_suffix("").parts
    first = (*folders[1:], file)[0]
    return first if first in PACKAGES and ".".join((*folders, file)) != TABLE else None


def imported(path):
    """Dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"{path}:{node.lineno}: relative import")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_is_in_a_package_or_in_the_foundation():
    parts = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert parts - {"__init__", "__main__", "__pycache__"} == set(PACKAGES) | FOUNDATION


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_only_from_packages_above_and_the_foundation(path):
    package = package_of(path)
    above = set() if package is None else set(PACKAGES[: PACKAGES.index(package) + 1])
    if package in LAST:
        above -= LAST - {package}
    names = {n for n in imported(path) if n.startswith("janus_jax.") and n != TABLE and not n.startswith(f"{TABLE}.")}
    assert {n.split(".")[1] for n in names} & set(PACKAGES) <= above


@pytest.mark.parametrize("path", FILES, ids=name)
def test_libraries_stay_in_their_place(path):
    libraries = {module.split(".")[0] for module in imported(path)}
    assert "flax" not in libraries or package_of(path) == "model"
    assert "orbax" not in libraries or path.parent.name == "checkpoint"
    assert not libraries & {"torch", "transformers", "tensorflow"} or package_of(path) == "convert"


# Modules of libraries that import what their library requires only as an extra.
IMPORTS_OF_EXTRAS = {"sentencepiece.sentencepiece_model_pb2": "google.protobuf"}
# The requirements files of a part of the package, beside requirements.txt.
REQUIREMENTS = {
    "convert/": "requirements-convert.txt",
    "evaluate/glge/": "requirements-glge.txt",
    "play/": "requirements-play.txt",
}


def normalised(distribution):
    """The name of a distribution as indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def required(*files):
    """The distributions that requirements files name."""
    lines = [line for file in files for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    return {normalised(re.match(r"[\w.-]+", line)[0]) for line in lines if re.match(r"\w", line)}


def test_requirements_name_every_distribution_that_is_imported():
    distributions = importlib.metadata.packages_distributions()
    missing = []
    for path in FILES:
        files = [file for folder, file in REQUIREMENTS.items() if name(path).startswith(folder)]
        named = required("requirements.txt", *files)
        modules = imported(path)
        modules |= {IMPORTS_OF_EXTRAS[module] for module in modules & IMPORTS_OF_EXTRAS.keys()}
        for package in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"janus_jax"}:
            # A distribution that is not installed is taken to have the name of its package.
            if named.isdisjoint(map(normalised, distributions.get(package, [package]))):
                missing.append(f"{name(path)}: {package}")
    assert not missing, "name the distributions of these packages in a requirements file"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_assertions(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: errors for users are exceptions"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_help_and_report_mistakes(command, capsys):
    main = importlib.import_module(f"janus_jax.{command}.__main__").main
    assert status(main, ["--help"]) == 0
    assert f"janus_jax.{command}" in capsys.readouterr().out
    assert status(main, []) == 2
    assert re.search("--(config|checkpoint|references)", capsys.readouterr().err)
    needed = {"decode": ["--checkpoint=x"], "play": ["--checkpoint=x"], "evaluate": ["--references=x"]}.get(command, [])
    assert status(main, [*needed, "--no_such_flag=1"]) == 2
    assert "no_such_flag" in capsys.readouterr().err


def status(main, argv):
    """Exit status, returned (absl) or raised (argparse)."""
    try:
        return main(argv)
    except SystemExit as leave:
        return leave.code


def test_a_command_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "janus_jax.data", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--config" in done.stdout


def test_all_commands_are_tested():
    assert {p.parent.name for p in PACKAGE.glob("*/__main__.py")} <= set(COMMANDS) | {"convert"}


@pytest.mark.parametrize(
    ("literal", "table"),
    [
        (config.Source, sources.SOURCES),
        (config.MaskSampler, corruption.SAMPLERS),
        (config.Objective, terms.OBJECTIVES),
        (config.Optimizer, optimizer.OPTIMIZERS),
        (config.Schedule, optimizer.SCHEDULES),
        (config.Mode, decode.MODES),
        (config.ArDecode.__annotations__["stop"], decode.STOPS),
    ],
    ids=["sources", "samplers", "objectives", "optimizers", "schedules", "modes", "stops"],
)
def test_names_in_config_are_the_keys_of_the_tables(literal, table):
    assert set(get_args(literal)) == set(table)


def test_every_family_of_rows_has_a_term_and_every_term_known_families():
    for family in FAMILIES:
        assert family in terms.TERMS[terms.own_term(family)].families
    for name, term in terms.TERMS.items():
        assert set(term.families) <= set(FAMILIES), name
        assert (len(term.families) == 2) == (term.kind == "divergence"), name
    assert all(set(names) <= set(terms.TERMS) for names in terms.OBJECTIVES.values())


def test_loss_weights_are_the_terms():
    assert {f.name for f in dataclasses.fields(config.LossWeights)} == set(terms.TERMS)
    assert {f.name for f in dataclasses.fields(config.StopGradients)} <= set(terms.TERMS)


def test_public_names_exist():
    for module in (config, data, decode):
        assert all(hasattr(module, exported) for exported in module.__all__)
