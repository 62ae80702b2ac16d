"""The training loop: exact resume, faults, stops, checkpoints. Killed runs are in tests/faults."""

import dataclasses
import importlib
import json
import os
import re
import shutil
import signal
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import checkpoint, parallel, processes
from janus_jax.checkpoint.run import kept_steps
from janus_jax.config import ConfigError, TrainConfig, from_json
from janus_jax.data import Prepared, prepare
from janus_jax.metrics import evaluations, read_metrics
from janus_jax.train import NonFiniteLossError, log, train
from janus_jax.train import evaluation as evaluation_module
from janus_jax.train import loop as loop_module
from janus_jax.train import workdir as workdir_module
from janus_jax.train.__main__ import main
from tests.docs.pages import ROOT
from tests.faults.killed_runs import copy_until, experiment
from tests.train import runs

# The package exports a function of that name.
dry_run_module = importlib.import_module("janus_jax.train.dry_run")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "demo"
    prepare(runs.config(directory), log=lambda *_: None)
    return directory


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    """The uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "plot_curves", log.plot_curves)
        train(runs.config(prepared), workdir)
    return workdir


def stored(workdir):
    """Everything in the newest checkpoint, as a flat dictionary of arrays."""
    from orbax.checkpoint import v1 as ocp

    items = ocp.load_checkpointables(checkpoint.find(workdir))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(items)}


def records(workdir):
    """The records of metrics.jsonl without the metrics of the machine."""
    return [
        {name: value for name, value in record.items() if not name.startswith("time/")}
        for record in read_metrics(workdir / "metrics.jsonl")
    ]


def assert_same_run(workdir, whole):
    ours, theirs = stored(workdir), stored(whole)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert records(workdir) == records(whole)


def test_a_run_writes_all_its_files(whole):
    names = {path.name for path in whole.iterdir()}
    assert {"checkpoints", "config.json", "metrics.jsonl", "tensorboard", "curves.png"} <= names
    assert not [name for name in names if "partial" in name]
    steps = [record["step"] for record in records(whole)]
    assert steps == [2, 4, 6, 6, 8, 10, 12, 12]  # training records, and evaluations at 6 and 12
    last = records(whole)[-1]
    assert {"valid/loss", "valid/nll/ar", "valid/nll/nar", "valid/nll/aux", "valid/loss/length"} <= last.keys()
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((whole / "tensorboard").iterdir())


def moving_average(workdir):
    """The moving average in the newest checkpoint, as a flat dictionary of arrays; it differs from the parameters."""
    everything = stored(workdir)
    average = {name.removeprefix("['ema']"): x for name, x in everything.items() if name.startswith("['ema']")}
    assert any((x != everything[f"['params']{name}"]).any() for name, x in average.items())
    return average


def assert_same_arrays(params, expected):
    """Compares a tree of parameters with a flat dictionary."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    assert leaves.keys() == expected.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def test_a_loaded_model_is_the_moving_average(whole):
    assert_same_arrays(checkpoint.load(whole).params, moving_average(whole))


