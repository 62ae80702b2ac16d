"""Checks of the settings' values: each value against the range at its field, then values that must agree.

`config.py` calls them; it checks types and unknown keys itself, where it reads a configuration.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Iterator
from typing import Any

from janus_jax.objective.terms import OBJECTIVES, own_term, read_families, term
from janus_jax.settings import (
    Config,
    DataConfig,
    DecodeConfig,
    ObjectiveConfig,
    Setting,
    Weight,
    all_settings,
    rows_of_source,
)

# Of a whole number, and of any: arrays on devices hold int32 and float32. A setting's own bound may be higher (a seed's).
LARGEST, LARGEST_FLOAT = 2**31 - 1, 3.4e38


_HEADS = ("heads", "draft_heads")  # values of train.only that name the draft heads


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
    weights = {name: getattr(objective.weights, name) for name in OBJECTIVES[objective.name]}
    return {name: weight for name, weight in weights.items() if weight != 0 and weight != 0.0}


def trained_terms(config: Config) -> frozenset[str]:
    """The loss terms that the parameters of a run have learnt.

    With `train.only`, an AR half without weight counts too, if the objective has one: it is that of `init_from`.
    """
    kept = {"ar"} & set(OBJECTIVES[config.objective.name]) if config.train.only else set()
    return frozenset(objective_terms(config.objective)) | kept


def trains_heads_alone(config: Config) -> bool:
    """Whether a run trains draft heads for a finished model, and nothing else (`train.only=heads`)."""
    return config.train.only in _HEADS and bool(config.objective.weights.heads)


def only_terms(config: Config) -> tuple[str, ...] | None:
    """The terms that the steps of a run compute, where what it trains leaves no others; None: the schedules say which."""
    return ("heads",) if trains_heads_alone(config) else None


def scheduled(config: Config) -> ObjectiveConfig:
    """The objective with `ar_first` written out as schedules of the other terms' weights."""
    objective = config.objective
    if not objective.ar_first:
        return objective
    begin = round(objective.ar_first * config.train.steps)
    full = max(begin + 1, round(1.25 * objective.ar_first * config.train.steps))
    late = {name: ((begin, 0.0), (full, weight)) for name, weight in objective_terms(objective).items() if name != "ar"}
    return dataclasses.replace(objective, ar_first=0.0, weights=dataclasses.replace(objective.weights, **late))


def last_change(objective: ObjectiveConfig) -> int:
    """The step from which on all terms have their last weight."""
    return max(
        (weight[-1][0] for weight in objective_terms(objective).values() if isinstance(weight, tuple)), default=0
    )


def check(config: Config) -> None:
    """Checks each value against its range, then values that must agree.

    Raises:
      ConfigError: a value out of range, or settings that contradict each other.
    """
    check_ranges(config)
    _check_data(config)
    check_model(config)
    _check_optimizer(config)
    _check_training(config)
    _check_only(config)
    _check_objective(config)
    # After the objective, whose rows may need more positions than the longest source.
    _check_lengths(config)
    _check_decode(config.decode)
    _check_parallel(config)


def check_ranges(config: Config) -> None:
    """Checks each value against its range.

    Raises:
      ConfigError: a value out of range.
    """
    for setting in all_settings():
        _check_range(setting, operator.attrgetter(setting.name)(config))


def _check_range(setting: Setting, value: Any) -> None:
    for number in _numbers(value):
        unit = f" ({setting.unit})" if setting.unit else ""
        inside = "" if number is value else f" in {value}"
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"config.{setting.name}: {number} is not a finite number")
        if isinstance(number, int) and abs(number) > LARGEST and setting.range.at_most is None:
            raise ConfigError(f"config.{setting.name}: {_short(number)} must be at most {LARGEST}{unit}")
        if number not in setting.range:
            raise ConfigError(f"config.{setting.name}: {_short(number)}{inside} must be {setting.range}{unit}")
        if abs(number) > LARGEST_FLOAT:
            raise ConfigError(
                f"config.{setting.name}: {number} must be at most {LARGEST_FLOAT:g}, since it is a float32"
            )


def _short(number: float) -> str:
    """A number in a message; Python refuses to write whole numbers of thousands of digits."""
    return (
        f"a number of {number.bit_length()} bits" if abs(number) > 10**40 and isinstance(number, int) else str(number)
    )


