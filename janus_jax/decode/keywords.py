"""Settings of a mode as keywords: `Generator.generate(lines, mode="nar", passes=4)`, `--mode=nar --passes=4`, `nar:passes=4`.

A keyword is the name of a field: of the fields that all modes share, of the mode's own, or of another mode's that it reads.
"""

import dataclasses
import difflib
import functools
import operator
from collections.abc import Mapping
from typing import Any

from janus_jax import config
from janus_jax.config import ConfigError, DecodeConfig
from janus_jax.decode.modes import MODES

SHARED = tuple(f.name for f in dataclasses.fields(DecodeConfig) if f.name not in MODES)


def places(mode: str) -> dict[str, tuple[str, ...]]:
    """The keywords of a mode, each with the place of its value in config.decode, for example ("ar", "beam")."""
    entry = MODES[mode]
    shared = {name: (name,) for name in SHARED}
    read = {name: (other, name) for other, names in entry.reads.items() for name in names}
    return shared | read | {f.name: (mode, f.name) for f in dataclasses.fields(entry.settings)}


def with_keywords(decode: DecodeConfig, keywords: Mapping[str, Any]) -> DecodeConfig:
    """The settings with some changed.

    Args:
      decode: settings to start from.
      keywords: new values by name; None: no change. `mode` chooses the mode, and so which names there are.

    Raises:
      ConfigError: an unknown setting, one of another mode, one that has no effect beside the others, or an impossible value.
    """
    changes = tuple((name, type(value), value) for name, value in keywords.items() if value is not None)
    try:
        return _resolved(decode, changes)
    except TypeError:  # a list, say, cannot be kept
        return _resolved.__wrapped__(decode, changes)


# A server asks for the same settings again and again. Types are given, since True equals 1.
@functools.lru_cache(maxsize=64)
def _resolved(decode: DecodeConfig, typed: tuple[tuple[str, type, Any], ...]) -> DecodeConfig:
    changes = {name: value for name, _, value in typed}
    raw = dataclasses.asdict(decode)
    mode = changes.get("mode", decode.mode)
    if mode in MODES:  # else `resolve` names the fault
        known = places(mode)
        for name, value in changes.items():
            if name not in known:
                raise ConfigError(unknown(name, mode))
            *groups, key = known[name]
            group = raw
            for part in groups:
                group = group[part]
            group[key] = value
    else:
        raw["mode"] = mode
    resolved = config.resolve({"decode": raw}).decode
    for name, (other, needed) in MODES[resolved.mode].only_with.items():
        if name in changes and operator.attrgetter(".".join(known[other]))(resolved) != needed:
            raise ConfigError(
                f"{name}: it has no effect in mode {resolved.mode} unless {other} is {needed}; set that too"
            )
    if changes.get("rules") == "released" and not MODES[resolved.mode].released:
        modes = " and ".join(name for name, mode in MODES.items() if mode.released)
        raise ConfigError(f"rules: released, but mode {resolved.mode} has no such rules; only {modes} have")
    if changes.get("rerank") == "ar" and resolved.chosen.nbest_limit[1] == 1:
        more = f"raise {resolved.chosen.nbest_limit[0]}" if resolved.chosen.nbest_limit[0] else "set search to beam"
        raise ConfigError(
            f"rerank: ar, but mode {resolved.mode} has one candidate a sentence with these settings; {more} too"
        )
    if resolved.mode in ("speculative", "infill"):
        top, gap = resolved.chosen.accept_top, resolved.chosen.accept_gap
        if (changes.get("accept_top", 1) > 1 and not gap) or (changes.get("accept_gap", 0) > 0 and top <= 1):
            raise ConfigError(
                f"accept_top {top} and accept_gap {gap}: one has no effect without the other; set accept_top above 1 and accept_gap "
                "above 0, or neither"
            )
    return resolved


def for_scores(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for one output a sentence, and a search where they name a beam, whatever a checkpoint's own settings are."""
    search = {"sample": False} if keywords.get("mode") == "ar" and "beam" in keywords else {}
    return {"nbest": 1, **search, **keywords}


def unknown(name: str, mode: str) -> str:
    known = places(mode)
    if others := [other for other in MODES if name in places(other)]:
        return f"{name}: mode {mode} has no such setting; it belongs to mode {' and '.join(others)}"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"its settings: {', '.join(known)}"
    return f"{name}: mode {mode} has no such setting; {hint}"
