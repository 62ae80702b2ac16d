"""Configuration: an ml_collections ConfigDict on the outside, the frozen dataclasses of `settings.py` on the inside.

`default_config()` gives a ConfigDict with every key at its default, for a file in `configs/` to change; `resolve()`
turns it into a checked `Config`. Wrong settings fail before any long work starts, with an error that names the key and
the fix (see also `checks.py`).
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

import ml_collections

from janus_jax.checks import (
    ConfigError,
    check,
    check_model,
    check_ranges,
    last_change,
    leaves,
    objective_terms,
    only_terms,
    scheduled,
    settings_without_rows,
    trained_terms,
    trains_heads_alone,
)
from janus_jax.describe import type_name
from janus_jax.first_version import migrate_first_version
from janus_jax.settings import (
    ArDecode,
    Config,
    CtcDecode,
    DagDecode,
    DataConfig,
    DecodeConfig,
    InfillDecode,
    LossWeights,
    MaskSampler,
    Mode,
    ModelConfig,
    NarDecode,
    Objective,
    ObjectiveConfig,
    Optimizer,
    OptimizerConfig,
    ParallelConfig,
    Remat,
    Schedule,
    Source,
    SpeculativeDecode,
    StopGradients,
    TextConfig,
    TrainConfig,
    Weight,
)

__all__ = [
    "ArDecode",
    "Config",
    "ConfigError",
    "CtcDecode",
    "DagDecode",
    "DataConfig",
    "DecodeConfig",
    "InfillDecode",
    "LossWeights",
    "MaskSampler",
    "Mode",
    "ModelConfig",
    "NarDecode",
    "Objective",
    "ObjectiveConfig",
    "Optimizer",
    "OptimizerConfig",
    "ParallelConfig",
    "Remat",
    "Schedule",
    "Source",
    "SpeculativeDecode",
    "StopGradients",
    "TextConfig",
    "TrainConfig",
    "Weight",
    "config_hash",
    "default_config",
    "from_json",
    "last_change",
    "leaves",
    "migrate_first_version",
    "objective_terms",
    "only_terms",
    "preset",
    "resolve",
    "scheduled",
    "settings_without_rows",
    "stored",
    "to_json",
    "trained_terms",
    "trains_heads_alone",
]


def default_config() -> ml_collections.ConfigDict:
    """A ConfigDict with every key at its default; assigning an unknown key to it raises.

    Types are left to `resolve`: a weight may be a number or a schedule, buckets a number or bounds.
    """
    return ml_collections.ConfigDict(_plain(Config()), type_safe=False, convert_dict=True).lock()


def preset(name: str, presets: dict[str, Callable[[], ml_collections.ConfigDict]]) -> ml_collections.ConfigDict:
    """The ConfigDict of one preset of an experiment file (`--config=FILE.py:name`).

    Args:
      name: a key of `presets`.
      presets: functions that make the file's ConfigDicts, by name.

    Raises:
      ConfigError: no such preset; the message names the nearest and all that exist.
    """
    if name not in presets:
        choices = ", ".join(presets)
        if not name:
            raise ConfigError(f"name a preset, --config=FILE.py:PRESET; choose from {choices}")
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean {near[0]!r}? Choose from" if near else "choose from"
        raise ConfigError(f"unknown preset {name!r}; {hint} {choices}")
    return presets[name]()


def resolve(config: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Checks a ConfigDict (or nested dict) and freezes it.

    Raises:
      ConfigError: an unknown key, a wrong type, a value out of range or settings that contradict each other.
    """
    raw = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    resolved = _build(Config, raw, "config")
    check(resolved)
    return resolved


def to_json(config: Config) -> str:
    """The config as JSON text, keys sorted; `from_json` reads it back."""
    return json.dumps(_plain(config), indent=2, sort_keys=True)


def from_json(text: str, *, ignore_unknown: bool = False) -> Config:
    """Reads what `to_json` wrote, in this version or the first.

    The version that wrote it has checked that its settings agree. Later versions may check more, and its checkpoints still
    load: only types, ranges and the model's settings are checked again.

    Args:
      text: JSON.
      ignore_unknown: leave out the settings that this version does not know.

    Raises:
      ValueError: not JSON (JSONDecodeError), or a wrong setting (ConfigError).
    """
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ConfigError(f"config: expected groups of settings, got {raw!r:.40}")
    return stored(_known(Config, migrate_first_version(raw)) if ignore_unknown else raw)


def stored(raw: dict[str, Any]) -> Config:
    """`from_json` for what the JSON text holds.

    Raises:
      ConfigError: a wrong setting.
    """
    config = _build(Config, migrate_first_version(raw), "config")
    check_ranges(config)
    check_model(config)
    return config


def _known(cls: type, raw: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {
        key: _known(hints[key], value) if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict) else value
        for key, value in raw.items()
        if key in hints
    }


def config_hash(config: Config) -> str:
    """Twelve hex digits that change with any setting."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


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
    """`value` as type `hint`, or ConfigError. Lists become tuples (JSON has no tuples); whole floats never become ints."""
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
        # The option of the value's shape, so that its error says what is wrong inside a list.
        is_list = isinstance(value, (list, tuple))
        for option in args:
            if (typing.get_origin(option) is tuple) == is_list and not isinstance(value, str):
                return _convert(option, value, path)
        raise ConfigError(f"{path}: expected {type_name(hint)}, got {value!r}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: expected a list, got {value!r}")
        if args[-1] is not Ellipsis and len(args) != len(value):
            raise ConfigError(f"{path}: expected {len(args)} values, got {len(value)}")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            bits = value.bit_length()
            raise ConfigError(
                f"{path}: a number of {bits} bits must be at most 3.4e+38, since it is a float32"
            ) from None
    if type(value) is not hint:
        raise ConfigError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value
