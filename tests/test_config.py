"""Configuration: which settings are accepted, which are refused, and what the errors say."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
from absl import flags

from janus_jax import checkpoint, command_line, describe
from janus_jax import config as config_lib
from janus_jax.checkpoint import CheckpointError
from janus_jax.config import ConfigError, default_config, from_json, objective_terms, resolve, to_json
from janus_jax.settings import all_settings
from tests.docs.pages import ROOT


def changed(**settings):
    """A default ConfigDict with settings changed, "group__key" for config.group.key."""
    config = default_config()
    for name, value in settings.items():
        *groups, key = name.split("__")
        group = config
        for part in groups:
            group = group[part]
        group[key] = value
    return config


def test_defaults_resolve_to_the_dataclasses():
    assert resolve(default_config()) == config_lib.Config()


def test_whole_numbers_become_floats_and_lists_tuples():
    config = resolve(changed(model__dropout=0, data__demo_sizes=[3, 2, 1], data__buckets=[16, 32]))
    assert type(config.model.dropout) is float
    assert config.data.demo_sizes == (3, 2, 1)
    assert config.data.buckets == (16, 32)


def test_unknown_keys_name_the_nearest():
    with pytest.raises((AttributeError, KeyError), match="dropuot"):
        changed(model__dropuot=0.1)
    with pytest.raises(
        ConfigError, match=r"config\.model\.dropuot: unknown setting; did you mean config\.model\.dropout\?"
    ):
        resolve({"model": {"dropuot": 0.1}})
    with pytest.raises(ConfigError, match=r"config\.zzz: unknown setting; known keys: init_from, text, data, model"):
        resolve({"zzz": 1})
    with pytest.raises(ConfigError, match=r"config\.model: expected a group of settings, got 3"):
        resolve({"model": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # types
        ({"train__steps": 10.0}, "config.train.steps: expected int, got 10.0"),
        ({"train__steps": True}, "config.train.steps: expected int, got True"),
        ({"model__dropout": "much"}, "config.model.dropout: expected float, got 'much'"),
        ({"model__scale_embedding": 1}, "config.model.scale_embedding: expected bool, got 1"),
        ({"data__train": 3}, "config.data.train: expected str, got 3"),
        ({"data__demo_sizes": (1, 2)}, "config.data.demo_sizes: expected 3 values, got 2"),
        ({"data__demo_sizes": 1}, "config.data.demo_sizes: expected a list, got 1"),
        ({"data__buckets": "many"}, "config.data.buckets: expected whole number or list of whole numbers, got 'many'"),
        ({"objective__name": "januss"}, "config.objective.name: 'januss' is not one of 'ar', 'cmlm', 'janus', 'ctc', 'janus_ctc', 'janus_all', 'dag', 'janus_dag'; did you mean 'janus'?"),
        ({"objective__encoder_passes": True}, "config.objective.encoder_passes: True is not one of 1, 2"),
        # ranges
        ({"train__steps": 0}, "config.train.steps: 0 must be at least 1 (steps)"),
        ({"model__dropout": 1.0}, "config.model.dropout: 1.0 must be at least 0 and below 1"),
        ({"model__dropout": float("nan")}, "config.model.dropout: nan is not a finite number"),
        ({"optimizer__weight_decay": -0.1}, "config.optimizer.weight_decay: -0.1 must be at least 0"),
        ({"text__vocab_size": 0}, "config.text.vocab_size: 0 must be at least 6 and at most 10000000 (tokens)"),
        ({"text__vocab_size": 2**31 - 1}, "config.text.vocab_size: 2147483647 must be at least 6 and at most 10000000 (tokens)"),
        ({"model__vocab_size": -1}, "config.model.vocab_size: -1 must be at least 0 (tokens)"),
        ({"text__character_coverage": 1.5}, "config.text.character_coverage: 1.5 must be above 0 and at most 1"),
        ({"train__seed": 2**32}, "config.train.seed: 4294967296 must be at least 0 and at most 4294967295"),
        ({"data__demo_sizes": (5, -1, 5)}, "config.data.demo_sizes: -1 in (5, -1, 5) must be at least 0 (sentence pairs)"),
        ({"data__buckets": (0, 16)}, "config.data.buckets: 0 in (0, 16) must be at least 1"),
        ({"data__buckets": (32, 16)}, "config.data.buckets: (32, 16) must be increasing bounds"),
        ({"data__buckets": ()}, "config.data.buckets: () must be increasing bounds"),
        ({"data__prepared": ""}, "config.data.prepared: name the folder"),
        ({"data__mask_span": 1e30}, "config.data.mask_span: 1e+30 must be above 0 and at most 1000 (tokens)"),
        ({"data__noise_span": 1e-30}, "config.data.noise_span: 1e-30 must be at least 0.1 and at most 1000 (words)"),
        ({"data__workers": 10**9}, "config.data.workers: 1000000000 must be at least 1 and at most 256 (threads)"),
        ({"optimizer__warmup_steps": 10**20}, "config.optimizer.warmup_steps: 100000000000000000000 must be at most 2147483647 (steps)"),
        ({"optimizer__warmup_steps": 10**400}, "config.optimizer.warmup_steps: a number of 1329 bits must be at most 2147483647 (steps)"),
        ({"data__demo_sizes": (5, 2**31, 5)}, "config.data.demo_sizes: 2147483648 must be at most 2147483647 (sentence pairs)"),
        ({"train__seed": 10**5000}, "config.train.seed: a number of 16610 bits must be at least 0 and at most 4294967295"),
        ({"optimizer__learning_rate": 1e300}, "config.optimizer.learning_rate: 1e+300 must be at most 3.4e+38, since it is a float32"),
        ({"data__mask_ratio": 0.0}, "config.data.mask_ratio: 0.0 must be above 0 and at most 1"),
        ({"data__source": "text", "data__mask_ratio": 0.3}, "config.data.mask_ratio: 0.3, but data.source text is masked by data.noise_ratio"),
        ({"train__best_metric": "valid/bleu_ar"}, "config.train.best_mode: min, but valid/bleu_ar grows"),
        ({"train__best_metric": "valid/heads/accepted"}, "config.train.best_mode: min, but valid/heads/accepted grows"),
        ({"train__best_mode": "max"}, "config.train.best_mode: max, but valid/loss falls"),
        ({"train__best_metric": "valid/nll/ar", "train__best_mode": "max"}, "config.train.best_mode: max, but valid/nll/ar falls"),
        ({"objective__glancing": 0.5}, "config.objective.glancing: 0.5, but objective 'janus' has no CTC or DAG rows"),
        ({"objective__name": "ar", "objective__nar_correction": 0.3}, "config.objective.nar_correction: 0.3, but objective 'ar' trains no NAR rows"),
        ({"objective__name": "cmlm", "objective__weights__heads": 1.0}, "config.objective.weights.heads: 1.0, but objective 'cmlm' has no AR rows"),
        ({"data__hold_out": 1}, "config.data.hold_out: 1 keeps everything out of training"),
        ({"data__mask_span": 0.5}, "config.data.mask_span: 0.5 is below data.mask_ratio 0.7, so that the spans cannot mask that share; raise it to 0.7"),
        ({"data__max_length_ratio": 0.5}, "config.data.max_length_ratio: 0.5 drops every pair"),
        ({"parallel__fsdp": 0}, "config.parallel.fsdp: 0 must be a positive number of devices, or -1"),
        ({"parallel__fsdp": -2}, "config.parallel.fsdp: -2 must be at least -1 (devices)"),
        ({"data__max_source_length": 2}, "config.data.max_source_length: 2 must be at least 3 (tokens)"),
        ({"decode__ar__top_p": 0.0}, "config.decode.ar.top_p: 0.0 must be above 0 and at most 1"),
        # contradictions
        ({"model__heads": 5}, "config.model.heads: 5 heads do not divide model.d_model 512"),
        ({"data__max_source_length": 2000}, "config.data.max_source_length: 2000 exceeds model.max_positions 1024"),
        ({"data__max_target_length": 300}, "config.data.max_target_length: 300 exceeds model.length_classes 256"),
        ({"data__tokens_per_batch": 32}, "config.data.tokens_per_batch: 32 tokens do not hold 8 pairs"),
        ({"data__source": "tfds"}, "config.data.tfds_name: name the TFDS dataset"),
        ({"optimizer__name": "adam"}, "config.optimizer.weight_decay: adam has none"),
        ({"optimizer__schedule": "cosine", "train__steps": 10_000}, "config.optimizer.warmup_steps: 10000 leaves no step"),
        ({"optimizer__schedule": "cosine", "optimizer__end_learning_rate": 1.0}, "config.optimizer.end_learning_rate: 1.0 exceeds the peak"),
        ({"optimizer__warmup_init": 0.1}, "config.optimizer.warmup_init: 0.1 exceeds the peak"),
        ({"optimizer__power": 0.0}, "config.optimizer.power: 0.0 must be above 0"),
        ({"train__patience": 2, "train__keep_best": 0}, "config.train.patience: 2 would lose the best checkpoint; let train.keep_best (now 0) be"),
        ({"train__patience": 2, "train__checkpoint_every": 1500}, "config.train.patience: 2 would lose the best checkpoint"),
        ({"train__keep_every": 3000}, "config.train.keep_every: 3000 is not a multiple of train.checkpoint_every 2000"),
        ({"model__ar_start": "eos", "model__ar_slot_position": "input"}, "config.model.ar_slot_position: "),
        ({"parallel__tensor": 3}, "config.parallel.tensor: 3 does not divide model.heads 4"),
        ({"parallel__fsdp": -1}, "config.parallel: at most one axis may be -1"),
        # schedules
        ({"objective__weights__ar": ()}, "config.objective.weights.ar: a schedule needs at least one"),
        ({"objective__weights__ar": ((5, 1.0), (5, 2.0))}, "config.objective.weights.ar: steps [5, 5] of a schedule must increase"),
        ({"objective__weights__ar": ((-1, 1.0),)}, "config.objective.weights.ar: steps [-1]"),
        ({"objective__weights__ar": ((0, 1.0), (10**60, 0.0))}, "config.objective.weights.ar: the steps of a schedule must be at most 3.4e+38"),
        ({"objective__weights__ar": ((0, -1.0),)}, "config.objective.weights.ar: -1.0 in ((0, -1.0),) must be at least 0"),
        ({"objective__weights__ar": float("inf")}, "config.objective.weights.ar: inf is not a finite number"),
        ({"objective__weights__ar": ((0.5, 1.0),)}, "config.objective.weights.ar[0][0]: expected int, got 0.5"),
        ({"objective__weights__ar": "high"}, "config.objective.weights.ar: expected number or schedule, got 'high'"),
        ({"objective__name": "ar", "objective__weights__ar": 0.0}, "config.objective.weights: no term of objective 'ar' that reads decoder rows has a weight above 0; give one to ar"),
        ({"objective__nar_correction": ((9, 0.5), (0, 0.0))}, "config.objective.nar_correction: steps [9, 0] of a schedule must increase"),
        ({"objective__nar_correction": ()}, "config.objective.nar_correction: a schedule needs at least one (step, value) point"),
        ({"objective__glancing": ((0, 1.5), (9, 0.0))}, "config.objective.glancing: 1.5 in ((0, 1.5), (9, 0.0)) must be at least 0 and at most 1"),
        ({"objective__ar_first": 0.9}, "config.objective.ar_first: 0.9 must be at least 0 and at most 0.8"),
        ({"objective__ar_first": 0.3, "objective__name": "cmlm"}, "config.objective.ar_first: 0.3, but objective 'cmlm' does not train AR"),
        ({"objective__ar_first": 0.3, "objective__weights__aux": ((0, 1.0),)}, "config.objective.ar_first: 0.3, but weights.aux has a schedule"),
        # CTC
        ({"objective__name": "janus_ctc"}, "config.model.ctc_ratio: 0, but objective 'janus_ctc' needs CTC rows; set it"),
        ({"objective__name": "ctc", "model__ctc_ratio": 5.0}, "config.model.max_positions: 1024 positions do not hold the 1280 CTC rows"),
        ({"objective__name": "ctc", "model__ctc_ratio": 2.0, "data__source": "text"}, "config.objective.name: CTC needs sentence pairs"),
        ({"model__ctc_ratio": -1.0}, "config.model.ctc_ratio: -1.0 must be at least 0 (rows per source token)"),
        ({"decode__mode": "ctc", "decode__ctc__beam": 2, "decode__nbest": 3}, "config.decode.nbest: 3 exceeds config.decode.ctc.beam 2"),
        # DAG
        ({"objective__name": "janus_dag"}, "config.model.dag_ratio: 0, but objective 'janus_dag' needs DAG rows; set it"),
        ({"objective__name": "dag", "model__dag_ratio": 8.0}, "config.model.max_positions: 1024 positions do not hold the 2048 DAG rows"),
        ({"objective__name": "dag", "model__dag_ratio": 2.0, "objective__weights__dag": 0.0}, "config.objective.weights: no term of objective 'dag' that reads decoder rows has a weight above 0; give one to dag"),
        ({"decode__mode": "dag", "decode__dag__search": "beam", "decode__nbest": 6}, "config.decode.nbest: 6 exceeds config.decode.dag.beam 5"),
        ({"decode__mode": "dag", "decode__nbest": 2}, "config.decode.nbest: 2, but config.decode.dag.search 'lookahead' gives one output a sentence; set that to 'beam'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_wrong_settings_are_refused_with_key_and_fix(settings, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        resolve(changed(**settings))


def test_an_integer_beyond_all_floats_is_refused():
    with pytest.raises(ConfigError, match=r"^config\.optimizer\.learning_rate: a number of 1329 bits must be at most"):
        resolve({"optimizer": {"learning_rate": 10**400}})


def test_an_objective_has_its_terms():
    assert objective_terms(resolve(changed(objective__name="ar")).objective) == {"ar": 1.0}
    assert objective_terms(resolve(changed(objective__name="cmlm")).objective) == {"nar": 0.5, "length": 0.1}
    ctc = changed(objective__name="janus_ctc", model__ctc_ratio=2.0)
    assert objective_terms(resolve(ctc).objective) == {"ar": 1.0, "ctc": 1.0, "kl_ar_ctc": 1.0}
    joint = objective_terms(resolve(changed(objective__weights__aux=0.0)).objective)
    assert list(joint) == ["ar", "nar", "length", "kl_ar_nar", "kl_nar_aux", "kl_ar_aux"]


def test_ar_first_is_a_schedule_of_the_other_weights():
    config = resolve(changed(objective__ar_first=1 / 3, objective__weights__ar=3.0, train__steps=1200))
    weights = config_lib.scheduled(config).weights
    assert weights.ar == 3.0
    assert (weights.nar, weights.kl_ar_aux) == (((400, 0.0), (500, 0.5)), ((400, 0.0), (500, 3.0)))
    assert config_lib.scheduled(config_lib.Config()) == config_lib.Config().objective


def test_json_round_trip():
    schedule = ((0, 0.0), (1000, 1.0))
    config = resolve(changed(objective__weights__kl_ar_aux=schedule, data__buckets=(8, 64), model__norm="pre"))
    assert config.objective.weights.kl_ar_aux == schedule
    assert from_json(to_json(config)) == config
    # What an earlier version accepted still loads; values out of range do not.
    older = dataclasses.replace(config, data=dataclasses.replace(config.data, source="text", mask_ratio=0.3))
    with pytest.raises(ConfigError, match=r"config\.data\.mask_ratio: 0\.3, but data\.source text is masked by"):
        resolve(dataclasses.asdict(older))
    assert from_json(to_json(older)) == older
    with pytest.raises(ConfigError, match=r"config\.train\.steps: 0 must be at least 1"):
        from_json(to_json(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=0))))


def test_hash_changes_with_any_setting():
    config = config_lib.Config()
    hashes = {config_lib.config_hash(config)}
    assert hashes == {config_lib.config_hash(resolve(default_config()))}
    for field in dataclasses.fields(config):
        group = getattr(config, field.name)
        if not dataclasses.is_dataclass(group):
            hashes.add(config_lib.config_hash(dataclasses.replace(config, **{field.name: f"{group}x"})))
            continue
        for inner in dataclasses.fields(group):
            value = getattr(group, inner.name)
            if dataclasses.is_dataclass(value):
                continue
            other = dataclasses.replace(group, **{inner.name: f"{value}x"})
            hashes.add(config_lib.config_hash(dataclasses.replace(config, **{field.name: other})))
    assert len(hashes) == 1 + sum(name.count(".") <= 1 for name, _ in config_lib.leaves(config))


def test_leaves_are_dotted_names():
    names = dict(config_lib.leaves(config_lib.Config()))
    assert names["objective.weights.kl_ar_aux"] == 3.0
    assert names["model.d_model"] == 512


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(
        "from janus_jax.config import default_config, preset\n"
        "def get_config(arg='small'):\n"
        "  return preset(arg, {'small': default_config, 'broken': lambda: default_config().nothing, 'late': late})\n"
        "def late():\n"
        "  config = default_config()\n"
        "  config.objective.weights.kl_ar_nar = ((5, 0.0), (9, 1.0))\n"
        "  config.model.dropout = 0\n"
        "  config.data.buckets = [16, 32]\n"
        "  return config\n"
    )
    return path


def test_overrides_have_the_type_of_the_setting_and_not_of_the_files_value(file):
    def load(*argv):
        return command_line.load_config(f"{file}:late", argv)

    assert load().objective.weights.kl_ar_nar == ((5, 0.0), (9, 1.0))
    assert load("--config.objective.weights.kl_ar_nar=1.5").objective.weights.kl_ar_nar == 1.5
    assert load("--config.objective.weights.kl_ar_nar", "2").objective.weights.kl_ar_nar == 2.0
    assert load("--config.objective.weights.nar=((0, 1), (9, 2))").objective.weights.nar == ((0, 1.0), (9, 2.0))
    assert load("--config.model.dropout=0.25").model.dropout == 0.25
    assert load("--config.data.buckets=3").data.buckets == 3
    assert load("--config.text.model=(my)/model").text.model == "(my)/model"


def test_command_line_overrides(file):
    config = command_line.load_config(
        f"{file}:small",
        [
            "--config.objective.weights.ar=((0, 1.0), (9, 0))", "--config.data.buckets=(16, 32)", "--config.train.steps=7",
            "--config.data.demo_sizes=(5, 4, 3)", "--noconfig.text.byte_fallback", "--config.optimizer.learning_rate=1",
        ],
    )  # fmt: skip
    assert config.objective.weights.ar == ((0, 1.0), (9, 0.0))
    assert config.data.buckets == (16, 32)
    assert config.data.demo_sizes == (5, 4, 3)
    assert (config.train.steps, config.text.byte_fallback, config.optimizer.learning_rate) == (7, False, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config={file}:smal"], "unknown preset 'smal'; did you mean 'small'? Choose from small, broken, late"),
        (["--config={file}:"], "name a preset, --config=FILE.py:PRESET; choose from small, broken, late"),
        (["--config={file}:other"], "unknown preset 'other'; choose from small, broken"),
        (["--config={file}:broken"], "nothing"),
        (["--config=absent.py"], "--config=absent.py: cannot be read; name an experiment file"),
        (["--config=configs/demo_den.py"], "--config=configs/demo_den.py: cannot be read; name an experiment file, FILE.py[:preset]; did you mean configs/demo_deen.py?"),
        (["--config={file}", "--data.seed=2"], "--data.seed: unknown flag; did you mean --config.data.seed?"),
        (["--config={file}", "--confg.data.seed=2"], "--confg.data.seed: unknown flag; did you mean --config.data.seed?"),
        (["--config={file}", "--config.data.bucket=2"], "--config.data.bucket: unknown setting; did you mean --config.data.buckets?"),
        (["--config={file}", "--config.data.bucket=(2, 3)"], "--config.data.bucket: unknown setting; did you mean --config.data.buckets?"),
        (["--config={file}", "--config.zzz=2"], "--config.zzz: unknown setting; --help_settings lists all"),
        (["--config={file}", "--config.seed=2"], "did you mean --config.data.seed or --config.train.seed or --config.decode.ar.seed?"),
        (["--config={file}", "--config.train.steps=many"], "--config.train.steps=many: not a whole number"),
        (["--config={file}", "--config.train.steps=1.5"], "--config.train.steps=1.5: not a whole number"),
        (["--config={file}", "--config.model.dropout=(1, 2)"], "--config.model.dropout=(1, 2): not a number"),
        (["--config={file}", "--config.objective.weights.ar=high"], "--config.objective.weights.ar=high: not a number or a list, for example"),
        (["--config={file}", "--config.train.steps"], "--config.train.steps: has no value"),
        (["--config={file}", "--config.train.steps=99999999999999999999"], "config.train.steps: 99999999999999999999 must be at most 2147483647"),
        (["--config={file}", "--config.data.buckets=()"], "config.data.buckets: () must be increasing bounds"),
        (["--config={file}", "--config.data.buckets=(2,"], "--config.data.buckets=(2,: not a number or a list, for example (16, 32)"),
        (["--config={file}", "--directory="], "--directory must be set"),
        (["--config="], "--config=: cannot be read; name an experiment file"),
        (["--help_settings=objectiv"], "--help_settings=objectiv: no such group of settings; did you mean objective?"),
        (["--config={file}", "--config.train.steps=0"], "config.train.steps: 0 must be at least 1"),
        (["--config={file}", "surplus"], "unexpected argument 'surplus'"),
        (["--config={file}", "--surplus"], "surplus"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line_are_one_line_with_status_2(file, capsys, arguments, message):
    argv = [argument.format(file=file) for argument in arguments]

    def define(values):
        flags.DEFINE_string("directory", None, "", flag_values=values)

    if "--directory=" not in argv:
        argv.append("--directory=x")
    assert command_line.run(argv, module="m", doc="d", define=define, body=lambda *_: pytest.fail("ran")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return {'train': {'steps': 3}}",
            r"must return the ConfigDict of .*default_config\(\), changed; it returned dict",
        ),
        ("pass", "it returned NoneType"),
        ("raise RuntimeError('first\\nsecond')", "file.py, line 2: RuntimeError: first second"),
        ("return int('x')", "file.py, line 2: .*: invalid literal"),
        (
            "from janus_jax.config import default_config; default_config().model.dropuot = 1",
            r"file.py, line 2: AttributeError: unknown setting dropuot; did you mean dropout\?$",
        ),
        ("return (", "file.py, line 2: SyntaxError: "),
        ("raise SystemExit(0)", "file.py, line 2: SystemExit: 0"),
        ("None.x", "file.py, line 2: AttributeError: "),
        ("import nothing_at_all", "file.py, line 2: ModuleNotFoundError: No module named 'nothing_at_all'"),
    ],
)
def test_a_broken_experiment_file_is_named_with_its_line(tmp_path, body, message, monkeypatch):
    (tmp_path / "file.py").write_text(f"def get_config():\n  {body}\n")
    with pytest.raises(ConfigError, match=f"^--config={tmp_path}/.*{message}"):
        command_line.load_config(tmp_path / "file.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^--config=.*{message}"):
        command_line.load_config("file.py")


def test_experiment_files_of_the_package_are_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = command_line.load_config(f"{ROOT}/configs/demo_deen.py:masks")
    assert command_line.load_config("configs/demo_deen.py:masks") == shipped
    assert command_line.load_config("./configs/demo_deen.py:masks", ["--config.train.seed=3"]).train.seed == 3
    for absent in ("configs/absent.py", "configs/../setup.py", "demo_deen.py"):
        with pytest.raises(ConfigError, match="cannot be read"):
            command_line.load_config(absent)
    path = list(sys.path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo_deen.py").write_text(
        "from configs import steps_of_mine\nget_config = steps_of_mine.get_config"
    )
    (tmp_path / "configs/steps_of_mine.py").write_text(
        "from configs import mine\n\n"
        "def get_config():\n  config = mine.get_config()\n  config.train.steps = 4321\n  return config"
    )
    # The file of the current directory comes first, and imports from there and from the package.
    assert command_line.load_config("configs/demo_deen.py").train.steps == 4321
    assert command_line.load_config("configs/mine.py").train.steps != 4321
    # And they are read again for each experiment, as a notebook needs it.
    steps = tmp_path / "configs/steps_of_mine.py"
    steps.write_text(steps.read_text().replace("4321", "654321"))
    assert command_line.load_config("configs/demo_deen.py").train.steps == 654321
    assert sys.path == path


def test_a_home_directory_behind_an_equals_sign_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = command_line.load_config("configs/demo_deen.py", ["--config.data.prepared=~/p", "--config.text.model=~x"])
    assert (config.data.prepared, config.text.model) == (f"{tmp_path}/p", "~x")
    parser = command_line.ArgumentParser()
    parser.add_argument("--output")
    assert parser.parse_args(["--output=~/out"]).output == f"{tmp_path}/out"
    with pytest.raises(CheckpointError, match=f"{tmp_path}/runs: no such directory"):
        checkpoint.find("~/runs")
    with pytest.raises(CheckpointError, match="~nobody-here/runs: no such directory"):
        checkpoint.find("~nobody-here/runs")


def test_an_experiment_file_inherits_nothing_from_the_one_before(file, tmp_path):
    command_line.load_config(file)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.py.*get_config"):
        command_line.load_config(tmp_path / "empty.py")


def test_help_lists_the_flags_and_help_settings_every_setting(capsys):
    def run(flag):
        arguments = {"module": "m", "doc": "What m does.", "define": lambda _: None, "body": pytest.fail}
        assert command_line.run([flag], **arguments) == 0
        return capsys.readouterr().out

    assert re.search("What m does.*--config.*--help_settings=objective", run("--help"), re.DOTALL)
    listed = re.findall(r"^  --config\.([\w.]+)=", run("--help_settings"), re.MULTILINE)
    assert sorted(listed) == sorted(name for name, _ in config_lib.leaves(config_lib.Config()))
    group = re.findall(r"^  --config\.([\w.]+)=", run("--help_settings=objective"), re.MULTILINE)
    assert group == [name for name in listed if name.startswith("objective.")]
    assert run("--help_settings=config.objective") == run("--help_settings=objective")
    assert re.findall(r"^  --config\.([\w.]+)=", run("--help_settings=train.steps"), re.MULTILINE) == ["train.steps"]


def test_a_range_holds_for_each_number_of_a_list_and_each_value_of_a_schedule():
    schedule = ((0, 0.0), (2**40, 1.0))
    resolved = resolve(changed(objective__name="ctc", model__ctc_ratio=2.0, objective__glancing=schedule))
    assert resolved.objective.glancing == schedule


@pytest.mark.parametrize("setting", all_settings(), ids=lambda setting: setting.name)
def test_a_setting_describes_itself_and_its_default_is_in_range(setting):
    assert setting.help.endswith((".", ")."))
    text = describe.type_name(setting.type)
    if "number" in text:
        assert str(setting.range), "a number needs a range"
    else:
        assert not str(setting.range)
        assert not setting.unit
    if isinstance(setting.default, (int, float)):
        assert setting.default in setting.range


def test_the_page_of_settings_is_up_to_date():
    page = Path(__file__).resolve().parents[1] / "docs/configuration.md"
    assert page.read_text(encoding="utf-8") == describe.page(), "python -m janus_jax.describe > docs/configuration.md"
    for name, _ in config_lib.leaves(config_lib.Config()):
        assert describe.page().count(f"| `config.{name}` |") == 1
