"""Checkpoints that are damaged, directories that cannot be written, a full disk: no good checkpoint is lost."""

import os
import shutil
import subprocess

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from janus_jax import checkpoint
from janus_jax.checkpoint import CheckpointError, run
from janus_jax.checkpoint.checksums import checksums
from janus_jax.config import ConfigError
from janus_jax.train import train
from janus_jax.train.workdir import workdir_lock
from tests.train import runs


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """A run of 12 steps, with checkpoints 6, 9 and 12."""
    workdir = tmp_path_factory.mktemp("whole")
    train(runs.config(prepared), workdir)
    return workdir


@pytest.fixture
def workdir(whole, tmp_path):
    """A copy of it, of which something will be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def largest(folder):
    """The file that holds the most. (Below d/; what single processes wrote has been merged into that.)"""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(step):
    path = largest(step / "params/d")
    os.truncate(path, path.stat().st_size // 2)


def flip(step):
    path = largest(step / "opt_state/d")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def forget_parameters(step):
    shutil.rmtree(step / "params")


def forget_tokenizer(step):
    shutil.rmtree(step / "assets")


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def numbers(workdir, step):
    stored = ocp.load_checkpointables(workdir / "checkpoints" / str(step))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(stored)}


@pytest.mark.parametrize("damage", [truncate, flip, forget_parameters, forget_tokenizer, empty])
def test_the_newest_intact_checkpoint_goes_on_and_the_damaged_one_is_kept(prepared, whole, workdir, capsys, damage):
    damage(workdir / "checkpoints/12")
    train(runs.config(prepared), workdir)
    told = capsys.readouterr().err
    assert "checkpoint 12 (" in told
    assert "is damaged and kept as damaged-STEP; resumes from step 9" in told
    assert (workdir / "checkpoints/damaged-12").is_dir()
    expected = numbers(whole, 12)
    for name, array in numbers(workdir, 12).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_numbers_that_are_not_those_that_were_saved_are_noticed(prepared, workdir, capsys, monkeypatch):
    original = ocp.load_checkpointables

    def changed(path, *args):
        stored = original(path, *args)
        if path.name == "12":
            bias = stored["params"]["encoder"]["layers_0"]["fc1"]["bias"]
            stored["params"]["encoder"]["layers_0"]["fc1"]["bias"] = bias.at[3].add(1e-7)
        return stored

    monkeypatch.setattr(run.ocp, "load_checkpointables", changed)
    train(runs.config(prepared), workdir)
    assert "12 (ValueError: the numbers of params differ from those that were saved)" in capsys.readouterr().err


def test_the_same_step_may_be_damaged_twice(prepared, workdir, capsys):
    for _ in range(2):
        truncate(workdir / "checkpoints/12")
        train(runs.config(prepared), workdir)
    assert capsys.readouterr().err.count("kept as damaged-STEP; resumes from step 9") == 2
    assert {"damaged-12", "damaged-12.2", "12"} <= {path.name for path in (workdir / "checkpoints").iterdir()}


def test_without_an_intact_checkpoint_nothing_begins_anew(prepared, workdir):
    for step in checkpoint.step_directories(workdir):
        truncate(step)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint can be read: 12 \(.*; 9 \(.*; 6 \("):
            train(runs.config(prepared), workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "6", "9"]
    with pytest.raises(ConfigError, match=r"started with other settings \(model\.dropout"):
        train(runs.config(prepared, model__dropout=0.2), workdir)
    for step in ("12", "9", "6"):
        (workdir / "checkpoints" / step).rename(workdir / f"checkpoints/damaged-{step}")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read\. Restore a copy"):
        train(runs.config(prepared), workdir)


@pytest.mark.parametrize("error", [RuntimeError("RESOURCE_EXHAUSTED: out of memory"), PermissionError(13, "no")])
def test_what_the_machine_cannot_do_is_not_held_against_the_checkpoint(prepared, workdir, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(run.ocp, "load_checkpointables", fails)
    with pytest.raises(CheckpointError, match=r"checkpoints/12: cannot be read now \("):
        train(runs.config(prepared), workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "6", "9"]


def test_decoding_names_the_checkpoints_beside_a_damaged_one(workdir):
    truncate(workdir / "checkpoints/12")
    shutil.rmtree(workdir / "checkpoints/12/ema")  # so that the parameters are what is read
    with pytest.raises(CheckpointError, match=r"checkpoints/12: damaged \(.*name another: .*/6, .*/9"):
        checkpoint.load(workdir)
    assert checkpoint.load(workdir / "checkpoints/9").step == 9


def test_two_runs_do_not_share_a_directory(prepared, tmp_path):
    with (
        workdir_lock(tmp_path),
        pytest.raises(ConfigError, match=rf"in use by another run \(.*\"process\": {os.getpid()}"),
    ):
        train(runs.config(prepared), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    with workdir_lock(tmp_path):  # free again
        pass


def test_check_sums_change_with_any_word_and_not_with_the_split():
    tree = {"a": np.arange(64, dtype=np.float32).reshape(8, 8), "b": np.ones(3, np.float16), "c": np.int32(7)}
    base = checksums({"x": tree})["x"]
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(tree["a"], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
    assert checksums({"x": tree | {"a": split}})["x"] == base
    for name, array in tree.items():
        other = np.array(array)
        other[(0,) * other.ndim] += 1
        assert checksums({"x": tree | {name: other}})["x"] != base
    swapped = tree | {"b": np.ones(3, np.float16) * 2}
    assert checksums({"x": swapped})["x"] != base


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and how to change it; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
        ).returncode

    if shutil.which("mount") is None or mount("size=64m"):
        pytest.skip("may not mount a file system")
    yield folder, mount
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_ends_the_run_with_what_to_do_and_room_lets_it_go_on(prepared, whole, small_disk):
    disk, mount = small_disk
    train(runs.config(prepared, train__steps=6), disk / "run")
    used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*") if path.is_file())
    assert not mount(f"remount,size={used + 100_000}")
    with pytest.raises(CheckpointError, match=r"(?s)could not be written \(.*complete checkpoints: 3, 6. Free space"):
        train(runs.config(prepared), disk / "run")
    with pytest.raises(CheckpointError, match=r"(?s)could not be written \(.*complete checkpoints: 3, 6. Free space"):
        train(runs.config(prepared), disk / "run")  # it is full still
    assert [path.name for path in checkpoint.step_directories(disk / "run")] == ["3", "6"]
    assert not mount("remount,size=64m")
    train(runs.config(prepared), disk / "run")
    expected = numbers(whole, 12)
    for name, array in numbers(disk / "run", 12).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_a_read_only_directory_is_refused_before_any_work(prepared, small_disk):
    disk, mount = small_disk
    assert not mount("remount,ro")
    with pytest.raises(ConfigError, match=r"run: cannot be written \(Read-only file system\); give write permission"):
        train(runs.config(prepared), disk / "run")
