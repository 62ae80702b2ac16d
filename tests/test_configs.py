"""Every shipped experiment and preset loads, resolves, and takes a training step at reduced size."""

import dataclasses
import functools
import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax.command_line import load_config
from janus_jax.config import Config, ConfigError, OptimizerConfig, TextConfig, TrainConfig, Weight, objective_terms
from janus_jax.data import Prepared, TrainBatches, prepare
from janus_jax.model import Janus
from janus_jax.train.optimizer import learning_rate, make_optimizer
from janus_jax.train.step import init_state, make_train_step, state_from_params
from janus_jax.types import Specials

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for p in (ROOT / "configs").glob("*.py") if "def get_config" in p.read_text())


def presets(path):
    """Names that get_config takes, as its own error message lists them; [""] where it takes none."""
    try:
        load_config(f"{path}:no such preset")
    except ConfigError as error:
        listed = re.search(r"choose from (.*)", str(error))
        return listed[1].split(", ") if listed else [""]
    raise AssertionError(f"{path.name} takes any preset")


EXPERIMENTS = [f"{path.name}:{preset}".rstrip(":") for path in FILES for preset in presets(path)]


def load(experiment):
    return load_config(f"{ROOT / 'configs'}/{experiment}")


def test_all_experiments_are_here():
    assert {path.stem for path in FILES} >= {
        "demo_deen", "multi30k_deen", "iwslt14_deen", "wmt14_ende", "wmt14_deen", "wmt16_enro", "wmt16_roen"
    }  # fmt: skip
    assert {"multi30k_deen.py:cpu", "multi30k_deen.py:anchor_ar", "wmt14_ende.py:released"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstring_gives_the_commands_and_get_config_its_default(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for door in ("data", "train"):
        assert f"python -m janus_jax.{door} --config=configs/{path.name}" in module.__doc__
    # One preset is the default, so that the file's bare name works.
    assert load(path.name) in [load(experiment) for experiment in EXPERIMENTS if experiment.startswith(path.name)]


def reduced(config):
    """The same experiment with tiny layers on a small corpus; what remains is what the file chose.

    Numbers that only scale (dropout, heads, the optimizer's) are made equal, so that experiments of one structure share
    a compiled step; `test_optimizer` looks at the optimizers.
    """
    replace = dataclasses.replace
    return replace(
        config,
        init_from="",
        text=TextConfig(vocab_size=400),
        data=replace(
            config.data, source="demo", hold_out=0, source_lang="de", target_lang="en", train="train", valid="", test="", tfds_name="",
            demo_sizes=(200, 4, 4), prepared="", max_source_length=64, max_target_length=64, buckets=(64,), tokens_per_batch=1024,
        ),
        model=replace(
            config.model, vocab_size=400, d_model=16, ffn_dim=16, heads=2, encoder_layers=1, decoder_layers=1,
            max_positions=64, length_classes=64, dropout=0.0,
        ),
        optimizer=OptimizerConfig(),
        train=TrainConfig(accumulation=config.train.accumulation),
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared") / "demo"
    config = reduced(load(EXPERIMENTS[0]))
    prepare(dataclasses.replace(config, data=dataclasses.replace(config.data, prepared=str(directory))), log=str)
    return directory


@functools.cache
def step_of(model, objective, train):
    """A jitted step from fresh parameters; experiments that differ in their text alone share it."""
    config = dataclasses.replace(Config(), model=model, objective=objective, train=train)
    net = Janus(model, Specials())
    params = jax.tree.map(
        lambda leaf: np.random.default_rng(0).normal(scale=0.02, size=leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: init_state(net, config)).params,
    )
    return jax.jit(make_train_step(net, config)), state_from_params(config, params)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_one_step(experiment, prepared):
    config = reduced(load(experiment))
    batches = TrainBatches(Prepared.open(prepared, config), config)
    batch = batches.batch_at(0)
    assert batch.target.shape[0] == config.train.accumulation
    assert batch.target.shape[1] * max(batch.source.shape[2], batch.target.shape[2]) <= config.data.tokens_per_batch
    step, state = step_of(config.model, config.objective, config.train)
    state, metrics = step(state, batch)
    assert int(state.step) == 1
    assert metrics["finite"] == 1
    assert np.isfinite(metrics["loss/total"])
    assert metrics["grad_norm"] > 0
    assert {f"loss/{term}" for term in objective_terms(config.objective)} <= set(metrics)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_optimizer(experiment):
    config = load(experiment)
    rate = [float(x) for x in jax.vmap(learning_rate(config.optimizer, config.train.steps))(
        np.array([0, config.optimizer.warmup_steps, config.train.steps - 1], np.float32)
    )]  # fmt: skip
    assert rate[0] < rate[1]
    assert rate[1] == pytest.approx(config.optimizer.learning_rate)
    assert 0 < rate[2] < rate[1]
    optimizer = make_optimizer(config.optimizer)
    params = {"kernel": np.ones((2, 3), np.float32)}
    updates, _ = optimizer.update({"kernel": np.full((2, 3), 0.5, np.float32)}, optimizer.init(params), params)
    # Adam's first update is the gradient's sign, whatever was clipped; decoupled decay adds to it.
    np.testing.assert_allclose(updates["kernel"], 1.0 + config.optimizer.weight_decay, rtol=1e-4)


def terms(experiment) -> dict[str, Weight]:
    return objective_terms(load(f"multi30k_deen.py:{experiment}").objective)


def test_anchor_baselines_have_the_released_terms():
    assert terms("anchor_ar") == {"ar": 1.0}
    assert terms("anchor_cmlm") == {"nar": 1.0, "length": 0.1}
    assert terms("anchor_janus") == {
        "ar": 1.0, "nar": 0.5, "aux": 0.5, "length": 0.1, "kl_ar_nar": 1.0, "kl_nar_aux": 1.0, "kl_ar_aux": 3.0
    }  # fmt: skip


@pytest.mark.skipif(not (ROOT.parent / "shared/data/multi30k").is_dir(), reason="Multi30k is not at hand")
def test_anchor_updates_are_as_large_as_the_released_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load("multi30k_deen.py:anchor_janus")
    data = dataclasses.replace(config.data, valid="", test="", prepared=str(tmp_path / "multi30k"))
    config = dataclasses.replace(config, data=data)
    prepare(config, log=str)
    found = Prepared.open(data.prepared, config)
    steps = TrainBatches(found, config).steps_per_epoch
    assert steps == 303
    assert found.split("train").target_lengths.sum() / steps == pytest.approx(1690, abs=5)