def test_evaluations_measure_the_moving_average(prepared, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    metrics = tmp_path / "run/metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))  # killed while it evaluated
    measured = []
    monkeypatch.setattr(
        evaluation_module.Evaluation, "measure", lambda _, params: measured.append(jax.device_get(params))
    )
    train(runs.config(prepared), tmp_path / "run")
    (params,) = measured
    assert_same_arrays(params, moving_average(whole))


def test_losses_fall(whole):
    totals = [record["loss/total"] for record in records(whole) if "loss/total" in record]
    assert totals[-1] < totals[0]


def test_resume_is_bitwise_the_uninterrupted_run(prepared, whole, tmp_path):
    config = runs.config(prepared)
    first = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))
    train(first, tmp_path)
    train(config, tmp_path)
    # The first part ended with an evaluation at its last step, step 6, as the whole run had one there.
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_terms_without_weight_are_not_computed_and_a_resume_between_them_is_bitwise(prepared, tmp_path, capsys):
    late = ((6, 0.0), (8, 1.0))  # AR alone up to the seventh step, whose weights are those of 6 steps done
    config = runs.config(
        prepared,
        objective__name="janus_ctc",
        objective__weights={"ctc": late, "kl_ar_ctc": late},
        objective__glancing=((0, 0.5), (12, 0.1)),
        model__ctc_ratio=1.5,
        model__max_positions=96,
        train__eval_sentences=3,
        train__eval_every=12,
    )
    train(config, tmp_path / "whole")
    said = [line.split(";")[0] for line in capsys.readouterr().err.splitlines() if "the first with" in line]
    assert said == ["step 1: the first with ar", "step 8: the first with ar, ctc, kl_ar_ctc"]
    by_step = {record["step"]: record for record in records(tmp_path / "whole") if "loss/total" in record}
    assert "loss/ctc" not in by_step[6]
    assert {"loss/ctc", "loss/kl_ar_ctc", "nll/ctc", "ctc/unfit"} <= by_step[8].keys()
    last = records(tmp_path / "whole")[-1]
    assert {"valid/nll/ctc", "valid/ctc/unfit", "valid/bleu_ar", "valid/bleu_ctc"} <= last.keys()
    assert 0 <= last["valid/ctc/unfit"] < 0.5
    np.testing.assert_allclose(
        last["valid/loss"], sum(last[f"valid/loss/{name}"] for name in ("ar", "ctc", "kl_ar_ctc")), rtol=1e-6
    )
    copy_until(6, tmp_path / "whole", tmp_path / "resumed")
    train(config, tmp_path / "resumed")
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_stops_and_the_run_resumes(prepared, tmp_path, monkeypatch, capsys, number):
    config = runs.config(prepared, objective__name="ar", train__eval_every=12, train__checkpoint_every=12)
    original = loop_module.train_batches

    def signalling(*args):
        for position, batch in enumerate(original(*args), 1):
            if position == 5:
                os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(loop_module, "train_batches", signalling)
    own = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored
    try:
        _, stopped = loop_module.train_or_stop(config, tmp_path)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, own)
    assert stopped
    saved = int(checkpoint.find(tmp_path).name)
    assert 5 <= saved <= 7  # the request is read with the metrics of a step, a step late
    assert f"stopped on request after step {saved}" in capsys.readouterr().err
    monkeypatch.undo()
    train(config, tmp_path)
    assert int(checkpoint.find(tmp_path).name) == 12
    assert "nothing to train" not in capsys.readouterr().err
    train(config, tmp_path)
    assert f"{tmp_path} has all its 12 steps, so there is nothing to train" in capsys.readouterr().err


def test_nohup_keeps_a_run_from_the_end_of_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with processes.stop_on_signal() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request.received
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.received
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def idle(monkeypatch):
    """Steps that only count, for what a run does between its steps: no step is compiled."""
    metrics = dict.fromkeys(("finite", "loss/total", "grad_norm", "learning_rate", "target_tokens"), 1.0)

    def step(state, _batch):
        return dataclasses.replace(state, step=state.step + 1), metrics

    monkeypatch.setattr(loop_module, "jit_train_step", lambda *_: step)


@pytest.mark.usefixtures("idle")
def test_a_run_ends_early_after_evaluations_that_are_no_better(prepared, whole, tmp_path, monkeypatch, capsys):
    shutil.copytree(whole, tmp_path / "run")
    losses = iter((99.0, float("nan")))  # at steps 14 and 16; those at 6 and 12 were finite, and fell
    monkeypatch.setattr(evaluation_module.Evaluation, "measure", lambda *_: {"valid/loss": next(losses)})
    every = {"train__eval_every": 2, "train__checkpoint_every": 2, "train__keep_last": 1}
    config = runs.config(prepared, train__steps=24, train__patience=2, **every)
    _, stopped = loop_module.train_or_stop(config, tmp_path / "run")
    assert not stopped  # it was not interrupted
    best = tmp_path / "run/checkpoints/12"
    message = "ended at step 16: valid/loss is not better than at step 12, 2 evaluations before; the best checkpoint is"
    assert f"{message} {best}\n" in capsys.readouterr().err
    assert sorted(path.name for path in best.parent.iterdir()) == ["12", "16"]


