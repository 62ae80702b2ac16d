"""A run that is killed at any moment, any number of times, ends with the same state and metrics as an uninterrupted run, bitwise."""

import collections
import dataclasses
import random

import jax
import numpy as np
import pytest

from janus_jax.config import ParallelConfig, default_config, resolve
from janus_jax.data import Prepared, TrainBatches, prepare
from janus_jax.train import loop as loop_module
from janus_jax.train import train
from tests.faults import killed_runs
from tests.faults.conftest import small
from tests.train import runs

# Settings of an objective, beside its name.
OBJECTIVES = {
    "janus": {},
    "ar": {},
    "cmlm": {"objective__weights__nar": 1.0},
    "ctc": {"model__ctc_ratio": 1.5, "model__max_positions": 96},
    "janus_ctc": {
        "model__ctc_ratio": 1.5,
        "model__max_positions": 96,
        "objective__glancing": ((0, 0.5), (100, 0.1)),
    },
}


def kills(config, directory, moments, rng, **where):
    """Kills runs of `config` at these moments, lets them finish, and compares each with one that nothing interrupts.

    Returns:
      What each killed process was doing.
    """
    whole = killed_runs.KilledRun(config, directory / "whole", **where)
    whole.finish()
    left, done = list(moments), []
    while left:
        # On a fast machine a run may end before it was killed often enough: then another run follows.
        run = killed_runs.KilledRun(config, directory / f"killed{len(done)}", **where)
        while left and run.kill(left[0], rng):
            left.pop(0)
        run.finish()
        killed_runs.assert_same(run.workdir, whole.workdir)
        assert run.kills, "the run ends before it can be killed; give it more steps"
        done += run.kills
    assert len(done) == len(moments)
    return done


@pytest.mark.slow
def test_a_run_killed_five_times_is_bitwise_the_whole_run(prepared, tmp_path):
    config = runs.config(
        prepared, objective__name="ar", train__steps=60, train__eval_every=60, train__checkpoint_every=6, optimizer__warmup_steps=10,
    )  # fmt: skip
    moments = ["start-up", "save", "compile", "steps", "save"]
    done = kills(config, tmp_path, moments, random.Random(0))
    assert done.count("save") >= 2
    assert len(set(done)) >= 3


@pytest.fixture(scope="module")
def text_prepared(tmp_path_factory):
    """Blocks of text for denoising."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = "the old house by the river stood empty until one spring morning two painters came to look at it".split()
    lines = [" ".join(rng.choice(words, 12)).capitalize() + "." for _ in range(400)]
    (folder / "corpus.txt").write_text("".join(f"{line}\n" for line in lines))
    settings = default_config()
    settings.text.update({"model_type": "byte_bpe", "vocab_size": 300})
    settings.data.update(
        {
            "source": "text", "train": str(folder / "corpus.txt"), "valid": "", "test": "", "hold_out": 20, "buckets": 1,
            "prepared": str(folder / "prepared"), "max_source_length": 48, "max_target_length": 48,
            "tokens_per_batch": 512,
        }
    )  # fmt: skip
    config = resolve(settings)
    prepare(config, log=lambda *_: None)
    return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A compile cache that begins empty, so that kills may hit the compiler and what it writes."""
    return tmp_path_factory.mktemp("cache")


def shuffled(rng, count):
    """So many moments, each kind about as often, in random order."""
    kinds = ["save", "steps", "any", "start-up", "compile"]
    moments = [kinds[i % len(kinds)] for i in range(count)]
    rng.shuffle(moments)
    return moments


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "number"),
    [*[("janus", i) for i in range(5)], *[(n, 0) for n in OBJECTIVES if n != "janus"], ("text", 0)],
)
def test_killed_often(objective, number, request, tmp_path, cache, record_property):
    """50 kills of the joint objective, in five runs (two of them on two devices), and five of each other one and of denoising."""
    changes = {
        "train__steps": 160,
        "train__eval_every": 40,
        "train__checkpoint_every": 5,
        "optimizer__warmup_steps": 20,
    }
    prepared = request.getfixturevalue("prepared")
    if objective == "text":
        config = runs.config(prepared, objective__normalize_by="target", **changes)
        text = request.getfixturevalue("text_prepared")
        config = dataclasses.replace(config, text=text.text, data=text.data)
    else:
        config = runs.config(
            prepared, objective__name=objective, train__seed=number, **changes, **OBJECTIVES[objective]
        )
    rng = random.Random(f"{objective} {number}")
    moments = shuffled(rng, 10 if objective == "janus" else 5)
    done = kills(config, tmp_path, moments, rng, cache=cache, devices=1 + number % 2)
    record_property("kills", dict(collections.Counter(done)))
    assert "save" in done


def assert_resumes_on_another_mesh(config, whole, workdir, monkeypatch):
    """A run on a mesh of {8, 1, 1} resumes at step 6 on a mesh of {2, 2, 2}: same examples, same losses."""
    killed_runs.copy_until(6, whole, workdir)
    batches, seen = TrainBatches(Prepared.open(config.data.prepared), config), []
    original = loop_module.train_batches

    def watched(*args):
        for batch in original(*args):
            seen.append(batch.example_id.tolist())
            yield batch

    monkeypatch.setattr(loop_module, "train_batches", watched)
    train(dataclasses.replace(config, parallel=ParallelConfig(2, 2, 2)), workdir)
    assert seen == [batches.batch_at(step).example_id.tolist() for step in range(6, 12)]
    pairs = list(zip(killed_runs.records(workdir), killed_runs.records(whole), strict=True))
    assert [ours["step"] for ours, _ in pairs] == [*range(1, 13), 12]
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        for name in ours:
            # Divergences begin at 1e-7 nats, the rounding of sums of hundreds of terms.
            np.testing.assert_allclose(
                ours[name], theirs[name], rtol=1e-5, atol=1e-6, err_msg=f"step {ours['step']}: {name}"
            )


def test_resume_on_another_mesh_sees_the_same_examples_and_losses(prepared, whole, tmp_path, monkeypatch):
    assert_resumes_on_another_mesh(small(prepared), whole, tmp_path / "moved", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["janus", "janus_ctc"])
def test_resume_on_another_mesh_for_other_objectives(objective, prepared, tmp_path, monkeypatch):
    config = small(prepared, objective__name=objective, **OBJECTIVES[objective])
    train(config, tmp_path / "whole")
    assert_resumes_on_another_mesh(config, tmp_path / "whole", tmp_path / "moved", monkeypatch)


def test_no_example_is_skipped_or_repeated_when_the_processes_change(prepared):
    data = Prepared.open(prepared)
    config = runs.config(prepared, data__tokens_per_batch=512)
    shares = {n: [TrainBatches(data, config, i, n) for i in range(n)] for n in (1, 2, 4)}
    epoch = shares[1][0].steps_per_epoch
    seen = collections.Counter()
    for step in range(2 * epoch):
        # A run that moves from one machine to four, then to two, in the middle of its epochs.
        parts = shares[1 if step < epoch // 2 else 4 if step < epoch + epoch // 2 else 2]
        joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *(part.batch_at(step) for part in parts))
        for name, value in vars(shares[1][0].batch_at(step)).items():
            np.testing.assert_array_equal(getattr(joined, name), value, err_msg=f"step {step}: {name}")
        seen.update(joined.example_id[joined.example_id >= 0].tolist())
    assert seen == dict.fromkeys(range(len(data.split("train"))), 2)