def _numbers(value: Any) -> Iterator[float]:
    """The numbers that a range holds for: a number itself, the numbers of a list, the values of a schedule's points."""
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(item[1] if isinstance(item, tuple) else item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _check_only(config: Config) -> None:
    if not config.train.only:
        return
    try:
        re.compile(config.train.only)
    except re.error as error:
        raise ConfigError(f"config.train.only: {config.train.only!r} is no regular expression ({error})") from error


def _check_data(config: Config) -> None:
    d = config.data
    smallest = d.batch_multiple * 8
    if d.tokens_per_batch < smallest:
        raise ConfigError(
            f"config.data.tokens_per_batch: {d.tokens_per_batch} tokens do not hold {d.batch_multiple} pairs "
            f"(data.batch_multiple) of 8 tokens; raise it to {smallest} or lower data.batch_multiple"
        )
    if isinstance(d.buckets, tuple) and (not d.buckets or list(d.buckets) != sorted(set(d.buckets))):
        raise ConfigError(
            f"config.data.buckets: {d.buckets} must be increasing bounds, for example (16, 32), or the number of buckets"
        )
    if not d.prepared:
        raise ConfigError("config.data.prepared: name the folder of the prepared data, for example prepared/mine")
    if "://" in d.prepared:
        raise ConfigError(
            f"config.data.prepared: {d.prepared} is an address, no folder; mount the bucket and name its folder"
        )
    if d.source == "tfds" and not d.tfds_name:
        raise ConfigError("config.data.tfds_name: name the TFDS dataset, for example 'wmt16_translate/ro-en'")
    if 0 < d.max_length_ratio < 1:
        raise ConfigError(
            f"config.data.max_length_ratio: {d.max_length_ratio} drops every pair; set it to 1 or more, or to 0 for no limit"
        )
    if d.source == "text":
        for name in ("mask_sampler", "mask_ratio", "mask_span", "mask_suffix"):
            if getattr(d, name) != getattr(DataConfig(), name):
                raise ConfigError(
                    f"config.data.{name}: {getattr(d, name)}, but data.source text is masked by data.noise_ratio and its "
                    f"neighbours; leave it at {getattr(DataConfig(), name)}"
                )
    if d.source != "text" and d.mask_sampler == "span" and d.mask_span < d.mask_ratio:
        raise ConfigError(
            f"config.data.mask_span: {d.mask_span} is below data.mask_ratio {d.mask_ratio}, so that the spans cannot mask that "
            f"share; raise it to {d.mask_ratio} or more"
        )
    if d.hold_out == 1:
        raise ConfigError(
            "config.data.hold_out: 1 keeps everything out of training; set it to 2 or more, or to 0 for no validation split"
        )
    if d.source == "text" and d.max_source_length < d.max_target_length:
        raise ConfigError(
            f"config.data.max_source_length: {d.max_source_length}, but noise may leave a source as long as its block, "
            f"data.max_target_length {d.max_target_length}; raise it to that"
        )


def check_model(config: Config) -> None:
    """Checks that the settings of the model agree.

    Raises:
      ConfigError: they do not.
    """
    m = config.model
    if m.d_model % m.heads:
        raise ConfigError(
            f"config.model.heads: {m.heads} heads do not divide model.d_model {m.d_model}; make it a multiple of them"
        )
    if m.ar_start == "eos" and m.ar_slot_position == "input":
        raise ConfigError(
            'config.model.ar_slot_position: "input" has no position for the first AR row of model.ar_start "eos"; set it to "target"'
        )
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
    if o.warmup_steps and o.warmup_init > o.learning_rate:
        raise ConfigError(
            f"config.optimizer.warmup_init: {o.warmup_init} exceeds the peak, optimizer.learning_rate {o.learning_rate}; lower it, "
            "for example to 0"
        )
    if o.schedule not in ("polynomial", "cosine"):
        return
    if o.warmup_steps >= config.train.steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps: {o.warmup_steps} leaves no step to decay over; lower it below train.steps {config.train.steps}"
        )
    if o.end_learning_rate > o.learning_rate:
        raise ConfigError(
            f"config.optimizer.end_learning_rate: {o.end_learning_rate} exceeds the peak, optimizer.learning_rate "
            f"{o.learning_rate}; lower it"
        )


