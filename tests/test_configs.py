"""Every shipped experiment and preset loads, resolves, and takes a training step at reduced size."""

import ast
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
from janus_jax.data.sources import FILES as FILE_SOURCES
from janus_jax.evaluate.glge import TASKS
from janus_jax.model import Janus
from janus_jax.train.optimizer import learning_rate, make_optimizer
from janus_jax.train.step import init_state, make_train_step, state_from_params
from janus_jax.types import Specials
from tests.further import further

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "data/multi30k", ROOT.parent / "shared/data/multi30k")
MULTI30K = next((folder for folder in FOLDERS if (folder / "deen4000.model").exists()), None)
FILES = sorted(p for p in (ROOT / "configs").glob("*.py") if "def get_config" in p.read_text())


def presets(path):
    """Names that get_config takes, as its error message lists them; [""] where it takes none."""
    try:
        load_config(f"{path}:no such preset")
    except ConfigError as error:
        listed = re.search(r"[Cc]hoose from (.*)", str(error))
        return listed[1].split(", ") if listed else [""]
    raise AssertionError(f"{path.name} takes any preset")


EXPERIMENTS = [f"{path.name}:{preset}".rstrip(":") for path in FILES for preset in presets(path)]
# Experiments whose step every run compiles: together they have each family, adapters, heads, and the released objective.
COMPILED = (
    "bart_finetune.py:base_frozen",
    "bart_tiny_tasks.py:headline_dag",
    "heads.py",
    "mine.py:ctc",
    "mt.py:wmt14_ende_released",
)


def load(experiment):
    return load_config(f"{ROOT / 'configs'}/{experiment}")


