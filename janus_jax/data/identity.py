"""Which settings shape a prepared dataset, and whether a dataset is the one that a config means.

A dataset is its content, not the places that its text and its tokenizer had: it may be moved, and the raw text may be
gone or lie elsewhere. So paths are not compared. Where both files can be read, their content is.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Set
from typing import Any

import ml_collections

from janus_jax import text
from janus_jax.checkpoint import CheckpointError
from janus_jax.config import Config
from janus_jax.data import damage, sources
from janus_jax.data.errors import DataError
from janus_jax.data.tokenizer import tokenizer_of_lines, tokenizer_path
from janus_jax.settings import all_settings

# Settings that change the prepared data; all others may differ between preparing and training.
_TEXT_SETTINGS = "model model_type vocab_size character_coverage byte_fallback train_lines".split()
_DATA_SETTINGS = (
    "source source_lang target_lang train valid test hold_out tfds_name demo_sizes glge_pieces cmudict_stress "
    "max_source_length max_target_length max_length_ratio too_long"
).split()
# Those that one source alone reads, and those of pairs.
_OF_ONE_SOURCE = {"tfds_name": "tfds", "demo_sizes": "demo", "glge_pieces": "glge", "cmudict_stress": "cmudict"}
_OF_PAIRS = ("source_lang", "target_lang", "max_source_length", "max_length_ratio", "too_long")
# Those that only name places. (The splits of a TFDS dataset are names in it.)
PLACES = {"text.model", "data.train", "data.valid", "data.test"}


def settings(config: Config) -> dict[str, Any]:
    """The settings that change what `prepare` writes, by name, without those that have no effect in this config."""
    chosen = {f"text.{key}": getattr(config.text, key) for key in _TEXT_SETTINGS}
    chosen |= {f"data.{key}": getattr(config.data, key) for key in _DATA_SETTINGS}
    chosen["text.model"] = tokenizer_path(config)
    return _effective(json.loads(json.dumps(chosen)))


def _effective(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that have no effect beside the others. (Older versions recorded some of them too.)"""
    source, idle = chosen["data.source"], set()
    if chosen.get("text.model"):
        idle |= {f"text.{key}" for key in _TEXT_SETTINGS} - {"text.model"}
    elif chosen.get("text.model_type") in ("byte_bpe", "word"):
        idle |= {"text.character_coverage", "text.byte_fallback"}  # of SentencePiece
    idle |= {f"data.{key}" for key, owner in _OF_ONE_SOURCE.items() if source != owner}
    if source == "text":
        idle |= {f"data.{key}" for key in _OF_PAIRS}
    if source not in sources.FILES or chosen.get("data.valid"):
        idle.add("data.hold_out")
    return {name: value for name, value in chosen.items() if name not in idle}


def fingerprint(config: Config, version: int) -> str:
    """Twelve hex digits that change with the format's version and every setting that changes the prepared data."""
    return hashlib.sha256(json.dumps([version, settings(config)], sort_keys=True).encode()).hexdigest()[:12]


def run_changes(report: dict[str, Any], config: Config, directory: pathlib.Path) -> str:
    """What keeps a run from using a prepared dataset, for a message; empty: nothing.

    Args:
      report: of the dataset.
      config: of the run.
      directory: of the dataset.
    """
    before, now = _effective(report["settings"]), settings(config)
    if config.init_from and not config.text.model:
        # The run compares the tokenizer itself with that of init_from, so it does not matter where it came from.
        before, now = ({k: v for k, v in one.items() if not k.startswith("text.")} for one in (before, now))
    changes = _differences(before, now, ignored={"data.test"})
    if before.get("text.model") != now.get("text.model"):
        changes += _tokenizer_change(before, now, config, directory)
    if not changes and config.data.source in sources.FILES:
        changes += _text_changes(report, config)
    if (before.get("data.valid") and not config.data.valid) or (config.data.valid and not before.get("data.valid")):
        changes.append(_change("data.valid", before.get("data.valid"), config.data.valid))
    return ", ".join(changes)


def preparation_changes(
    report: dict[str, Any],
    config: Config,
    splits: dict[str, sources.SplitSource],
    inputs: dict[str, int],
    directory: pathlib.Path,
) -> str:
    """What differs between a prepared dataset and what would be prepared now, for a message; empty: nothing.

    Args:
      report: of the dataset.
      config: of the preparation.
      splits: the text to prepare.
      inputs: its files, with their sizes.
      directory: of the dataset.
    """
    before, now = _effective(report["settings"]), settings(config)
    # The tokenizer is read even where its path is the same: a folder or a checkpoint has no size that shows a change.
    changes = _differences(before, now) + _tokenizer_change(before, now, config, directory)
    changes += [
        _change(path, report["inputs"][path], size)
        for path, size in inputs.items()
        if report["inputs"].get(path, size) != size
    ]
    if now["data.source"] == "tfds":
        versions = [sorted(name for name in one if name.startswith("tfds ")) for one in (report["inputs"], inputs)]
        if versions[0] != versions[1]:
            changes.append(_change("the dataset", *map(", ".join, versions)))
    if "distilled" in report:
        changes.append("its training targets were generated by a model")
    if changes:
        return ", ".join(changes)
    if "content" not in report:  # an older dataset
        return ", ".join(
            _change(key, a.get(key), b.get(key))
            for a, b, keys in (
                (before, now, sorted(PLACES - {"data.test"})),
                (report["inputs"], inputs, {**report["inputs"], **inputs}),
            )
            for key in keys
            if a.get(key) != b.get(key)
        )
    content = {split: content for split, source in splits.items() if (content := source.content())}
    for split in sources.SPLITS:
        name = f"data.{split}"
        if (split in splits) != (split in report["splits"]):
            changes.append(_change(name, before.get(name), now.get(name)))
        elif content.get(split, "") != report["content"].get(split, ""):
            changes.append(f"{_change(name, before.get(name), now.get(name))}, with other text")
    return ", ".join(changes)


