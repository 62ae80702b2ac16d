"""Config and tokenizer in a checkpoint have checksums, as its numbers have; small checkpoints without a model."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from janus_jax import checkpoint, provenance
from janus_jax.checkpoint import CheckpointError, Checkpoints
from janus_jax.checkpoint.files import bytes_array
from janus_jax.config import Config
from janus_jax.types import TrainState

TOKENIZER = b"tokenizer " * 20


def state(step):
    params = {"bias": jnp.arange(4.0) + step}
    return TrainState(jnp.int32(step), params, {"mean": params}, None)


def abstract():
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), state(0))


@pytest.fixture
def directory(tmp_path):
    """The checkpoints 1 and 2 of a run."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", Config(), TOKENIZER, {})
    assert checkpoint.is_checkpoint(tmp_path) is False
    assert checkpoints.restore(abstract()) is None
    for step in (1, 2):
        checkpoints.save(state(step))
    checkpoints.close()
    return tmp_path / "checkpoints"


def change(step_directory, name, item="assets"):
    """Flips a bit of an array: files as Orbax writes them, and the metadata of the checkpoint as before."""
    arrays = {key: np.array(value) for key, value in ocp.load_checkpointables(step_directory)[item].items()}
    arrays[name].view(np.uint8)[12] ^= 1
    other = step_directory.parent.with_name("other")
    ocp.save_checkpointables(other, {item: arrays})
    shutil.rmtree(step_directory / item)
    shutil.copytree(other / item, step_directory / item)
    shutil.rmtree(other)


def restored_step(directory):
    checkpoints = Checkpoints(directory, Config(), TOKENIZER, {})
    restored = checkpoints.restore(abstract())
    checkpoints.close()
    return int(restored[0].step), checkpoints.notes


@pytest.mark.parametrize("name", ["tokenizer", "config"])
def test_a_bit_of_an_asset_is_noticed_wherever_it_is_read(directory, name):
    assert checkpoint.load(directory).tokenizer == checkpoint.tokenizer(directory) == TOKENIZER
    change(directory / "2", name)
    for read in (checkpoint.load, checkpoint.tokenizer):
        with pytest.raises(CheckpointError, match=rf"/2: damaged \(ValueError: the bytes of {name} differ .*/1$"):
            read(directory)
    step, notes = restored_step(directory)
    assert step == 1
    assert f"2 (ValueError: the bytes of {name} differ from those that were saved) is damaged" in notes[0]


def test_a_bit_of_a_parameter_is_noticed_where_a_model_is_loaded(directory):
    np.testing.assert_array_equal(checkpoint.load(directory).params["bias"], state(2).params["bias"])
    change(directory / "2", "bias", "params")
    with pytest.raises(
        CheckpointError, match=r"/2: damaged \(ValueError: the parameters differ from those that were saved\).*/1$"
    ):
        checkpoint.load(directory)
    assert checkpoint.load(directory / "1").step == 1


def test_checkpoints_of_averages_and_imports_have_checksums(tmp_path):
    checkpoint.write(tmp_path / "7", {"bias": jnp.ones(3)}, Config(), TOKENIZER, {"step": 7})
    loaded = checkpoint.load(tmp_path)
    assert loaded.tokenizer == TOKENIZER
    assert loaded.checksum == checkpoint.checksum(tmp_path) == checkpoint.checksums({"params": loaded.params})["params"]
    assert loaded.about["sums"].keys() == {"params"}
    change(tmp_path / "7", "tokenizer")
    with pytest.raises(CheckpointError, match="the bytes of tokenizer differ"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_without_checksums_is_read(tmp_path):
    assets = {"config": bytes_array(b"{}"), "tokenizer": bytes_array(TOKENIZER)}
    ocp.save_checkpointables(tmp_path / "7", {"params": {"bias": jnp.ones(3)}, "assets": assets})
    assert checkpoint.load(tmp_path).tokenizer == checkpoint.tokenizer(tmp_path) == TOKENIZER
    assert checkpoint.checksum(tmp_path) is None


def test_a_checkpoint_and_its_copies_say_what_they_were_made_with(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", Config(), TOKENIZER, {}, data="0123456789ab")
    checkpoints.restore(abstract())
    checkpoints.save(state(3))
    checkpoints.close()
    loaded = checkpoint.load(tmp_path / "run")
    assert loaded.about["versions"]["jax"] == jax.__version__
    assert loaded.about["revision"] == provenance.revision()
    assert loaded.about["data"] == "0123456789ab"
    checkpoint.write(tmp_path / "copy", loaded.params, Config(), TOKENIZER, checkpoint.origin(loaded.about))
    assert checkpoint.origin(checkpoint.load(tmp_path / "copy").about) == checkpoint.origin(loaded.about)


def test_a_state_without_the_moving_average_is_read_from_a_checkpoint_with_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, Config(), TOKENIZER, {})
    checkpoints.restore(abstract())
    checkpoints.save(dataclasses.replace(state(1), ema={"bias": jnp.ones(4)}))
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path, Config(), TOKENIZER, {}).restore(abstract())
    assert restored.ema is None
    np.testing.assert_array_equal(restored.params["bias"], state(1).params["bias"])


@pytest.mark.parametrize("name", ["assets", "params"])
def test_a_folder_with_little_in_it_does_not_hide_the_intact_checkpoint(directory, name):
    (directory / "3" / name).mkdir(parents=True)
    assert checkpoint.load(directory).step == 2
    step, notes = restored_step(directory)
    assert step == 2
    assert "checkpoint 3 (" in notes[0]


def test_a_folder_that_may_not_be_read_is_named(directory, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(directory), "is_dir", refused)
    for read in (checkpoint.find, checkpoint.config, checkpoint.load):
        with pytest.raises(
            CheckpointError, match=rf"{directory}: cannot be read \(Permission denied: .*give read permission"
        ):
            read(directory)
    assert not checkpoint.is_checkpoint(directory)


def test_an_error_of_the_machine_is_not_called_damage_where_a_model_is_loaded(directory, monkeypatch):
    def failing(*_, **__):
        raise ValueError("UNAVAILABLE: a host is gone")

    monkeypatch.setattr(ocp, "load_checkpointables", failing)
    with pytest.raises(CheckpointError, match=r"2: cannot be read now \(ValueError: UNAVAILABLE: a host is gone\)"):
        checkpoint.load(directory)
