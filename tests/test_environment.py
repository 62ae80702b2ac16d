"""launch/environment.sh: what it builds, installs again and leaves alone, with a list that needs no download."""

import os
import shutil
import subprocess

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")


def make(folder, **variables):
    command = "source ./environment.sh; make_environment requirements.txt; command -v python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    environment |= {"PWD": str(folder)} | variables  # so that bash keeps a link in the path, as `cd` does
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / ".venv/bin/python")
    return done.stderr


def test_an_environment_is_built_once_and_keeps_what_was_added(tmp_path):
    folder = tmp_path / "check out"
    folder.mkdir()
    shutil.copy(ROOT / "launch/environment.sh", folder)
    (folder / "requirements.txt").write_text("pip\n")
    said = make(folder)
    assert "building" in said
    assert "installing requirements.txt" in said
    added = folder / ".venv/added"
    added.touch()
    assert make(folder) == ""
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert make(link) == ""
    (folder / "requirements.txt").write_text("pip  # another line\n")
    assert make(folder).splitlines() == ["installing requirements.txt"]
    assert added.exists()
    # A moved one is built again, by the base of the active environment, which is the one that goes.
    moved = tmp_path / "moved"
    folder.rename(moved)
    said = make(moved, PATH=f"{moved / '.venv/bin'}:{os.environ['PATH']}")
    assert f"building {moved / '.venv'}" in said
    assert [path.name for path in moved.iterdir() if path.name.startswith(".venv")] == [".venv"]
    assert not (moved / ".venv/added").exists()
    (moved / ".venv/made-by-janus_jax").unlink()
    with pytest.raises(AssertionError, match=r"was not built by launch/environment\.sh; move it away"):
        make(moved)
    assert (moved / ".venv/bin/python").exists()
