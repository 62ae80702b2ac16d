"""Checkpoints that are damaged, directories that cannot be written, a full disk: no good checkpoint is lost."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from janus_jax import checkpoint
from janus_jax.checkpoint import CheckpointError, run
from janus_jax.checkpoint.checksums import _sums_by_devices, checksums
from janus_jax.config import ConfigError
from janus_jax.train import train
from janus_jax.train.workdir import workdir_lock
from tests.faults.conftest import small
from tests.faults.killed_runs import PYTHON_PATH


@pytest.fixture
def workdir(whole, tmp_path):
    """A copy of the run of 12 steps, with checkpoints 3, 6, 9 and 12, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def largest(folder):
    """The largest file. (Below d/, into which Orbax merges the files of the processes.)"""
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


def forget_checksums(step):
    (step / "_CHECKPOINT_METADATA").write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip, forget_parameters, forget_tokenizer, forget_checksums, empty])
def test_a_run_resumes_from_the_newest_intact_checkpoint_and_keeps_the_damaged_one(
    prepared, whole, workdir, capsys, damage
):
    damage(workdir / "checkpoints/12")
    train(small(prepared), workdir)
    message = capsys.readouterr().err
    assert "checkpoint 12 (" in message
    assert "is damaged and kept as damaged-STEP; resumes from step 9" in message
    assert (workdir / "checkpoints/damaged-12").is_dir()
    expected = numbers(whole, 12)
    for name, array in numbers(workdir, 12).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_a_changed_number_in_a_checkpoint_is_noticed(prepared, workdir, capsys, monkeypatch):
    original = ocp.load_checkpointables

    def changed(path, *args):
        stored = original(path, *args)
        if path.name == "12":
            bias = stored["params"]["encoder"]["layers_0"]["fc1"]["bias"]
            stored["params"]["encoder"]["layers_0"]["fc1"]["bias"] = bias.at[3].add(1e-7)
        return stored

    monkeypatch.setattr(run.ocp, "load_checkpointables", changed)
    train(small(prepared), workdir)
    assert "12 (ValueError: the numbers of params differ from those that were saved)" in capsys.readouterr().err


def test_the_same_step_may_be_damaged_twice(prepared, workdir, capsys):
    for _ in range(2):
        truncate(workdir / "checkpoints/12")
        train(small(prepared), workdir)
    assert capsys.readouterr().err.count("kept as damaged-STEP; resumes from step 9") == 2
    assert {"damaged-12", "damaged-12.2", "12"} <= {path.name for path in (workdir / "checkpoints").iterdir()}


def test_without_an_intact_checkpoint_the_run_does_not_start_from_the_beginning(prepared, workdir):
    for step in checkpoint.step_directories(workdir):
        truncate(step)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint can be read: 12 \(.*; 9 \(.*; 6 \(.*; 3 \("):
            train(small(prepared), workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "3", "6", "9"]
    with pytest.raises(ConfigError, match=r"started with other settings \(model\.dropout"):
        train(small(prepared, model__dropout=0.2), workdir)
    for step in ("12", "9", "6", "3"):
        (workdir / "checkpoints" / step).rename(workdir / f"checkpoints/damaged-{step}")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read\. Restore a copy"):
        train(small(prepared), workdir)
    records = (workdir / "metrics.jsonl").read_bytes()
    (workdir / "checkpoints").rename(workdir / "moved")
    message = r"metrics\.jsonl goes to step 12, but .*checkpoints holds no checkpoint; restore a copy"
    for _ in range(2):  # without the folder, and with an empty one
        with pytest.raises(ConfigError, match=message):
            train(small(prepared), workdir)
        (workdir / "checkpoints").mkdir(exist_ok=True)
    assert (workdir / "metrics.jsonl").read_bytes() == records


@pytest.mark.parametrize("error", [RuntimeError("RESOURCE_EXHAUSTED: out of memory"), PermissionError(13, "no")])
def test_an_error_of_the_machine_does_not_count_as_damage(prepared, workdir, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(run.ocp, "load_checkpointables", fails)
    with pytest.raises(CheckpointError, match=r"checkpoints/12: cannot be read now \("):
        train(small(prepared), workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "3", "6", "9"]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), "RuntimeError: RESOURCE_EXHAUSTED"),
        (OSError(5, "Input/output error"), r"OSError: \[Errno 5\] Input/output error"),
    ],
)
def test_an_error_of_the_machine_that_orbax_wraps_does_not_count_as_damage(
    prepared, workdir, monkeypatch, error, shown
):
    from orbax.checkpoint.experimental.v1._src.handlers.pytree_handler import PyTreeHandler

    async def load(*_arguments, **_settings):
        raise error

    monkeypatch.setattr(PyTreeHandler, "_background_load", load)
    with pytest.raises(CheckpointError, match=f"12: cannot be read now \\({shown}"):
        train(small(prepared), workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "3", "6", "9"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.EMFILE])
