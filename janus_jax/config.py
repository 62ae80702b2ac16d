"""Configuration: an ml_collections ConfigDict on the outside, the frozen dataclasses of `settings.py` on the inside.

`default_config()` gives a ConfigDict with every key at its default, for a file in `configs/` to change; `resolve()`
turns it into a checked `Config`. Every check of a setting is here, so that bad input fails before any long work
starts, with an error that names the key and the fix.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

import ml_collections

from janus_jax.settings import (
    Config,
    DataConfig,
    DecodeConfig,
    LossWeights,
    MaskSampler,
    Mode,
    ModelConfig,
    Objective,
    ObjectiveConfig,
    Optimizer,
    OptimizerConfig,
    ParallelConfig,
    Remat,
    Schedule,
    Source,
    StopGradients,
    TextConfig,
    TrainConfig,
    Weight,
)

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "DecodeConfig",
    "LossWeights",
    "MaskSampler",
    "Mode",
    "ModelConfig",
    "Objective",
    "ObjectiveConfig",
    "Optimizer",
    "OptimizerConfig",
    "ParallelConfig",
    "Remat",
    "Schedule",
    "Source",
    "StopGradients",
    "TextConfig",
    "TrainConfig",
    "Weight",
    "config_hash",
    "default_config",
    "from_json",
    "leaves",
    "objective_terms",
    "preset",
    "resolve",
    "to_json",
]


class ConfigError(ValueError):
    """A setting is wrong; the message names the key and the fix."""


def default_config() -> ml_collections.ConfigDict:
    """A ConfigDict with every key at its default; assigning an unknown key to it raises.

    Types are left to `resolve`: a weight may be a number or a schedule, buckets a number or bounds.
    """
    return ml_collections.ConfigDict(_plain(Config()), type_safe=False, convert_dict=True).lock()


def preset(name: str, makers: dict[str, Callable[[], ml_collections.ConfigDict]]) -> ml_collections.ConfigDict:
    """The ConfigDict of a preset of an experiment file (`--config=FILE.py:name`), one of the keys of `makers`.

    Raises:
      ConfigError: no such preset; the message names those that exist.
    """
    if name not in makers:
        raise ConfigError(f"unknown preset {name!r}; choose from {', '.join(makers)}")
    return makers[name]()


def resolve(config: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Checks a ConfigDict (or nested dict) and freezes it.

    Raises:
      ConfigError: an unknown key, a wrong type, a value out of range or settings that contradict each other.
    """
    raw = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    resolved = _build(Config, raw, "config")
    _check(resolved)
    return resolved


def to_json(config: Config) -> str:
    """The config as JSON text, keys sorted; `from_json` reads it back."""
    return json.dumps(_plain(config), indent=2, sort_keys=True)


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote."""
    return resolve(json.loads(text))


def config_hash(config: Config) -> str:
    """Twelve hex digits that change with any setting."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