def _check_training(config: Config) -> None:
    t = config.train
    if t.keep_every % t.checkpoint_every:
        raise ConfigError(
            f"config.train.keep_every: {t.keep_every} is not a multiple of train.checkpoint_every {t.checkpoint_every}, whose "
            "checkpoints it chooses from; make it one, or set it to 0"
        )
    better = _better(t.best_metric)
    if t.keep_best and better and t.best_mode != better:
        change = "grows" if better == "max" else "falls"
        raise ConfigError(
            f"config.train.best_mode: {t.best_mode}, but {t.best_metric} {change} as a model gets better, and the worst checkpoint "
            f'would be kept; set it to "{better}"'
        )
    if t.patience and (not t.keep_best or t.eval_every % t.checkpoint_every):
        raise ConfigError(
            f"config.train.patience: {t.patience} would lose the best checkpoint; let train.keep_best (now {t.keep_best}) be at "
            f"least 1, and train.eval_every ({t.eval_every}) a multiple of train.checkpoint_every ({t.checkpoint_every})"
        )


def _better(metric: str) -> str:
    """Whether the best value of a metric is its "max" or its "min"; empty: not known here."""
    if metric.startswith("valid/bleu") or metric == "valid/heads/accepted":
        return "max"
    return "min" if metric.startswith(("valid/loss", "valid/nll/")) or metric.endswith(("/unfit", "/dead")) else ""


def _check_parallel(config: Config) -> None:
    axes = dataclasses.asdict(config.parallel)
    if sum(size == -1 for size in axes.values()) > 1:
        raise ConfigError("config.parallel: at most one axis may be -1 (all remaining devices)")
    for axis, size in axes.items():
        if size == 0:
            raise ConfigError(
                f"config.parallel.{axis}: {size} must be a positive number of devices, or -1 for the rest"
            )
    tensor, heads = config.parallel.tensor, config.model.heads
    if tensor > 0 and heads % tensor:
        raise ConfigError(
            f"config.parallel.tensor: {tensor} does not divide model.heads {heads}, which are shared out; lower it or raise them"
        )


def _check_lengths(config: Config) -> None:
    m, d = config.model, config.data
    for side in ("source", "target"):
        longest = getattr(d, f"max_{side}_length")
        if longest > m.max_positions:
            raise ConfigError(
                f"config.data.max_{side}_length: {longest} exceeds model.max_positions {m.max_positions}; lower one or raise the other"
            )
    if "length" in objective_terms(config.objective) and d.max_target_length > m.length_classes:
        raise ConfigError(
            f"config.data.max_target_length: {d.max_target_length} exceeds model.length_classes {m.length_classes}, "
            "whose last class stands for all longer targets; lower one or raise the other"
        )


def _check_objective(config: Config) -> None:
    objective = config.objective
    weights = {f"weights.{name}": weight for name, weight in vars(objective.weights).items()}
    shares = {"glancing": objective.glancing, "nar_correction": objective.nar_correction}
    for name, weight in (weights | shares).items():
        points = weight if isinstance(weight, tuple) else ((0, weight),)
        path = f"config.objective.{name}"
        if not points:
            raise ConfigError(f"{path}: a schedule needs at least one (step, value) point")
        steps = [step for step, _ in points]
        if max(map(abs, steps)) > LARGEST_FLOAT:
            raise ConfigError(f"{path}: the steps of a schedule must be at most {LARGEST_FLOAT:g}")
        if steps != sorted(set(steps)) or steps[0] < 0:
            raise ConfigError(f"{path}: steps {steps} of a schedule must increase from 0 or more")
    terms = objective_terms(objective)
    if config.train.only in _HEADS and "heads" not in terms:
        raise ConfigError(
            f"config.objective.weights.heads: no weight in objective {objective.name!r}, but train.only={config.train.only} trains "
            "nothing else; set it to 1 in an objective with AR (configs/heads.py does)"
        )
    if "heads" in terms and not config.model.draft_heads:
        raise ConfigError(
            "config.model.draft_heads: 0, but objective.weights.heads has a weight; set it, for example to 4, or the weight to 0"
        )
    families = read_families(terms)
    of_source = sorted(family for family in families if term(own_term(family)).kind == "sentence")
    _check_row_settings(objective)
    for family in of_source:
        _check_source_rows(config, family)
    if objective.ar_first:
        _check_ar_first(objective)
    if not families:
        raise ConfigError(
            f"config.objective.weights: no term of objective {config.objective.name!r} that reads decoder rows has a weight "
            f"above 0; give one to {' or '.join(name for name in OBJECTIVES[objective.name] if term(name).families)}"
        )


