"""Distillation: a prepared set with training targets translated by a model; it resumes, and is trained on like any other."""

import dataclasses
import importlib

import numpy as np
import pytest

from janus_jax import data
from janus_jax.config import ConfigError
from janus_jax.decode import Generator, Output
from janus_jax.decode.__main__ import main
from janus_jax.decode.distill import distill
from janus_jax.decode.io import LinesError
from janus_jax.train import train
from tests.train import runs

distill_module = importlib.import_module("janus_jax.decode.distill")

SETTINGS = {"mode": "ar", "beam": 1, "max_length_a": 0.5, "max_length_b": 4}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    config = runs.config(folder / "prepared", data__demo_sizes=(60, 8, 8), train__steps=2, train__checkpoint_every=2)
    data.prepare(config, log=lambda _: None)
    train(config, folder / "run")
    return config, folder / "run"


def ids(directory, split="train"):
    return [
        (row["source"].tolist(), row["target"].tolist())
        for row in data.Prepared.open(directory).split(split).examples()
    ]


@pytest.mark.slow
def test_targets_become_the_outputs_of_the_model_and_nothing_else_changes(original, tmp_path, capsys):
    config, workdir = original
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    assert (
        main([f"--checkpoint={workdir}", f"--distill={config.data.prepared}", f"--output={tmp_path / 'new'}", *flags])
        == 0
    )
    assert "60 pairs" in capsys.readouterr().out
    before, after = ids(config.data.prepared), ids(tmp_path / "new")
    assert [source for source, _ in before] == [source for source, _ in after]
    outputs = Generator.from_checkpoint(workdir).generate_ids([source for source, _ in before], **SETTINGS)
    assert [target[1:-1] for _, target in after] == [one.tokens for one in outputs]
    assert ids(config.data.prepared, "valid") == ids(tmp_path / "new", "valid")
    report = data.Prepared.open(tmp_path / "new").report
    assert report["distilled"]["decode"]["ar"]["beam"] == 1
    assert report["splits"]["train"]["tokens"]["target"] == sum(len(target) for _, target in after)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    # It is trained on like the original: only its place differs.
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, prepared=str(tmp_path / "new")))
    assert np.isfinite(train(moved, tmp_path / "run")["valid/loss"])


@pytest.mark.slow
def test_ar_rows_may_keep_the_original_targets(original, tmp_path, capsys):
    config, workdir = original
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    flags += [f"--checkpoint={workdir}", f"--distill={config.data.prepared}"]
    assert main([*flags, f"--output={tmp_path / 'all'}"]) == 0
    generated = [target for _, target in ids(tmp_path / "all")]
    before = ids(config.data.prepared)
    for readers, copies in (("parallel", 1), ("both", 2)):
        assert main([*flags, f"--distill_readers={readers}", f"--output={tmp_path / readers}"]) == 0
        assert f"{copies * 60} pairs" in capsys.readouterr().out
        prepared = data.Prepared.open(tmp_path / readers)
        assert ids(tmp_path / readers) == before * copies
        second = [row["parallel_target"].tolist() for row in prepared.split("train").examples()]
        assert second == [target for _, target in before] * (copies - 1) + generated
        for row in prepared.split("valid").examples():
            np.testing.assert_array_equal(row["target"], row["parallel_target"])
    with pytest.raises(data.DataError, match="has generated targets already"):
        data.retarget(prepared, tmp_path / "new", [[7]] * 120, {})


def test_batches_carry_both_targets_and_train_on_them(original, tmp_path):
    config, workdir = original
    distill(Generator.from_checkpoint(workdir), config.data.prepared, tmp_path / "new", checkpoint="c", readers="parallel",
            **SETTINGS)  # fmt: skip
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, prepared=str(tmp_path / "new")))
    prepared = data.Prepared.open(tmp_path / "new")
    rows = list(prepared.split("train").examples())
    (batch,) = list(data.train_batches(prepared, moved, 0, 1))
    for i, example in zip(*np.nonzero(batch.example_id >= 0), strict=True):
        for column in ("target", "parallel_target"):
            expected = rows[batch.example_id[i, example]][column]
            np.testing.assert_array_equal(getattr(batch, column)[i, example][: len(expected)], expected)
        # Masks are places in the second target, between its bos and its eos.
        places = batch.masked[i, example][: batch.masked_count[i, example]]
        assert places.max() < len(rows[batch.example_id[i, example]]["parallel_target"]) - 1
    (valid, *_) = data.eval_batches(prepared, moved)
    assert valid.parallel_target is None
    with pytest.raises(ConfigError, match="kl_ar_nar"):
        train(moved, tmp_path / "run")
    weights = dataclasses.replace(moved.objective.weights, kl_ar_nar=0.0, kl_ar_aux=0.0)
    moved = dataclasses.replace(moved, objective=dataclasses.replace(moved.objective, weights=weights))
    assert np.isfinite(train(moved, tmp_path / "run")["valid/loss"])


