"""Every check of a setting's value, on its own and beside the others.

`config.py` calls them; types and unknown keys are checked there, where a configuration is read.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from janus_jax.settings import Config, DecodeConfig, ObjectiveConfig, Weight


class ConfigError(ValueError):
    """A setting is wrong; the message names the key and the fix."""


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    for f in dataclasses.fields(config):
        inner = getattr(config, f.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", inner


def objective_terms(objective: ObjectiveConfig) -> dict[str, Weight]:
    """The loss terms of an objective with their weights; a term whose weight is constantly zero is left out."""
    names = {
        "ar": ("ar",),
        "cmlm": ("nar", "length"),
        "janus": ("ar", "nar", "aux", "length", "kl_ar_nar", "kl_nar_aux", "kl_ar_aux"),
        "ctc": ("ctc",),
        "janus_ctc": ("ar", "ctc", "kl_ar_ctc"),
    }
    weights = {name: getattr(objective.weights, name) for name in names[objective.name]}
    return {name: weight for name, weight in weights.items() if weight != 0 and weight != 0.0}


def scheduled(config: Config) -> ObjectiveConfig:
    """The objective with `ar_first` written out as schedules of the other terms' weights."""
    objective = config.objective
    if not objective.ar_first:
        return objective
    begin = round(objective.ar_first * config.train.steps)
    full = max(begin + 1, round(1.25 * objective.ar_first * config.train.steps))
    late = {name: ((begin, 0.0), (full, weight)) for name, weight in objective_terms(objective).items() if name != "ar"}
    return dataclasses.replace(objective, ar_first=0.0, weights=dataclasses.replace(objective.weights, **late))


def check(config: Config) -> None:
    """Ranges, then settings that must agree.

    Raises:
      ConfigError: a value out of range, or settings that contradict each other.
    """
    for name, value in leaves(config):
        path, name = f"config.{name}", name.rsplit(".", 1)[-1]
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}: {value} is not a finite number")
        if name in _POSITIVE and not (isinstance(value, tuple) or value > 0):
            raise ConfigError(f"{path}: {value} must be greater than 0")
        if name in _NOT_NEGATIVE and value < 0:
            raise ConfigError(f"{path}: {value} must not be negative")
        if name in _SHARE and not 0 <= value < 1:
            raise ConfigError(f"{path}: {value} must lie in [0, 1)")
    _check_ranges(config, "config")
    _check_data(config)
    _check_lengths(config)
    _check_model(config)
    _check_optimizer(config)
    _check_training(config)
    _check_objective(config)
    _check_decode(config.decode)
    _check_parallel(config)


def _check_data(config: Config) -> None:
    d = config.data
    if d.tokens_per_batch < d.batch_multiple * 8:
        raise ConfigError(
            f"config.data.tokens_per_batch: {d.tokens_per_batch} cannot hold {d.batch_multiple} rows (batch_multiple)"
        )
    if isinstance(d.buckets, tuple) and list(d.buckets) != sorted(set(d.buckets)):
        raise ConfigError(f"config.data.buckets: {d.buckets} must be strictly increasing")
    if d.source == "tfds" and not d.tfds_name:
        raise ConfigError("config.data.tfds_name: name the TFDS dataset, for example 'wmt16_translate/ro-en'")
    if not 0 < d.mask_ratio <= 1:
        raise ConfigError(f"config.data.mask_ratio: {d.mask_ratio} must lie in (0, 1]")
    if not 0 < d.noise_ratio < 1:
        raise ConfigError(f"config.data.noise_ratio: {d.noise_ratio} must lie in (0, 1)")
    for key in ("noise_hidden", "rotate", "permute_sentences"):
        if not 0 <= getattr(d, key) <= 1:
            raise ConfigError(f"config.data.{key}: {getattr(d, key)} must lie in [0, 1]")
    if d.source == "text" and d.max_source_length < d.max_target_length:
        raise ConfigError(
            f"config.data.max_source_length: {d.max_source_length}; noise may leave a source as long as its block, "
            f"data.max_target_length {d.max_target_length}: set it to that"
        )


