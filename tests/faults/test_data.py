"""A prepared dataset that is damaged, loses files or is replaced while a run is under way.

The command names the file and the fix before it computes anything, and does not change what the run has saved.
"""

import hashlib
import shutil

import numpy as np
import pytest

from janus_jax import checkpoint
from janus_jax.config import ConfigError
from janus_jax.data import DataError, Prepared, prepare, retarget, store
from janus_jax.train import __main__ as command
from janus_jax.train import loop as loop_module
from janus_jax.train import train
from tests.faults import killed_runs
from tests.faults.conftest import small

RECORDS = "janus_pairs/1.0.0/janus_pairs-{}.array_record-00000-of-00001"
TRAIN, VALID = RECORDS.format("train"), RECORDS.format("valid")


def missing(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[500] ^= 0xFF
    path.write_bytes(content)


def cleared(path):
    """Zeros where the records stand, in place: a reader that has the file open sees them."""
    with path.open("r+b") as file:
        file.write(bytes(60_000))


def contents(directory):
    """Every file below a directory with its content's hash."""
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture
def run(whole, prepared, tmp_path):
    """A run at step 6 of 12: its settings, its work directory, a copy of the data."""
    workdir, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(prepared, data)
    killed_runs.copy_until(6, whole, workdir)
    return small(data), workdir, data


def start(config, workdir):
    """Exit status of the command."""
    file = killed_runs.experiment(config, workdir.with_suffix(".py"))
    return command.main([f"--config={file}", f"--workdir={workdir}"])


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        *((file, harm) for file in (TRAIN, VALID, "lengths.npz") for harm in (missing, cut, flipped)),
        *((file, harm) for file in ("tokenizer.model", "config.json") for harm in (missing, cut)),
        ("janus_pairs/1.0.0/dataset_info.json", missing),
        ("janus_pairs/1.0.0/features.json", cut),
        ("text/valid.de", missing),
        ("text/valid.en", cut),
    ],
    ids=lambda value: value.__name__ if callable(value) else value.rsplit("/", 1)[-1].split(".array")[0],
)
def test_damage_is_named_before_a_step_is_taken(run, file, harm, monkeypatch, capsys):
    config, workdir, data = run
    before = contents(workdir)
    harm(data / file)
    monkeypatch.setattr(
        loop_module, "jit_train_step", lambda *_: pytest.fail("the damage was not noticed before the first step")
    )
    assert start(config, workdir) == 2
    message = capsys.readouterr().err
    assert message.splitlines()[-1].startswith("error: ")
    assert str(data / file) in message
    assert "prepare it again" in message
    after = contents(workdir)
    assert {p: h for p, h in after.items() if p in before and p.name != "config.json"} == {
        p: h for p, h in before.items() if p.name != "config.json"
    }
    assert not {p for p in after.keys() - before.keys() if "checkpoints" in p.parts}


def test_the_run_resumes_bitwise_once_the_data_are_prepared_again(run, whole):
    config, workdir, data = run
    missing(data / TRAIN)
    assert start(config, workdir) == 2
    shutil.rmtree(data)
    prepare(config, log=lambda *_: None)
    assert start(config, workdir) == 0
    ours, theirs = (killed_runs.stored(checkpoint.find(where)) for where in (workdir, whole))
    for name in theirs:
        if "config" not in name:  # it names the data's directory
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert killed_runs.records(workdir) == killed_runs.records(whole)


def test_damage_to_examples_that_are_read_from_disk_stops_the_run_and_spares_its_checkpoints(run, monkeypatch, capsys):
    _, workdir, data = run
    config = small(data, train__steps=60)
    monkeypatch.setattr(store, "_IN_MEMORY_TOKENS", 0)
    original = checkpoint.Checkpoints.save

    def save(self, state, *rest):
        original(self, state, *rest)
        if int(state.step) == 9:
            cleared(data / TRAIN)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    assert start(config, workdir) == 2
    message = capsys.readouterr().err
    assert f"{data / TRAIN}: example " in message
    reached = checkpoint.find(workdir)
    assert 9 <= int(reached.name) < 60
    assert all(np.isfinite(value).all() for name, value in killed_runs.stored(reached).items() if "assets" not in name)


def others(data, directory):
    """The same settings and sources, but other targets."""
    prepared = Prepared.open(data)
    targets = [row["target"][1:-1][: 1 + i % 40] for i, row in enumerate(prepared.split("train").examples())]
    retarget(prepared, directory, targets, {})


def test_other_data_in_place_of_those_of_the_run_are_refused(run, tmp_path):
    config, workdir, data = run
    before = contents(workdir / "checkpoints")
    others(data, tmp_path / "others")
    shutil.rmtree(data)
    (tmp_path / "others").rename(data)
    with pytest.raises(ConfigError, match=rf"{data}.*--allow_changes"):
        train(config, workdir)
    assert contents(workdir / "checkpoints") == before


def test_data_with_other_settings_in_place_of_those_of_the_run_are_refused(run):
    config, workdir, data = run
    shutil.rmtree(data)
    prepare(small(data, data__demo_sizes=(280, 24, 24)), log=lambda *_: None)
    with pytest.raises(DataError, match=r"demo_sizes was \[280, 24, 24\], is \[300, 24, 24\].*--overwrite"):
        train(config, workdir)


def test_contents_differ_for_different_data(prepared, tmp_path):
    others(prepared, tmp_path / "others")
    shutil.copytree(prepared, tmp_path / "copy")
    digests = [Prepared.open(directory).contents for directory in (prepared, tmp_path / "copy", tmp_path / "others")]
    assert digests[0] == digests[1] != digests[2]