def test_a_stopped_distillation_resumes(original, tmp_path, monkeypatch):
    config, workdir = original
    generator = Generator.from_checkpoint(workdir)
    done, whole = [], Generator.generate_ids

    def stops_in_the_second_chunk(self, sources, **settings):
        if done:
            raise LinesError("stopped")
        done.append(len(sources))
        return whole(self, sources, **settings)

    arguments = {"checkpoint": "c", "chunk": 25, **SETTINGS}
    monkeypatch.setattr(Generator, "generate_ids", stops_in_the_second_chunk)
    with pytest.raises(LinesError):
        distill(generator, config.data.prepared, tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()
    counts = []
    monkeypatch.setattr(
        Generator, "generate_ids", lambda self, sources, **s: counts.append(len(sources)) or whole(self, sources, **s)
    )
    # The checkpoint may have been moved since.
    report = distill(generator, config.data.prepared, tmp_path / "new", **{**arguments, "checkpoint": "moved"})
    assert counts == [25, 10]
    assert report["distilled"]["checkpoint"] == "moved"
    distill(generator, config.data.prepared, tmp_path / "at_once", **arguments)
    assert ids(tmp_path / "new") == ids(tmp_path / "at_once")


def test_finished_translations_outlive_a_failure_of_what_follows(original, tmp_path, monkeypatch):
    config, workdir = original
    generator = Generator.from_checkpoint(workdir)
    arguments = {"checkpoint": "c", **SETTINGS}

    def fails(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(distill_module, "retarget", fails)
        with pytest.raises(OSError, match="disk full"):
            distill(generator, config.data.prepared, tmp_path / "new", **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "generate_ids", lambda *_, **__: pytest.fail("translated again"))
        distill(generator, config.data.prepared, tmp_path / "new", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    # Translations of other settings are not taken for these.
    (tmp_path / ".other.targets").write_text("5\n")
    (tmp_path / ".other.targets.finished").write_text("of something else")
    distill(generator, config.data.prepared, tmp_path / "other", **arguments)
    assert ids(tmp_path / "new") == ids(tmp_path / "other")


def test_unusable_datasets_are_named(original, tmp_path, monkeypatch):
    config, workdir = original
    generator = Generator.from_checkpoint(workdir)
    (tmp_path / "there").mkdir()
    with pytest.raises(data.DataError, match="there exists; remove it"):
        distill(generator, config.data.prepared, tmp_path / "there", checkpoint="c")
    other = runs.config(tmp_path / "other", data__demo_sizes=(60, 8, 8), text__vocab_size=110)
    data.prepare(other, log=lambda _: None)
    with pytest.raises(data.DataError, match="another tokenizer"):
        distill(generator, tmp_path / "other", tmp_path / "new", checkpoint="c")
    monkeypatch.setattr(Generator, "generate_ids", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="99 lengths wanted"):
        distill(generator, config.data.prepared, tmp_path / "new", checkpoint="c", mode="nar", length_beam=99)
    prepared = data.Prepared.open(config.data.prepared)
    with pytest.raises(data.DataError, match="59 targets for 60"):
        data.retarget(prepared, tmp_path / "new", [[7]] * 59, {})
    with pytest.raises(data.DataError, match="training example 3 has 0 tokens"):
        data.retarget(prepared, tmp_path / "new", [[7]] * 3 + [[]] + [[7]] * 56, {})


def test_empty_outputs_leave_the_original_targets(original, tmp_path, monkeypatch, capsys):
    config, workdir = original
    lengths = []

    def generate(self, sources, **_):
        lengths.append(self.max_target_length)
        return [Output("", 0.0, [] if i % 20 == 3 else [7]) for i in range(len(sources))]

    monkeypatch.setattr(Generator, "generate_ids", generate)
    flags = [f"--checkpoint={workdir}", f"--distill={config.data.prepared}"]
    assert main([*flags, f"--output={tmp_path / 'new'}"]) == 0
    assert "3 outputs were empty; these pairs keep their original targets" in capsys.readouterr().out
    before, after = ids(config.data.prepared), ids(tmp_path / "new")
    for i, ((_, old), (_, new)) in enumerate(zip(before, after, strict=True)):
        assert new == (old if i % 20 == 3 else [old[0], 7, old[-1]])
    assert data.Prepared.open(tmp_path / "new").report["distilled"]["empty_outputs"] == 3
    assert lengths == [config.data.max_target_length]
    counts = set()

    def empty(self, sources, *, nbest, **_):
        counts.add(nbest)
        return [Output("", 0.0, []) for _ in sources]

    monkeypatch.setattr(Generator, "generate_ids", empty)
    several = dataclasses.replace(Generator.from_checkpoint(workdir).decode_config, nbest=2)
    monkeypatch.setattr(Generator, "decode_config", property(lambda _: several, lambda *_: None), raising=False)
    assert main([*flags, f"--output={tmp_path / 'none'}", "--beam=1"]) == 2
    assert counts == {1}  # a pair has one target, whatever the checkpoint's own settings
    assert "all 60 outputs are empty" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_place_of_the_new_dataset_is_checked_first(original, tmp_path, monkeypatch, capsys):
    config, workdir = original
    monkeypatch.setattr(Generator, "generate_ids", lambda *_, **__: pytest.fail("translated"))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    flags = [f"--checkpoint={workdir}", f"--distill={config.data.prepared}"]
    for name, message in (("file/new", "Not a directory"), ("link", "exists; remove it")):
        assert main([*flags, f"--output={tmp_path / name}"]) == 2
        assert message in capsys.readouterr().err
    for flag in ("--scores", "--nbest=2"):
        with pytest.raises(SystemExit):
            main([*flags, f"--output={tmp_path / 'new'}", flag])
        assert f"takes no {flag.split('=')[0]}" in capsys.readouterr().err