def settings_without_rows(objective: ObjectiveConfig) -> dict[str, str]:
    """The settings of an objective that have no effect, since it has no such rows; and what it lacks."""
    families = read_families(objective_terms(objective))
    lacking = {}
    if not any(term(own_term(family)).kind == "sentence" for family in families):
        lacking["objective.glancing"] = "has no CTC or DAG rows to show tokens to"
    if "nar" not in families:
        lacking["objective.nar_correction"] = "trains no NAR rows"
    if "heads" not in OBJECTIVES[objective.name]:
        lacking["objective.weights.heads"] = "has no AR rows, which draft heads read"
    return lacking


def _check_row_settings(objective: ObjectiveConfig) -> None:
    for name, lacks in settings_without_rows(objective).items():
        if value := operator.attrgetter(name.removeprefix("objective."))(objective):
            raise ConfigError(f"config.{name}: {value}, but objective {objective.name!r} {lacks}; set it to 0")


def _check_ar_first(objective: ObjectiveConfig) -> None:
    path = "config.objective.ar_first"
    terms = objective_terms(objective)
    if "ar" not in terms:
        raise ConfigError(
            f"{path}: {objective.ar_first}, but objective {objective.name!r} does not train AR; set it to 0"
        )
    later = [name for name, weight in terms.items() if isinstance(weight, tuple) and name != "ar"]
    if later:
        raise ConfigError(
            f"{path}: {objective.ar_first}, but weights.{later[0]} has a schedule; make it a number, or set "
            "ar_first to 0"
        )


def _check_source_rows(config: Config, family: str) -> None:
    """Checks of a family with rows of the source; the setting `model.<family>_ratio` says how many."""
    key = f"{family}_ratio"
    ratio, longest = getattr(config.model, key), config.data.max_source_length
    if not ratio:
        raise ConfigError(
            f"config.model.{key}: 0, but objective {config.objective.name!r} needs {family.upper()} rows; set it, for example "
            "to 2.0"
        )
    rows = rows_of_source(ratio, longest)
    if rows > config.model.max_positions:
        raise ConfigError(
            f"config.model.max_positions: {config.model.max_positions} positions do not hold the {rows} {family.upper()} rows of a "
            f"source of data.max_source_length {longest} tokens (model.{key} {ratio}); raise it or lower one of these"
        )
    if config.data.source == "text":
        raise ConfigError(
            f'config.objective.name: {family.upper()} needs sentence pairs, but data.source is "text"; use janus, ar or cmlm'
        )


def _check_decode(decode: DecodeConfig) -> None:
    if decode.mode == "speculative" and decode.ar.no_repeat_ngram:
        raise ConfigError(
            f"config.decode.ar.no_repeat_ngram: {decode.ar.no_repeat_ngram}, but mode speculative verifies tokens side by side; "
            "set it to 0 or choose mode ar"
        )
    relaxed = decode.speculative.accept_top > 1 and decode.speculative.accept_gap > 0
    if decode.mode == "speculative" and decode.ar.sample and relaxed:
        raise ConfigError(
            f"config.decode.speculative.accept_top: {decode.speculative.accept_top}, but samples are accepted by the model's "
            "distribution alone; set it to 1, or ar.sample to False"
        )
    name, limit = decode.chosen.nbest_limit or ("", decode.nbest)
    if decode.nbest > limit:
        path = f"config.decode.{decode.mode}.{name}"
        reason = f" exceeds {path} {limit}; raise {path} or lower nbest"
        single = f", but mode {decode.mode} gives one output a sentence; set it to 1"
        if decode.mode == "dag":
            search = f"config.decode.dag.search {decode.dag.search!r}"
            single = f", but {search} gives one output a sentence; set that to 'beam', or nbest to 1"
        raise ConfigError(f"config.decode.nbest: {decode.nbest}{reason if name else single}")
