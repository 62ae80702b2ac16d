"""A dry run reports what training would take, and refuses what cannot fit."""

import dataclasses
import math

import jax
import pytest

from janus_jax import config as config_lib
from janus_jax.config import ConfigError
from janus_jax.data import Prepared, TrainBatches, prepare
from janus_jax.model.cost import step_flops
from janus_jax.train import dry_run as module
from janus_jax.train.__main__ import main
from janus_jax.train.dry_run import dry_run
from tests.train import runs


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "demo"
    prepare(runs.config(directory), log=lambda *_: None)
    return directory


def forecast(prepared, **changes):
    return dry_run(runs.config(prepared, **changes), show=lambda text: None)


@pytest.fixture(scope="module")
def whole(prepared):
    """The forecast where every device holds all parameters."""
    return forecast(prepared, data__buckets=2, train__accumulation=2)


@pytest.fixture(scope="module")
def halved(prepared):
    return forecast(prepared, objective__name="ar", parallel__data=4, parallel__fsdp=2)


def sizes(forecast):
    """Bytes of matrices and of vectors among the parameters."""
    leaves = jax.tree.leaves(forecast.params)
    return tuple(sum(4 * leaf.size for leaf in leaves if (leaf.ndim > 1) == flag) for flag in (True, False))


def test_it_counts_the_state_of_a_device(whole):
    matrices, vectors = sizes(whole)
    memory = whole.memory
    assert memory.params == memory.ema == memory.gradients == matrices + vectors
    assert memory.moments == 2 * memory.params + 4  # and Adam's count
    assert memory.temporary > memory.gradients
    assert memory.needed == 4 * memory.params + 4 + memory.batch + memory.temporary < memory.available


def test_fsdp_halves_the_state_of_a_device(whole, halved):
    matrices, vectors = sizes(whole)
    assert sizes(halved) == (matrices, vectors)
    assert halved.memory.params == halved.memory.ema == matrices / 2 + vectors
    assert halved.memory.moments == 2 * halved.memory.params + 4


def test_the_plan_and_its_operations_are_those_of_training(prepared, whole):
    config = whole.config
    plan = TrainBatches(Prepared.open(prepared, config), config).buckets
    assert [b.rows for b in whole.buckets] == [b.rows for b in plan]
    assert len(plan) == 2
    each = [2 * step_flops(config, b.rows, b.source_length, b.target_length, b.masked) for b in plan]
    weights = [b.batches for b in plan]
    assert math.isclose(whole.flops, sum(f * w for f, w in zip(each, weights, strict=True)) / sum(weights))
    # AR alone in the first half; then AR in every second step.
    in_turns = dataclasses.replace(
        config.objective,
        name="janus_ctc",
        ar_first=0.5,
        ar_every=2,
        weights=dataclasses.replace(config.objective.weights, kl_ar_ctc=0.0),
    )
    model = dataclasses.replace(config.model, ctc_ratio=2.0)
    changed = dataclasses.replace(
        config, model=model, objective=in_turns, train=dataclasses.replace(config.train, steps=4000)
    )
    shares = {("ar",): 0.5, ("ctc",): 0.25, ("ar", "ctc"): 0.25}
    expected = sum(
        share * w * 2 * step_flops(changed, b.rows, b.source_length, b.target_length, b.masked, terms)
        for terms, share in shares.items()
        for b, w in zip(plan, weights, strict=True)
    )
    assert dataclasses.replace(whole, config=changed).flops == pytest.approx(expected / sum(weights), rel=0.01)
    largest = max(zip(each, plan, strict=True), key=lambda pair: pair[0])[1]
    assert whole.largest.target_length == largest.target_length
    wide = 2 * largest.rows * (largest.source_length + largest.target_length + largest.masked + 2) * 4
    assert whole.memory.batch == wide // 8


def test_the_report_names_every_parameter_and_what_it_is_split_over(halved):
    report = halved.report()
    assert "8 x cpu in 1 process; mesh data 4 x fsdp 2 x tensor 1" in report
    lines = {line.split()[0]: line.split() for line in report.splitlines() if "/" in line.split("  ")[0]}
    for path, leaf in jax.tree_util.tree_leaves_with_path(halved.params):
        name = jax.tree_util.keystr(path, simple=True, separator="/").replace("layers_0", "layers_*")
        assert name in lines
        if name.endswith("fc1/kernel"):
            assert lines[name][1:] == ["1", "16", "x", "32", "fsdp,", "tensor", f"{leaf.size * 2 / 2**20:,.2f}"]
    assert "whole" in lines["encoder/layers_*/fc2/bias"]
    assert "the compiler computes twice" in report


def test_what_cannot_fit_is_refused_with_numbers_and_remedies(prepared, whole, monkeypatch):
    shown = []
    monkeypatch.setattr(module, "available_bytes", lambda: 2**20)
    monkeypatch.setattr(module, "_temporary_bytes", lambda *_: whole.memory.temporary)  # the same step
    message = (
        r"needs \d+\.\d\d GiB of memory on each device, which has 0\.00 GiB.*config\.data\.tokens_per_batch \(now 1024\).*"
        r"config\.train\.accumulation \(now 2\).*config\.model\.remat.*config\.parallel\.fsdp \(now 1\)"
    )
    with pytest.raises(ConfigError, match=message):
        dry_run(runs.config(prepared, data__buckets=2, train__accumulation=2), show=shown.append)
    assert "1.00" in shown[0].splitlines()[-1]  # the report is shown in any case
    unknown = dataclasses.replace(whole, memory=dataclasses.replace(whole.memory, available=None))
    unknown.check()
    assert "a device has" in unknown.report()
    assert "unknown" in unknown.report().splitlines()[-1]


def test_the_command_writes_nothing(prepared, tmp_path, capsys, monkeypatch):
    path = tmp_path / "experiment.py"
    settings = config_lib.to_json(runs.config(prepared, objective__name="ar", parallel__data=4, parallel__fsdp=2))
    path.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict(json.loads('''{settings}'''))\n"
    )
    arguments = [f"--config={path}", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    assert main(arguments) == 0
    assert "mesh data 4 x fsdp 2 x tensor 1" in capsys.readouterr().out
    monkeypatch.setattr(module, "available_bytes", lambda: 2**20)
    monkeypatch.setattr(module, "_temporary_bytes", lambda *_: 2**20)
    assert main(arguments) == 2
    assert "error: a training step needs" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "__pycache__"] == ["experiment.py"]