def leaves(config: Any, prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting."""
    for f in dataclasses.fields(config):
        inner = getattr(config, f.name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", inner


def objective_terms(objective: ObjectiveConfig) -> dict[str, Weight]:
    """The loss terms of an objective with their weights; a term whose weight is constantly zero is left out."""
    names = {"ar": ("ar",), "cmlm": ("nar", "length"), "janus": tuple(f.name for f in dataclasses.fields(LossWeights))}
    weights = {name: getattr(objective.weights, name) for name in names[objective.name]}
    return {name: weight for name, weight in weights.items() if weight != 0 and weight != 0.0}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def _build(cls: type, raw: Any, path: str) -> Any:
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a group of settings, got {raw!r}")
    hints = typing.get_type_hints(cls)
    for key in raw:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {path}.{near[0]}?" if near else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"{path}.{key}: unknown setting; {hint}")
    return cls(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in raw.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as type `hint`, or ConfigError. Lists become tuples (JSON has no tuples), whole floats never become ints."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(repr, args))}{hint_text}")
        return value
    if origin is types.UnionType or origin is typing.Union:
        for option in args:
            try:
                return _convert(option, value, path)
            except ConfigError:
                continue
        raise ConfigError(f"{path}: {value!r} is neither a number nor a list of the expected form ({hint})")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: expected a list, got {value!r}")
        if args[-1] is not Ellipsis and len(args) != len(value):
            raise ConfigError(f"{path}: expected {len(args)} values, got {len(value)}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value


def _check(config: Config) -> None:
    """Ranges, then settings that must agree."""
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
    _check_lengths(config)
    m, d, o = config.model, config.data, config.optimizer
    if m.d_model % m.heads:
        raise ConfigError(f"config.model.heads: {m.heads} heads do not divide d_model {m.d_model}")
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
    if m.ar_start == "eos" and m.ar_slot_position == "input":
        raise ConfigError('config.model.ar_slot_position: "input" has no position for the first slot of ar_start "eos"')
    _check_objective(config)
    _check_decode(config.decode)
    axes = dataclasses.asdict(config.parallel)
    if sum(size == -1 for size in axes.values()) > 1:
        raise ConfigError("config.parallel: at most one axis may be -1 (all remaining devices)")
    for axis, size in axes.items():
        if size == 0 or size < -1:
            raise ConfigError(f"config.parallel.{axis}: {size} must be a positive number of devices or -1")
    if config.parallel.tensor > 0 and m.heads % config.parallel.tensor:
        raise ConfigError(f"config.parallel.tensor: {config.parallel.tensor} does not divide model.heads {m.heads}")


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
    if config.objective.name != "ar" and d.max_target_length > m.length_classes:
        raise ConfigError(
            f"config.data.max_target_length: {d.max_target_length} exceeds model.length_classes {m.length_classes}, "
            "whose last class stands for all longer targets; lower one or raise the other"
        )


def _check_objective(config: Config) -> None:
    for name, weight in _plain(config.objective.weights).items():
        points = weight if isinstance(weight, tuple) else ((0, weight),)
        path = f"config.objective.weights.{name}"
        if not points:
            raise ConfigError(f"{path}: a schedule needs at least one (step, value) point")
        steps = [step for step, _ in points]
        if steps != sorted(set(steps)) or steps[0] < 0:
            raise ConfigError(f"{path}: steps {steps} of a schedule must increase from 0 or more")
        if any(not math.isfinite(value) or value < 0 for _, value in points):
            raise ConfigError(f"{path}: weights must be finite and not negative")
    if not set(objective_terms(config.objective)) - {"length"}:
        raise ConfigError(
            f"config.objective.weights: no term of objective {config.objective.name!r} that reads decoder rows has a weight "
            "above 0; give one to ar, nar or aux"
        )


def _check_decode(decode: DecodeConfig) -> None:
    if not 0.0 < decode.top_p <= 1.0:
        raise ConfigError(f"config.decode.top_p: {decode.top_p} must be above 0 and at most 1")
    if decode.mode == "speculative":
        if decode.nbest > 1:
            raise ConfigError(
                f"config.decode.nbest: {decode.nbest}, but speculative search finds one output; set it to 1"
            )
        if decode.no_repeat_ngram or decode.sample:
            raise ConfigError(
                "config.decode: speculative search equals greedy search; unset sample and no_repeat_ngram"
            )
    elif not (decode.mode == "ar" and decode.sample):
        name = "beam" if decode.mode == "ar" else "length_beam"
        if decode.nbest > getattr(decode, name):
            raise ConfigError(
                f"config.decode.nbest: {decode.nbest} exceeds {name} {getattr(decode, name)}; raise {name}"
            )


_POSITIVE = frozenset(
    "d_model ffn_dim heads encoder_layers decoder_layers max_positions length_classes vocab_multiple tokens_per_batch "
    "batch_multiple buckets workers mask_span learning_rate eps steps accumulation log_every eval_every "
    "checkpoint_every keep_last nbest beam temperature passes length_beam draft_passes draft_lengths accept_top batch_tokens train_lines character_coverage".split()
)
_NOT_NEGATIVE = frozenset(
    "vocab_size seed max_length_ratio projection_chunk warmup_steps warmup_init end_learning_rate weight_decay clip_norm "
    "eval_sentences keep_best max_bad_steps lenpen max_length_a max_length_b min_length no_repeat_ngram top_k accept_gap".split()
)
_SHARE = frozenset("mask_suffix dropout attention_dropout activation_dropout label_smoothing ema_decay b1 b2".split())