def adopt(config: ml_collections.ConfigDict, overridden: frozenset[str]) -> str:
    """Takes the settings that shaped the prepared data into a run's config, so that nobody has to repeat them.

    Args:
      config: changed in place; it is not checked yet.
      overridden: settings of the command line, which stay as they are: they must agree with the dataset.

    Returns:
      What was changed, a line for the user; empty: nothing.
    """
    try:
        directory = pathlib.Path(config.data.prepared)
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
        shaping = {name: value for name, value in report["settings"].items() if name.startswith(("text.", "data."))}
        init_from = config.get("init_from", "")
    except (AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError):
        return ""  # an error of the settings or the dataset, which is reported where they are read
    defaults = {setting.name: setting.default for setting in all_settings()}
    changed = []
    if shaping.get("data.source") in sources.FILES and not shaping.get("data.valid"):
        shaping.setdefault("data.hold_out", 0)  # older versions did not record that nothing is held out
    if shaping.get("data.source") == "text":  # noise may leave a source as long as its block
        lengths = (config.data.get("max_source_length"), shaping.get("data.max_target_length"))
        if all(isinstance(length, int) for length in lengths) and lengths[0] < lengths[1]:
            shaping["data.max_source_length"] = lengths[1]
    for name, value in shaping.items():
        # The tokenizer is compared with that of init_from.
        if name not in defaults or name in overridden or (init_from and name.startswith("text.")):
            continue
        group, key = name.split(".")
        if group not in config:
            with config.unlocked():
                config[group] = ml_collections.ConfigDict()
        members = config[group]
        if not isinstance(members, ml_collections.ConfigDict):
            return ""  # wrong, as `resolve` will say
        current = members.get(key, defaults[name])
        if _plain(current) != value:
            with members.unlocked(), members.ignore_type():
                members[key] = value
            changed.append(f"{name} {value!r} instead of {current!r}")
    return f"training follows {directory}: {', '.join(changed)}" if changed else ""


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], ignored: Set[str] = frozenset()) -> list[str]:
    """Settings that differ, but for places."""
    defaults = {setting.name: _plain(setting.default) for setting in all_settings()}
    ignored = ignored | ({"text.model"} if now["data.source"] == "tfds" else PLACES)
    changes = []
    for name in {**before, **now}:
        if name in ignored or (name.startswith("text.") and (before.get("text.model") or now.get("text.model"))):
            continue
        if name not in defaults:
            # Of a later version, which turns it off with one of these.
            if before.get(name) not in (None, False, 0, "", []):
                changes.append(f"{name} was {before[name]!r}, which this version does not know")
            continue
        # One that an older version did not know was at its default.
        old, new = (one.get(name, defaults[name]) for one in (before, now))
        if old != new:
            changes.append(_change(name, old, new))
    return changes


def _tokenizer_change(
    before: Mapping[str, Any], now: Mapping[str, Any], config: Config, directory: pathlib.Path
) -> list[str]:
    """The difference if the tokenizer that the settings name is not the one in `directory`."""
    old, new = before.get("text.model"), now.get("text.model")
    wrong = [_change("text.model", old, new)] if old != new else []
    if not new:
        return wrong
    with contextlib.suppress(text.TokenizerError, CheckpointError, OSError):
        tokenizer = tokenizer_of_lines([], config, lambda _: None)
        stored = damage.read_checked(directory / "tokenizer.model", pathlib.Path.read_bytes)
        if tokenizer.to_bytes() == stored:
            return []
        return [f"{wrong[0]}, another tokenizer" if wrong else f"text.model {new!r} is another tokenizer now"]
    return []  # it is not on this machine


def _text_changes(report: dict[str, Any], config: Config) -> list[str]:
    """Splits whose text is on this machine, at another place, and differs from the text that was prepared."""
    changes = []
    for split in ("train", "valid"):
        name = f"data.{split}"
        old, new = report["settings"].get(name), getattr(config.data, split)
        if old == new or not new:
            continue
        only = dataclasses.replace(config.data, train=new, valid="", test="", hold_out=0)
        with contextlib.suppress(DataError, OSError):
            source = sources.open_splits(only)["train"]
            if "content" not in report:  # an older dataset
                same = set(source.inputs.values()) <= set(report["inputs"].values())
            else:
                same = source.content() == report["content"].get(split)
            if not same:
                changes.append(f"{_change(name, old, new)}, which holds other text")
    return changes


def _change(name: str, before: Any, now: Any) -> str:
    return f"{name} was {before!r}, is {now!r}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
