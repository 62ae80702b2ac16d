"""Every shipped experiment and preset loads, resolves, and takes a training step at reduced size."""

import dataclasses
import functools
import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from janus_jax.config import ConfigError, Weight, objective_terms
from janus_jax.data import Prepared, TrainBatches, prepare
from janus_jax.door import load_config
from janus_jax.model import Janus
from janus_jax.train.step import init_state, make_train_step
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
    """The same experiment with tiny layers on a small corpus; what remains is what the file chose."""
    replace = dataclasses.replace
    return replace(
        config,
        text=replace(config.text, model="", vocab_size=400, byte_fallback=True),
        data=replace(
            config.data, source="demo", source_lang="de", target_lang="en", train="train", valid="", test="", tfds_name="",
            demo_sizes=(200, 4, 4), prepared="", max_source_length=64, max_target_length=64, buckets=1,
            tokens_per_batch=config.data.tokens_per_batch // 4,
        ),
        model=replace(
            config.model, vocab_size=400, d_model=16, ffn_dim=16, encoder_layers=1, decoder_layers=1, max_positions=64,
            length_classes=64, dropout=0.1,
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared") / "demo"
    config = reduced(load(EXPERIMENTS[0]))
    prepare(dataclasses.replace(config, data=dataclasses.replace(config.data, prepared=str(directory))), log=str)
    return directory


@functools.cache
def step_of(model, objective, optimizer, steps, accumulation, shape):
    """The compiled step; experiments that differ in text alone share it."""
    del accumulation, shape  # of the batch, which only the compiler sees
    config = dataclasses.replace(load("demo_deen.py"), model=model, objective=objective, optimizer=optimizer)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
    net = Janus(model, Specials())
    return jax.jit(lambda batch: make_train_step(net, config)(init_state(net, config), batch))


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_one_step(experiment, prepared):
    config = reduced(load(experiment))
    batches = TrainBatches(Prepared.open(prepared, config), config)
    batch = batches.batch_at(0)
    assert batch.target.shape[0] == config.train.accumulation
    assert batch.target.shape[1] * max(batch.source.shape[2], batch.target.shape[2]) <= config.data.tokens_per_batch
    step = step_of(
        config.model, config.objective, config.optimizer, config.train.steps, config.train.accumulation,
        batch.source.shape + batch.target.shape,
    )  # fmt: skip
    state, metrics = step(batch)
    assert int(state.step) == 1
    assert metrics["finite"] == 1
    assert np.isfinite(metrics["loss/total"])
    assert metrics["grad_norm"] > 0
    assert {f"loss/{term}" for term in objective_terms(config.objective)} <= set(metrics)
    assert (state.ema is not None) == (config.optimizer.ema_decay > 0)


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
