"""Settings of transformers' `generate` in a BART's directory -> settings of mode ar.

Lengths there count the decoder's first tokens (eos and bos, or bos) and the eos at the end; here they count the tokens
between. length_penalty divides by the number of tokens, eos counted: there with a bos that follows eos, here without.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax import config as config_lib
from janus_jax.config import ConfigError
from janus_jax.convert import files
from janus_jax.convert.errors import ConvertError
from janus_jax.convert.report import Report
from janus_jax.convert.values import LARGEST, shown
from janus_jax.types import Specials

FILE = "generation_config.json"
_SAME = {"num_beams": "beam", "length_penalty": "lenpen", "no_repeat_ngram_size": "no_repeat_ngram"}
_STOPS = {"never": "best", False: "current", True: "released"}
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}  # transformers' defaults, which differ from ours
_OVERRIDES = {"min_length": "min_new_tokens", "max_length": "max_new_tokens"}
# Settings without a counterpart, and the value of each that changes nothing.
_OTHERS = {
    "num_return_sequences": 1, "num_beam_groups": 1, "diversity_penalty": 0, "repetition_penalty": 1,
    "encoder_repetition_penalty": 1, "encoder_no_repeat_ngram_size": 0, "typical_p": 1, "min_p": 0, "epsilon_cutoff": 0,
    "eta_cutoff": 0, "penalty_alpha": 0, "exponential_decay_length_penalty": None, "bad_words_ids": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "force_words_ids": None, "sequence_bias": None,
    "forced_decoder_ids": None, "stop_strings": None, "max_time": None,
}  # fmt: skip


def ar_settings(
    directory: Path,
    config: Mapping[str, Any],
    specials: Specials,
    after_eos: bool,
    report: Report,
    positions: int = LARGEST,
) -> dict[str, Any]:
    """The settings of `config.decode.ar` that equal those of a BART. Values that are no settings raise no error.

    Args:
      directory: of the model; its generation_config.json counts, or else `config`, which holds them in older models.
      config: the content of config.json.
      specials: special tokens of the tokenizer.
      after_eos: the decoder starts with eos, and bos follows.
      report: receives what was taken over, and what was not.
      positions: of the model; a limit that is no shorter is none.
    """
    given, where = config, "config.json"
    if (directory / FILE).is_file():
        try:
            given, where = files.read_json(directory / FILE), FILE
        except ConvertError as error:
            report.notes.append(f"{error}: its settings are not taken over")
            given = {}
    given = {name: value for name, value in given.items() if not _no_limit(name, value, positions)}
    if given.get("num_beams") not in (None, 1) and given.get("early_stopping") is None:
        given["early_stopping"] = False  # transformers' default; files leave it out
    taken: dict[str, Any] = {}
    left = []
    for name, value in given.items():
        if value is None or (name in _OTHERS and _changes_nothing(name, value, specials)):
            continue
        ours = {} if name in _OTHERS else _counterpart(name, value, given, after_eos)
        if ours is None:
            continue
        if ours and _possible(taken | ours):
            taken |= ours
        else:
            left.append(f"{name} {shown(value)}")
    if taken:
        counted = " (length_penalty counts bos there, lenpen does not)" if after_eos and "lenpen" in taken else ""
        report.notes.append(
            f"{where}: taken over into decode.ar: {', '.join(f'{k} {v!r}' for k, v in taken.items())}{counted}"
        )
    if left:
        report.notes.append(f"{where}: not taken over, since mode ar has no equal setting: {', '.join(left)}")
    forced = any(
        source.get("forced_bos_token_id") == specials.bos or source.get("force_bos_token_to_be_generated") is True
        for source in (config, given)
    )
    if after_eos and not forced:
        report.notes.append(
            f"neither {FILE} nor config.json forces the first token to be bos (forced_bos_token_id); here bos always "
            "follows eos"
        )
    return taken


def _counterpart(name: str, value: Any, given: Mapping[str, Any], after_eos: bool) -> dict[str, Any] | None:
    """The settings here that equal one there, perhaps impossible ones; {}: there are none; None: it changes nothing."""
    if name in _SAME:
        # A single token would there include eos, the first one.
        return {} if (name, value) == ("no_repeat_ngram_size", 1) else {_SAME[name]: value}
    if name == "early_stopping":
        return {"stop": _STOPS[value]} if type(value) is bool or value == "never" else {}
    if name == "do_sample":
        if value is True and given.get("num_beams") not in (None, 1):
            return {}  # beams of samples
        others = {key: default if given.get(key) is None else given[key] for key, default in _SAMPLING.items()}
        return {"sample": value} | (others if value is True else {})
    if name in (*_OVERRIDES, *_OVERRIDES.values()):
        return _length(name, value, given, after_eos)
    return None


def _length(name: str, value: Any, given: Mapping[str, Any], after_eos: bool) -> dict[str, Any] | None:
    if given.get(_OVERRIDES.get(name, "")) is not None:
        return None
    if type(value) is not int or not 0 <= value <= LARGEST:
        return {}
    inner = value - after_eos - (name in _OVERRIDES)  # tokens after bos
    if name.startswith("min"):
        return {"min_length": inner} if inner > 1 else None  # no output has fewer
    return {"max_length_a": 0.0, "max_length_b": inner - 1} if inner > 1 else {}


def _no_limit(name: str, value: Any, positions: int) -> bool:
    return name in ("max_length", "max_new_tokens") and type(value) is int and value >= positions


def _possible(settings: dict[str, Any]) -> bool:
    try:
        config_lib.resolve({"decode": {"ar": settings}})
    except (ConfigError, TypeError, OverflowError):
        return False
    return True


def _changes_nothing(name: str, value: Any, specials: Specials) -> bool:
    if name in ("bad_words_ids", "suppress_tokens"):
        never = (specials.bos, specials.pad, specials.mask)  # no output here has them
        return isinstance(value, list) and all(one in never or one in [[n] for n in never] for one in value)
    return _OTHERS[name] is not None and value == _OTHERS[name]