@pytest.mark.slow
def test_a_run_without_progress_ends_early_and_stays_ended(prepared, tmp_path, monkeypatch, capsys):
    losses = {2: 1.0, 4: 2.0, 6: 2.0, 8: float("nan"), 10: 1.0, 12: 2.0}
    steps = []

    def measured(evaluation, _params):
        steps.append(2 * len(steps) + 2)
        return {"valid/loss": losses[steps[-1]]}

    monkeypatch.setattr(evaluation_module.Evaluation, "measure", measured)
    every = {"train__eval_every": 2, "train__checkpoint_every": 2, "train__keep_last": 1}
    # The evaluation at step 2 does not count: the loss has its last weights from step 3 on.
    every["objective__weights"] = {"ar": ((0, 0.5), (3, 1.0))}
    config = runs.config(prepared, objective__name="ar", train__patience=2, **every)
    _, stopped = loop_module.train_or_stop(config, tmp_path)
    assert not stopped  # it was not interrupted
    assert steps == [2, 4, 6, 8]
    assert f"ended at step 8: valid/loss is not better than at step 4, 2 evaluations before; the best checkpoint is {tmp_path}/checkpoints/4" in capsys.readouterr().err  # fmt: skip
    # Step 6 is as good as 4, and step 2 is not compared.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]
    train(config, tmp_path)
    assert steps == [2, 4, 6, 8]
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, patience=3)), tmp_path)
    assert steps == [2, 4, 6, 8, 10, 12]  # step 10 was better
    assert int(checkpoint.find(tmp_path).name) == 12


@pytest.fixture
def poisoned(monkeypatch):
    """Parameters of which one becomes infinite at step 5."""

    def poison(step_fn):
        def run(state, batch):
            if int(state.step) == 4:
                table = state.params["embed_tokens"]["embedding"].at[6, 0].set(jnp.inf)
                state = dataclasses.replace(state, params=state.params | {"embed_tokens": {"embedding": table}})
            return step_fn(state, batch)

        return run

    original = loop_module.jit_train_step
    monkeypatch.setattr(loop_module, "jit_train_step", lambda *args: poison(original(*args)))


@pytest.mark.usefixtures("poisoned")
def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(prepared, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"step 5: .*not finite.*examples.*learning_rate.*step 3, is intact"):
        train(runs.config(prepared, objective__name="ar"), tmp_path)
    assert int(checkpoint.find(tmp_path).name) == 3
    assert all(np.isfinite(array).all() for name, array in stored(tmp_path).items() if "assets" not in name)


@pytest.mark.usefixtures("poisoned")
def test_tolerated_bad_steps_are_skipped_and_counted(prepared, tmp_path, capsys):
    with pytest.raises(NonFiniteLossError, match="step 8"):
        train(runs.config(prepared, objective__name="ar", train__max_bad_steps=3, train__checkpoint_every=12), tmp_path)
    assert "Skipped (3 of 3 allowed)" in capsys.readouterr().err


def test_a_run_with_other_settings_is_refused_and_names_them(prepared, whole):
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: 0.001, now 0.5"):
        train(runs.config(prepared, optimizer__learning_rate=0.5), whole)


@pytest.mark.slow
def test_other_settings_can_be_allowed_even_clipping(prepared, tmp_path, capsys):
    train(runs.config(prepared, objective__name="ar"), tmp_path)
    changed = runs.config(prepared, objective__name="ar", train__steps=14, optimizer__clip_norm=1.0)
    with pytest.raises(ConfigError, match="--allow_changes"):
        train(changed, tmp_path)
    train(changed, tmp_path, allow_changes=True)
    assert "optimizer.clip_norm: 0.0, now 1.0" in capsys.readouterr().err
    assert int(checkpoint.find(tmp_path).name) == 14


@pytest.mark.usefixtures("idle")
def test_allowed_changes_are_listed_and_the_run_goes_on(prepared, whole, tmp_path, monkeypatch, capsys):
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(evaluation_module.Evaluation, "measure", lambda *_: {})
    changed = runs.config(prepared, train__steps=14, model__dropout=0.2, optimizer__clip_norm=1.0)
    train(changed, tmp_path / "run", allow_changes=True)
    message = "resumes with other settings: model.dropout: 0.1, now 0.2; optimizer.clip_norm: 0.0, now 1.0\n"
    assert message in capsys.readouterr().err
    assert int(checkpoint.find(tmp_path / "run").name) == 14