def test_metadata_that_cannot_be_read_now_do_not_count_as_damage(prepared, workdir, monkeypatch, number):
    original = Path.read_bytes

    def read_bytes(path):
        if path.name == "_METADATA" and "12" in path.parts:
            raise OSError(number, os.strerror(number))
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(CheckpointError, match="12: cannot be read now"):
        train(small(prepared), workdir)


def test_another_form_of_the_optimizer_is_no_damage(prepared, workdir):
    with pytest.raises(
        CheckpointError, match=r"12: does not fit this config .*use the config that the run started with"
    ):
        train(small(prepared, optimizer__decay_all=False), workdir, allow_changes=True)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "3", "6", "9"]


def test_decoding_names_the_checkpoints_beside_a_damaged_one(workdir):
    truncate(workdir / "checkpoints/12")
    shutil.rmtree(workdir / "checkpoints/12/ema")  # so that the parameters are what is read
    with pytest.raises(CheckpointError, match=r"checkpoints/12: damaged \(.*name another: .*/3, .*/6, .*/9"):
        checkpoint.load(workdir)
    assert checkpoint.load(workdir / "checkpoints/9").step == 9


def test_two_runs_do_not_share_a_directory(prepared, tmp_path):
    with (
        workdir_lock(tmp_path),
        pytest.raises(ConfigError, match=rf"in use by another run \(.*\"process\": {os.getpid()}"),
    ):
        train(small(prepared), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    with workdir_lock(tmp_path):  # the lock is free again
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    script = f"import os, pathlib; from janus_jax.train.workdir import workdir_lock\nwith workdir_lock(pathlib.Path({str(tmp_path)!r})):\n    os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": PYTHON_PATH}, check=False)
    assert killed.returncode == -9
    assert (tmp_path / "lock").read_text()  # its holder's name is still there
    with workdir_lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()


def test_a_file_system_without_locks_is_used_without_a_lock(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    with workdir_lock(tmp_path), workdir_lock(tmp_path):
        assert (tmp_path / "lock").exists()


@pytest.mark.parametrize("compute", [checksums, _sums_by_devices])
def test_checksums_change_with_any_word_and_not_with_the_split(compute):
    """In NumPy, as for arrays in the host's memory, and by the program for arrays of other devices."""
    tree = {
        "a": np.arange(64, dtype=np.float32).reshape(8, 8), "b": np.ones(3, np.float16), "c": np.int32(7),
        "d": np.arange(5).astype(jnp.bfloat16),
    }  # fmt: skip
    base = int(compute({"x": tree})["x"])
    assert base == checksums({"x": tree})["x"]
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(tree["a"], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
    assert int(compute({"x": tree | {"a": split}})["x"]) == base
    for name, array in tree.items():
        other = np.array(array)
        other[(0,) * other.ndim] += 1
        assert int(compute({"x": tree | {name: other}})["x"]) != base
    swapped = tree | {"b": np.ones(3, np.float16) * 2}
    assert int(compute({"x": swapped})["x"]) != base


def test_checksums_of_numbers_that_jax_converts_are_those_of_the_converted_ones():
    exact = {"a": np.arange(-3, 4, dtype=np.int32), "b": np.linspace(0, 1, 5, dtype=np.float32)}
    wide = {"a": exact["a"].astype(np.int64), "b": exact["b"].astype(np.float64)}
    assert checksums({"x": wide}) == checksums({"x": exact})


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


def test_a_full_disk_ends_the_run_with_the_fix_and_it_resumes_once_there_is_space(prepared, whole, small_disk):
    disk, mount = small_disk
    train(small(prepared, train__steps=6), disk / "run")
    used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*") if path.is_file())
    assert not mount(f"remount,size={used + 100_000}")
    with pytest.raises(CheckpointError, match=r"(?s)could not be written \(.*complete checkpoints: 3, 6. Free space"):
        train(small(prepared), disk / "run")
    with pytest.raises(CheckpointError, match=r"(?s)could not be written \(.*complete checkpoints: 3, 6. Free space"):
        train(small(prepared), disk / "run")  # it is full still
    assert [path.name for path in checkpoint.step_directories(disk / "run")] == ["3", "6"]
    assert not mount("remount,size=64m")
    train(small(prepared), disk / "run")
    expected = numbers(whole, 12)
    for name, array in numbers(disk / "run", 12).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_a_read_only_directory_is_refused_before_any_work(prepared, small_disk):
    disk, mount = small_disk
    assert not mount("remount,ro")
    with pytest.raises(ConfigError, match=r"run: cannot be written \(Read-only file system\); give write permission"):
        train(small(prepared), disk / "run")
