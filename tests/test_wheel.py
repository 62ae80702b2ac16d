"""The wheel holds what the package reads at run time, and works in an empty directory, far from the checkout."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import janus_jax
from tests.docs.commands import TINY
from tests.docs.pages import ROOT, section
from tests.faults.killed_runs import NO_TORCH
from tests.launchers import FAST

# With the setuptools that pyproject.toml asks for at hand, nothing comes from the network.
SETUPTOOLS = [int(found.version.split(".")[0]) for found in importlib.metadata.distributions(name="setuptools")]
pytestmark = pytest.mark.skipif(
    max(SETUPTOOLS, default=0) < 77 or importlib.util.find_spec("pip") is None,
    reason="needs pip and setuptools 77; requirements-convert.txt brings setuptools",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the checkout: a build writes into the folder that it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("janus_jax", "configs"):
        shutil.copytree(ROOT / name, folder / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("requirements*.txt"), ROOT / "README.md"):
        shutil.copy(path, folder / "checkout")
    shutil.copy(ROOT / "LICENSE", folder / "checkout")
    pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", folder / "checkout")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new environment with the wheel. All other packages are those of the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip("--python", folder / "bin/python", "install", "--no-deps", "--no-index", "--no-compile", wheel)
    (own,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "others.pth").write_text("\n".join(others))  # after the packages of the environment itself
    return folder


def pip(*words):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_wheel_has_every_file_of_the_package_and_every_experiment(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {path.relative_to(ROOT) for path in (ROOT / "janus_jax").rglob("*") if path.is_file()}
    experiments = {Path("janus_jax/experiments/configs") / path.name for path in (ROOT / "configs").glob("*.py")}
    assert names == {path.as_posix() for path in package | experiments if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_the_commands_run_in_an_empty_directory(environment, tmp_path):
    def run(program, *words, status=0, **settings):
        done = subprocess.run(
            [environment / "bin" / program, *words],
            cwd=tmp_path,
            env=os.environ | FAST | {"PYTHONPATH": str(NO_TORCH)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            **settings,
        )
        assert done.returncode == status, done.stderr
        return done.stdout

    place = run("python", "-c", "import janus_jax; print(janus_jax.__file__)")
    assert Path(place.strip()).is_relative_to(environment), "the package of the wheel, not the checkout"
    assert run("janus-jax", "--version").startswith(f"janus_jax {janus_jax.__version__} ")
    run("janus-jax", "prepar", status=2)

    small = [*TINY, "--config.data.demo_sizes=(200, 4, 4)", "--config.train.steps=3"]
    run("janus-jax", "prepare", "--config=configs/demo_deen.py", *small)
    # An experiment of the user's own, which starts from one of the package.
    (own,) = (block for block in section("own_data.md", "Without the checkout") if block.language == "python")
    (tmp_path / "fi_sv.py").write_text(own.text)
    data = "--config.data.prepared=prepared/demo_deen"
    run("janus-jax", "train", "--config=fi_sv.py:ctc", "--workdir=run", data, *small)
    output = run("janus-jax", "decode", "--checkpoint=run", "--mode=ar", "--max_length_b=4", input="Montag\n\n3 Uhr\n")
    assert output.count("\n") == 3
    run("janus-jax", "convert", "export", "--checkpoint=run", "--format=hf", "--output=exported")
    assert (tmp_path / "exported/modeling_janus.py").is_file()