def _check_model(config: Config) -> None:
    m = config.model
    if m.d_model % m.heads:
        raise ConfigError(f"config.model.heads: {m.heads} heads do not divide d_model {m.d_model}")
    if m.ar_start == "eos" and m.ar_slot_position == "input":
        raise ConfigError('config.model.ar_slot_position: "input" has no position for the first slot of ar_start "eos"')
    if m.attention == "fused" and m.attention_dropout:
        raise ConfigError(
            f"config.model.attention: fused attention has no dropout; set model.attention_dropout ({m.attention_dropout}) to 0"
        )


def _check_optimizer(config: Config) -> None:
    o = config.optimizer
    if o.name == "adam" and o.weight_decay:
        raise ConfigError(
            "config.optimizer.weight_decay: adam has none; set it to 0, or name adamw (decoupled weight decay)"
        )
    if o.schedule == "polynomial" and o.power <= 0:
        raise ConfigError(f"config.optimizer.power: {o.power} must be greater than 0")
    if o.schedule in ("polynomial", "cosine") and o.warmup_steps >= config.train.steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps: {o.warmup_steps} leaves no step to decay over; lower it below train.steps {config.train.steps}"
        )


def _check_training(config: Config) -> None:
    t = config.train
    if t.keep_every % t.checkpoint_every:
        raise ConfigError(
            f"config.train.keep_every: {t.keep_every} is not a multiple of train.checkpoint_every {t.checkpoint_every}, of whose "
            "checkpoints it keeps some"
        )


def _check_parallel(config: Config) -> None:
    axes = dataclasses.asdict(config.parallel)
    if sum(size == -1 for size in axes.values()) > 1:
        raise ConfigError("config.parallel: at most one axis may be -1 (all remaining devices)")
    for axis, size in axes.items():
        if size == 0 or size < -1:
            raise ConfigError(f"config.parallel.{axis}: {size} must be a positive number of devices or -1")
    tensor, heads = config.parallel.tensor, config.model.heads
    if tensor > 0 and heads % tensor:
        raise ConfigError(f"config.parallel.tensor: {tensor} does not divide model.heads {heads}")


def _check_lengths(config: Config) -> None:
    m, d = config.model, config.data
    for side in ("source", "target"):
        longest = getattr(d, f"max_{side}_length")
        if longest > m.max_positions:
            raise ConfigError(
                f"config.data.max_{side}_length: {longest} exceeds model.max_positions {m.max_positions}; lower one or raise the other"
            )
        if longest < 3:
            raise ConfigError(
                f"config.data.max_{side}_length: {longest} leaves no room for a token between bos and eos"
            )
    if "length" in objective_terms(config.objective) and d.max_target_length > m.length_classes:
        raise ConfigError(
            f"config.data.max_target_length: {d.max_target_length} exceeds model.length_classes {m.length_classes}, "
            "whose last class stands for all longer targets; lower one or raise the other"
        )


def _check_objective(config: Config) -> None:
    objective = config.objective
    weights = {f"weights.{name}": weight for name, weight in vars(objective.weights).items()}
    for name, weight in (weights | {"glancing": objective.glancing}).items():
        points = weight if isinstance(weight, tuple) else ((0, weight),)
        path = f"config.objective.{name}"
        if not points:
            raise ConfigError(f"{path}: a schedule needs at least one (step, value) point")
        steps = [step for step, _ in points]
        if steps != sorted(set(steps)) or steps[0] < 0:
            raise ConfigError(f"{path}: steps {steps} of a schedule must increase from 0 or more")
        if any(not math.isfinite(value) or value < 0 for _, value in points):
            raise ConfigError(f"{path}: weights must be finite and not negative")
    if isinstance(objective.glancing, tuple):
        most = max(value for _, value in objective.glancing)
    else:
        most = objective.glancing
    if most > 1:
        raise ConfigError(
            f"config.objective.glancing: {most} is more than all of the wrong rows; keep it within [0, 1]"
        )
    terms = set(objective_terms(objective))
    if terms & {"ctc", "kl_ar_ctc"}:
        _check_ctc(config)
    if objective.ar_first:
        _check_ar_first(objective)
    if not terms - {"length"}:
        raise ConfigError(
            f"config.objective.weights: no term of objective {config.objective.name!r} that reads decoder rows has a weight "
            "above 0; give one to ar, nar, aux or ctc"
        )