def test_all_experiments_are_here():
    assert {path.stem for path in FILES} == {
        "bart_finetune", "bart_janus", "bart_tiny_entext", "bart_tiny_tasks", "demo_deen", "g2p_cmudict", "glge", "heads", "mine", "mt", "multi30k_deen"
    }  # fmt: skip
    pairs = ("iwslt14_deen", "wmt14_ende", "wmt14_deen", "wmt16_enro", "wmt16_roen")
    translation = {f"mt.py:{pair}{variant}" for pair in pairs for variant in ("", "_masks", "_released")}
    assert {experiment for experiment in EXPERIMENTS if experiment.startswith("mt.py")} == translation
    benchmark = {f"glge.py:{task}{variant}" for task in TASKS for variant in ("", "_bart")}
    assert {experiment for experiment in EXPERIMENTS if experiment.startswith("glge.py")} == benchmark
    assert {"multi30k_deen.py:cpu", "multi30k_deen.py:anchor_ar", *COMPILED} <= set(EXPERIMENTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstring_gives_commands_cost_and_scores(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for command in ("data", "train"):
        assert f"python -m janus_jax.{command} --config=configs/{path.name}" in module.__doc__
    assert re.search(r"^Cost: .*Scores[:,( ]", module.__doc__, re.DOTALL | re.MULTILINE)
    for name in presets(path):
        if path.stem in ("mt", "glge", "bart_tiny_tasks"):
            name = re.sub("(_(masks|released|bart|dag|scratch))+$", "", name)
        assert name in module.__doc__


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_page_of_training_names_every_preset(path):
    lines = (ROOT / "docs/training.md").read_text().splitlines()
    rows = [n for n, line in enumerate(lines) if line.startswith(f"| `configs/{path.name}")]
    rows += [n + 1 for n in rows if lines[n + 1].startswith("| the same with")]
    named = {name for n in rows for name in re.findall(r"[:`](_?\w+)`", lines[n])}
    suffixes = tuple(name for name in named if name.startswith("_"))
    assert rows
    for name in filter(None, presets(path)):
        stem = name
        while stem not in named and stem.endswith(suffixes):
            stem = stem.removesuffix(next(suffix for suffix in suffixes if stem.endswith(suffix)))
        assert stem in named, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_bare_name_of_a_file_is_its_default_preset(path):
    if path.stem == "mt":
        with pytest.raises(ConfigError, match=r"name a preset.*wmt14_ende"):
            load(path.name)
    else:
        assert load(path.name) in [load(experiment) for experiment in EXPERIMENTS if experiment.startswith(path.name)]


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown preset 'wmt14_en_de'; did you mean 'wmt14_ende'\?"):
        load("mt.py:wmt14_en_de")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_paths_lie_inside_the_checkout(experiment):
    config = load(experiment)
    for path in (config.init_from, config.text.model, config.data.prepared, *splits(config.data)):
        assert not Path(path).is_absolute()
        assert ".." not in Path(path).parts


def splits(data):
    """The files that a configuration reads."""
    return (data.train, data.valid, data.test) if data.source in FILE_SOURCES else ()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_one_setting_a_line(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign):
            assert len(node.targets) == 1, f"{path.name}:{node.lineno}"
            assert not isinstance(node.targets[0], ast.Tuple), f"{path.name}:{node.lineno}"


def reduced(config):
    """The same experiment with tiny layers on a small corpus; the other choices of the file remain.

    Numbers that only scale (dropout, heads, the optimizer's) are the same everywhere, so that experiments of one structure
    share a compiled step; `test_optimizer` tests the optimizers.
    """
    replace = dataclasses.replace
    return replace(
        config,
        init_from="",
        text=TextConfig(vocab_size=400),
        data=replace(
            config.data, source="demo", hold_out=0, source_lang="de", target_lang="en", train="train", valid="", test="", tfds_name="",
            demo_sizes=(200, 4, 4), prepared="", max_source_length=64, max_target_length=64, buckets=(64,), tokens_per_batch=256, batch_multiple=1,
            too_long="drop",
        ),
        model=replace(
            config.model, vocab_size=400, d_model=16, ffn_dim=16, heads=2, encoder_layers=1, decoder_layers=1,
            max_positions=64, length_classes=64, dropout=0.0, ctc_ratio=2.0 * bool(config.model.ctc_ratio),
            dag_ratio=2.0 * bool(config.model.dag_ratio),
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
    """A jitted step from fresh parameters; experiments that differ only in their text share it."""
    config = dataclasses.replace(Config(), model=model, objective=objective, train=train)
    net = Janus(model, Specials())
    params = jax.tree.map(
        lambda leaf: np.random.default_rng(0).normal(scale=0.02, size=leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: init_state(net, config)).params,
    )
    return jax.jit(make_train_step(net, config)), state_from_params(config, params)


def step_and_inputs(experiment, prepared):
    """A jitted step, its fresh state and its first batch."""
    config = reduced(load(experiment))
    batches = TrainBatches(Prepared.open(prepared, config), config)
    batch = batches.batch_at(0)
    assert batch.target.shape[0] == config.train.accumulation
    assert batch.target.shape[1] * max(batch.source.shape[2], batch.target.shape[2]) <= config.data.tokens_per_batch
    step, state = step_of(config.model, config.objective, config.train)
    return step, state, batch


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_step_keeps_the_form_of_the_state_and_has_each_term(experiment, prepared):
    step, state, batch = step_and_inputs(experiment, prepared)
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {f"loss/{term}" for term in objective_terms(load(experiment).objective)} <= set(metrics)


@pytest.mark.parametrize("experiment", [e if e in COMPILED else further(e) for e in EXPERIMENTS])
def test_one_step(experiment, prepared):
    step, state, batch = step_and_inputs(experiment, prepared)
    state, metrics = step(state, batch)
    assert int(state.step) == 1
    assert metrics["finite"] == 1
    assert np.isfinite(metrics["loss/total"])
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_optimizer(experiment):
    config = load(experiment)
    rate = [float(x) for x in jax.vmap(learning_rate(config.optimizer, config.train.steps))(
        np.array([0, config.optimizer.warmup_steps, config.train.steps - 1], np.float32)
    )]  # fmt: skip
    assert rate[0] < rate[1]
    assert rate[1] == pytest.approx(config.optimizer.learning_rate)
    if config.optimizer.schedule == "constant":
        assert rate[2] == rate[1]
    else:
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


@pytest.mark.skipif(MULTI30K is None, reason="needs Multi30k in data/multi30k or ../shared/data/multi30k")
def test_anchor_updates_are_as_large_as_the_released_ones(tmp_path):
    config = load("multi30k_deen.py:anchor_janus")
    directory = str(tmp_path / "multi30k")
    data = dataclasses.replace(config.data, train=str(MULTI30K / "train"), valid="", test="", prepared=directory)
    text = dataclasses.replace(config.text, model=str(MULTI30K / "deen4000.model"))
    config = dataclasses.replace(config, data=data, text=text)
    prepare(config, log=str)
    dataset = Prepared.open(directory, config)
    steps = TrainBatches(dataset, config).steps_per_epoch
    assert steps == 303
    assert dataset.split("train").target_lengths.sum() / steps == pytest.approx(1690, abs=5)