def test_the_length_of_a_cosine_run_is_not_free(prepared, tmp_path):
    config = runs.config(prepared, objective__name="ar", train__steps=6, optimizer__schedule="cosine")
    opened = Prepared.open(prepared, config)
    (tmp_path / "checkpoints/6").mkdir(parents=True)
    workdir_module.save_settings(loop_module.resolve_with_data(config, opened), opened.contents, tmp_path)
    with pytest.raises(ConfigError, match=r"train\.steps: 6, now 8"):
        train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=8)), tmp_path)


def test_a_finished_run_returns_its_last_evaluation(prepared, whole):
    assert train(runs.config(prepared), whole)["valid/loss"] == records(whole)[-1]["valid/loss"]


def test_a_run_that_is_past_its_steps_says_so(prepared, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    train(runs.config(prepared, train__steps=9), tmp_path / "run")
    assert "has all its 12 steps, so there is nothing to train" in capsys.readouterr().err


def test_a_vocabulary_size_that_is_not_the_tokenizers_is_refused(prepared, tmp_path):
    with pytest.raises(ConfigError, match="set it to 0 or"):
        train(runs.config(prepared, model__vocab_size=99), tmp_path)


@pytest.mark.parametrize(
    ("metric", "sentences", "message"),
    [
        ("valid/blue_ar", 3, r"'valid/blue_ar' is not measured .* did you mean 'valid/bleu_ar'\?"),
        ("valid/bleu_ar", 0, "'valid/bleu_ar' is not measured .* set train.eval_sentences, now 0, above 0"),
        ("valid/nll/nar", 0, "Measured are valid/loss, valid/loss/ar, valid/nll/ar"),
    ],
)
@pytest.mark.parametrize("start", ["train", "dry_run"])
def test_a_best_metric_that_is_never_measured_is_named_before_the_first_step(
    prepared, tmp_path, monkeypatch, metric, sentences, message, start
):
    for module in (loop_module, dry_run_module):
        monkeypatch.setattr(module, "jit_train_step", lambda *_: pytest.fail("the step was built"))
    mode = "min" if metric.startswith("valid/nll") else "max"
    settings = {"train__best_metric": metric, "train__eval_sentences": sentences, "train__best_mode": mode}
    config = runs.config(prepared, objective__name="ar", **settings)
    with pytest.raises(ConfigError, match=f"^config.train.best_metric: .*{message}"):
        train(config, tmp_path) if start == "train" else dry_run_module.dry_run(config)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("start", ["train", "dry_run"])
def test_impossible_decoding_of_validation_sentences_is_named_before_the_first_step(
    prepared, tmp_path, monkeypatch, start
):
    for module in (loop_module, dry_run_module):
        monkeypatch.setattr(module, "jit_train_step", lambda *_: pytest.fail("the step was built"))
    config = runs.config(prepared, objective__name="cmlm", train__eval_sentences=3, decode__nar__length_beam=64)
    with pytest.raises(
        ConfigError, match=r"mode nar cannot decode validation sentences \(length_beam .* 64 lengths wanted"
    ):
        train(config, tmp_path) if start == "train" else dry_run_module.dry_run(config)
    assert not (tmp_path / "checkpoints").exists()


def test_patience_needs_a_validation_split(tmp_path):
    config = runs.config(tmp_path / "data", train__patience=1, data__source="tsv", data__train=str(tmp_path / "train"))
    (tmp_path / "train").write_text("eins\tone\nzwei\ttwo\n" * 30)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, valid="", test=""))
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=20))
    prepare(config)
    with pytest.raises(ConfigError, match=r"^config.train.patience: .*data has no validation split"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_failed_evaluation_costs_no_steps_and_is_made_up_for(prepared, whole, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(evaluation_module.Evaluation, "measure", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(runs.config(prepared), tmp_path)
    assert int(checkpoint.find(tmp_path).name) == 6
    monkeypatch.undo()
    train(runs.config(prepared), tmp_path)
    assert_same_run(tmp_path, whole)


def test_the_best_checkpoints_are_those_of_the_best_evaluations():
    def kept(best, mode="min", **changes):
        settings = TrainConfig(keep_last=2, keep_best=best, best_mode=mode, **changes)
        evaluations = {1: {"valid/loss": 2.0}, 2: {"valid/loss": 1.0}, 3: {}, 4: {"valid/loss": float("nan")}}
        return sorted(kept_steps([1, 2, 3, 4, 5, 6], settings, evaluations))

    assert kept(0) == [5, 6]
    assert kept(1) == [2, 5, 6]
    assert kept(1, "max") == [1, 5, 6]
    assert kept(2) == [1, 2, 5, 6]
    assert kept(1, keep_every=3) == [2, 3, 5, 6]
    ties = {step: {"valid/loss": 1.0} for step in (1, 2, 3)}
    for mode in ("min", "max"):
        assert kept_steps([3, 1, 2], TrainConfig(keep_last=1, keep_best=1, best_mode=mode), ties) == {1, 3}


def test_checkpoints_that_a_killed_run_had_not_removed_yet_are_removed(prepared, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    for step in (3, 5):
        shutil.copytree(whole / "checkpoints/9", tmp_path / f"run/checkpoints/{step}")
    train(runs.config(prepared, train__keep_last=2), tmp_path / "run")
    assert [path.name for path in checkpoint.step_directories(tmp_path / "run")] == ["9", "12"]
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == ["12", "9"]


def test_a_run_that_lost_its_evaluations_keeps_all_checkpoints(prepared, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").unlink()
    monkeypatch.setattr(evaluation_module.Evaluation, "measure", lambda *_: {})
    train(runs.config(prepared, train__keep_last=1), tmp_path / "run")
    assert [path.name for path in checkpoint.step_directories(tmp_path / "run")] == ["6", "9", "12"]


def test_the_newest_and_those_of_every_few_steps_are_kept(prepared, tmp_path):
    kept = {"train__keep_last": 1, "train__keep_best": 0, "train__keep_every": 4, "train__checkpoint_every": 2}
    decoded = {"train__eval_every": 10, "train__eval_sentences": 4}
    final = train(runs.config(prepared, objective__name="ar", train__steps=10, **kept, **decoded), tmp_path)
    assert_trained_and_decoded(final, "ar")
    assert [path.name for path in checkpoint.step_directories(tmp_path)] == ["4", "8", "10"]


def test_checkpoints_are_self_contained_and_average(whole, prepared, tmp_path):
    loaded = checkpoint.load(whole)
    assert loaded.step == 12
    assert loaded.config.data.prepared == str(prepared)
    from janus_jax import text

    assert text.load(loaded.tokenizer).vocab_size == loaded.config.model.vocab_size
    # keep_last 3, and the best of those that were evaluated (6 and 12)
    kept = [int(path.name) for path in checkpoint.step_directories(whole)]
    assert kept == [6, 9, 12]
    one, two = (checkpoint.load(path).params for path in checkpoint.step_directories(whole)[:2])
    mean = checkpoint.average([one, two])
    for a, b, c in zip(*(jax.tree.leaves(tree) for tree in (one, two, mean)), strict=True):
        np.testing.assert_allclose(c, (np.asarray(a) + np.asarray(b)) / 2, atol=1e-7)


@pytest.mark.parametrize("path", ["nothing", "."])
def test_a_missing_checkpoint_is_named(path, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=str(tmp_path)):
        checkpoint.load(tmp_path / path)


@pytest.mark.slow
def test_other_objectives_train_and_decode_what_they_trained(prepared, tmp_path):
    decoded = {"train__eval_every": 4, "train__eval_sentences": 4, "decode__nbest": 3}
    config = runs.config(prepared, objective__name="cmlm", objective__weights__nar=1.0, train__steps=4, **decoded)
    assert_trained_and_decoded(train(config, tmp_path), "nar")


def assert_trained_and_decoded(final, half):
    assert f"valid/nll/{half}" in final
    assert f"valid/bleu_{half}" in final
    assert len([name for name in final if name.startswith("valid/bleu")]) == 1


def test_the_command_reports_mistakes_with_their_fix(capsys, tmp_path):
    assert main([]) == 2
    assert "--config and --workdir" in capsys.readouterr().err


def test_a_run_too_large_for_the_memory_is_one_line_with_status_2(capsys, tmp_path, prepared, monkeypatch):
    command = importlib.import_module("janus_jax.train.__main__")
    arguments = [f"--config={experiment(runs.config(prepared), tmp_path / 'x.py')}", f"--workdir={tmp_path / 'run'}"]

    def fails(error):
        def train_or_stop(*_, **__):
            raise error

        monkeypatch.setattr(command, "train_or_stop", train_or_stop)

    for error in (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nMore."), MemoryError()):
        fails(error)
        assert command.main(arguments) == 2
        assert re.fullmatch(
            r"error: the run does not fit into memory \(.*\); lower config.data.*\n", capsys.readouterr().err
        )
    fails(jax.errors.JaxRuntimeError("INTERNAL: a bug"))
    with pytest.raises(jax.errors.JaxRuntimeError):
        command.main(arguments)


@pytest.mark.usefixtures("idle")
def test_an_evaluation_too_large_for_the_memory_names_the_settings_of_decoding(prepared, tmp_path, monkeypatch):
    def measure(_self, _params):
        raise error

    monkeypatch.setattr(evaluation_module.Evaluation, "measure", measure)
    config = runs.config(prepared, train__eval_every=6, train__checkpoint_every=6)
    for error in (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory."), MemoryError()):
        message = "the evaluation of step 6 does not fit into memory; lower config.decode.batch_tokens"
        with pytest.raises(ConfigError, match=message):
            train(config, tmp_path / type(error).__name__)
    error = jax.errors.JaxRuntimeError("INTERNAL: a bug")
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        train(config, tmp_path / "bug")


def test_reranking_by_an_untrained_half_is_named_before_the_first_step(prepared, tmp_path):
    config = runs.config(prepared, objective__name="cmlm", decode={"nar": {"rerank": "ar"}})
    with pytest.raises(ConfigError, match=r"config\.decode\.nar\.rerank: ar, but the objective trains only nar"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


def test_parallel_start_sets_the_compile_cache(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        parallel.start(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_metrics_are_json_lines(whole):
    for line in (whole / "metrics.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line)["step"], int)


def test_a_run_of_some_parameters_says_where_the_others_are_from(prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"config.train.only: .*name a checkpoint, init_from=DIR"):
        train(runs.config(prepared, train__only="adapter"), tmp_path / "run")


@pytest.mark.usefixtures("idle")
def test_a_request_to_stop_is_followed_before_an_evaluation(prepared, tmp_path, monkeypatch):
    config = runs.config(prepared, objective__name="ar", train__eval_every=1, train__checkpoint_every=12)
    original, measured = loop_module.train_batches, []

    def signalling(*args):
        for number, batch in enumerate(original(*args), 1):
            if number == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(evaluation_module.Evaluation, "measure", lambda *_: measured.append(1) or {"valid/loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "train_batches", signalling)
        assert loop_module.train_or_stop(config, tmp_path)[1]
    saved = int(checkpoint.find(tmp_path).name)
    assert len(measured) == saved - 1
    train(config, tmp_path)
    assert len(measured) == 12  # the evaluation is made up for
    assert sorted(step for step in evaluations(tmp_path)) == list(range(1, 13))


def test_a_finished_run_keeps_its_decoding_settings(prepared, whole, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    train(runs.config(prepared, decode__ar__beam=2), run)
    assert "the checkpoints keep the decoding settings" in capsys.readouterr().err
    assert from_json((run / "config.json").read_text()).decode == checkpoint.config(run).decode
    train(runs.config(prepared), run)
    message = capsys.readouterr().err
    assert "for a longer run raise train.steps" in message
    assert "decoding settings" not in message


@pytest.mark.usefixtures("idle")
def test_a_best_checkpoint_that_is_gone_is_not_named(prepared, whole, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(evaluation_module.Evaluation, "measure", lambda *_: {"valid/loss": 99.0})
    every = {"train__eval_every": 2, "train__checkpoint_every": 2, "train__keep_last": 1}
    train(runs.config(prepared, train__steps=14, train__keep_best=0, **every), run)
    train(runs.config(prepared, train__steps=24, train__patience=2, **every), run)
    said = f"there is no checkpoint of step 12 any more, and the best checkpoint is {run}/checkpoints/14\n"
    assert said in capsys.readouterr().err
    assert (run / "checkpoints/14").is_dir()


@pytest.mark.usefixtures("idle")
def test_checkpoints_whose_evaluations_are_lost_are_kept(prepared, whole, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    monkeypatch.setattr(evaluation_module.Evaluation, "measure", lambda *_: {"valid/loss": 1.0})
    train(runs.config(prepared, train__steps=24, train__keep_last=1), run)
    assert "checkpoints 6 are kept, since metrics.jsonl has no evaluation of them" in capsys.readouterr().err
    # 6 may be the best; of the others 12 is, and 24 is the newest.
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["12", "24", "6"]


@pytest.mark.usefixtures("idle")
def test_checkpoints_that_were_never_evaluated_are_not_kept(prepared, whole, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(whole, tmp_path / "run")  # evaluated every 6 steps, with checkpoints 6, 9 and 12
    monkeypatch.setattr(evaluation_module.Evaluation, "measure", lambda *_: {"valid/loss": 99.0})
    train(runs.config(prepared, train__steps=15, train__keep_last=1, train__eval_every=3), run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["12", "15"]
    # Without a validation split nothing is, and nothing may be the best.
    without = runs.config(
        prepared, objective__name="ar", train__eval_every=2, train__checkpoint_every=2, train__keep_last=2
    )
    monkeypatch.setattr(evaluation_module.Evaluation, "measure", lambda *_: {})
    monkeypatch.setattr(Prepared, "open", classmethod(without_validation(Prepared.open)))
    for steps in (6, 10):
        train(dataclasses.replace(without, train=dataclasses.replace(without.train, steps=steps)), tmp_path / "blind")
    assert sorted(path.name for path in (tmp_path / "blind/checkpoints").iterdir()) == ["10", "8"]
    assert "are kept" not in capsys.readouterr().err


def without_validation(original):
    def opened(_, *arguments):
        prepared = original(*arguments)
        return dataclasses.replace(prepared, splits={"train": prepared.splits["train"]})

    return opened


@pytest.mark.usefixtures("idle")
def test_a_request_to_stop_in_the_last_traced_step_saves(prepared, tmp_path, monkeypatch):
    config = runs.config(prepared, objective__name="ar", train__eval_every=12, train__checkpoint_every=12)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    original = loop_module._TrainingRun._read

    def read(run, pending):
        if pending and pending.step == 5:
            pending = dataclasses.replace(pending, stop=True)
        original(run, pending)

    monkeypatch.setattr(loop_module._TrainingRun, "_read", read)
    assert loop_module.train_or_stop(config, tmp_path, profile=(5, 5))[1]
    assert checkpoint.find(tmp_path).name == "5"


@pytest.mark.usefixtures("idle")
def test_steps_to_trace_that_do_not_run_are_named(prepared, tmp_path, capsys):
    config = runs.config(prepared, objective__name="ar", train__steps=2, train__eval_every=9)
    loop_module.train_or_stop(config, tmp_path, profile=(5, 6))
    assert "--profile=5:6: nothing is traced, since this run trains the steps 1 to 2" in capsys.readouterr().err
    loop_module.train_or_stop(config, tmp_path, profile=(1, 6))
    assert "--profile=1:6: nothing is traced, since there is nothing to train" in capsys.readouterr().err
    assert main(["--config=configs/demo_deen.py", f"--workdir={tmp_path}", "--dry_run", "--profile=1:2"]) == 2


def test_a_work_directory_is_a_directory(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main([f"--config={ROOT}/configs/demo_deen.py", "--workdir=gs://bucket/run"]) == 2
    assert "--workdir=gs://bucket/run: an address is no directory" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="vocab_size"):  # which is found after the directory
        train(runs.config(prepared, model__vocab_size=7), "~/run")
    assert not any("~" in path.name or ":" in path.name for path in tmp_path.iterdir())


def test_an_interrupted_run_keeps_no_state(prepared, tmp_path, monkeypatch):
    def interrupted(_state, _batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop_module, "jit_train_step", lambda *_: interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(runs.config(prepared, objective__name="ar"), tmp_path)
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb)]
    [run, *_] = [frame.f_locals["self"] for frame in frames if frame.f_code.co_name == "run"]
    assert run.state is None


@pytest.mark.usefixtures("idle")
def test_an_interrupted_evaluation_keeps_no_parameters(prepared, tmp_path, monkeypatch):
    def interrupted(_evaluation, params):
        assert params
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation_module.Evaluation, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(runs.config(prepared, objective__name="ar", train__eval_every=2), tmp_path)
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb)]
    assert any(frame.f_code is interrupted.__code__ for frame in frames)
    assert not any("params" in frame.f_locals for frame in frames)