def _check_ar_first(objective: ObjectiveConfig) -> None:
    path = "config.objective.ar_first"
    if not 0 <= objective.ar_first <= 0.8:
        raise ConfigError(
            f"{path}: {objective.ar_first} must lie in [0, 0.8], so that the other weights can rise after it"
        )
    terms = objective_terms(objective)
    if "ar" not in terms:
        raise ConfigError(
            f"{path}: {objective.ar_first}, but objective {objective.name!r} does not train AR; set it to 0"
        )
    given = [name for name, weight in terms.items() if isinstance(weight, tuple) and name != "ar"]
    if given:
        raise ConfigError(
            f"{path}: {objective.ar_first}, but weights.{given[0]} has a schedule of its own; make it a number, or set "
            "ar_first to 0"
        )


def _check_ctc(config: Config) -> None:
    ratio = config.model.ctc_ratio
    if not ratio:
        raise ConfigError(
            f"config.model.ctc_ratio: 0, but objective {config.objective.name!r} needs CTC rows; set it, for example to 2.0"
        )
    rows = config.model.ctc_slots(config.data.max_source_length)
    if rows > config.model.max_positions:
        raise ConfigError(
            f"config.model.max_positions: {config.model.max_positions} positions do not hold the {rows} CTC rows of a source of "
            f"data.max_source_length {config.data.max_source_length} tokens (model.ctc_ratio {ratio}); raise it or lower one of these"
        )
    if config.data.source == "text":
        raise ConfigError(
            'config.objective.name: CTC needs sentence pairs, but data.source is "text"; use janus, ar or cmlm'
        )


def _check_decode(decode: DecodeConfig) -> None:
    if decode.mode == "speculative" and (decode.ar.no_repeat_ngram or decode.ar.sample):
        key = "sample" if decode.ar.sample else "no_repeat_ngram"
        raise ConfigError(
            f"config.decode.ar.{key}: {getattr(decode.ar, key)}, but mode speculative gives the output of greedy search, which "
            f"cannot do this; set it to {type(getattr(decode.ar, key))()} or choose mode ar"
        )
    name, limit = decode.chosen.nbest_limit or ("", decode.nbest)
    if decode.nbest > limit:
        fix = f"exceeds config.decode.{decode.mode}.{name} {limit}; raise that one"
        one = f"mode {decode.mode} finds one output a sentence; set it to 1"
        raise ConfigError(
            f"config.decode.nbest: {decode.nbest} {fix}" if name else f"config.decode.nbest: {decode.nbest}, but {one}"
        )


def _check_ranges(group: Any, path: str) -> None:
    for f in dataclasses.fields(group):
        value, name = getattr(group, f.name), f"{path}.{f.name}"
        if dataclasses.is_dataclass(value):
            _check_ranges(value, name)
        elif "range" in f.metadata and isinstance(value, (int, float)) and value not in f.metadata["range"]:
            raise ConfigError(f"{name}: {value} must be {f.metadata['range']}")


_POSITIVE = frozenset(
    "d_model ffn_dim heads encoder_layers decoder_layers max_positions length_classes vocab_multiple tokens_per_batch "
    "batch_multiple buckets workers mask_span noise_span learning_rate eps steps accumulation log_every eval_every "
    "checkpoint_every keep_last train_lines character_coverage".split()
)
_NOT_NEGATIVE = frozenset(
    "ctc_ratio vocab_size seed hold_out max_length_ratio projection_rows warmup_steps warmup_init end_learning_rate weight_decay clip_norm "
    "eval_sentences keep_best keep_every max_bad_steps spike".split()
)
_SHARE = frozenset(
    "ctc_floor mask_suffix dropout attention_dropout activation_dropout label_smoothing ema_decay b1 b2".split()
)
