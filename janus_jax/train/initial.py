"""Parameters of another checkpoint that a run starts from (`init_from`).

Tables may change their number of rows, and CTC's blank, row `vocab_size` of the token table, may be new or left out.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence, Set
from typing import Any

import jax
import ml_collections
import numpy as np

from janus_jax import checkpoint
from janus_jax.checkpoint import CheckpointError
from janus_jax.config import (
    Config,
    ConfigError,
    ModelConfig,
    leaves,
    objective_terms,
    resolve,
    trained_terms,
    trains_heads_alone,
)
from janus_jax.model import Janus, output_classes
from janus_jax.objective.terms import OBJECTIVES
from janus_jax.types import Params

# Settings that decide what the parameters mean: they must be equal in both models.
_EQUAL = (
    "vocab_size d_model ffn_dim heads encoder_layers decoder_layers norm activation scale_embedding layernorm_embedding"
).split()
# How AR rows are read. A half that is kept as it is (train.only) reads them as it did; another one can learn to.
_AR_FORM = "ar_stream ar_start ar_slot_position".split()
# What rows of masks read: NAR and AUX rows, and AR rows of the form "query".
_MASK_FORM = "mask_token nar_layernorm_embedding".split()
_CTC_FORM = "ctc_input ctc_positions".split()  # how CTC rows begin
# Settings of a model that its own form does not depend on; all others are adopted where draft heads alone are trained.
_FREE = "vocab_size draft_heads draft_vocab dropout attention_dropout activation_dropout remat attention".split()
# And of an objective: those that say when, or in how many steps, a term is computed.
_SCHEDULED = "ar_first ar_every glancing nar_correction projection_rows".split()
_ADOPTED = [name for name in _EQUAL if name != "vocab_size"]  # that is the tokenizer's
# Tables whose number of rows may change: common rows are copied, the others are initialised.
_TABLES = ("embed_positions", "embed_ctc_positions", "embed_dag_positions", "embed_length", "embed_tokens")


def adopt_model(config: ml_collections.ConfigDict, overridden: Set[str], workdir: str) -> str:
    """Takes the size and the form of the model of `init_from` into a run's config, so that nobody has to repeat them.

    Args:
      config: changed in place. It is a valid config.
      overridden: settings of the command line, which must agree with the checkpoint.
      workdir: of the run. A run that resumes has its own checkpoint, and needs that of `init_from` no more.

    Returns:
      What was changed, a line for the user; empty: nothing.

    Raises:
      CheckpointError: the checkpoint cannot be read.
      ConfigError: a setting of the command line contradicts it.
    """
    if not config.get("init_from", ""):
        return ""
    if checkpoint.is_checkpoint(workdir):
        origin, whole = workdir, _newest_config(workdir)
    else:
        origin = config.init_from
        try:
            whole = checkpoint.config(origin)
        except CheckpointError as error:
            raise CheckpointError(f"config.init_from: {error}") from error
    stored, ours = whole.model, resolve(config)
    if trains_heads_alone(ours):
        if "ar" not in trained_terms(whole):
            raise ConfigError(
                f"config.init_from: {origin} has no trained AR half, and draft heads read AR rows; name another"
            )
        _adopt_all(config, whole, overridden)
        return f"training follows {origin}: its model, objective and decoding settings, and draft heads beside them"
    adopted = (
        _ADOPTED + (_AR_FORM if ours.train.only and _has_ar(ours) else []) + (_MASK_FORM if _has_masks(whole) else [])
    )
    check_model(ours.model, stored, origin, [name for name in adopted if f"model.{name}" in overridden])
    changed = []
    for name in sorted(adopted):
        now, then = config.model.get(name, getattr(ModelConfig(), name)), getattr(stored, name)
        if now != then:
            with config.model.unlocked():
                config.model[name] = then
            changed.append(f"model.{name} {then!r} instead of {now!r}")
    if ours.train.only and _has_ar(ours) and "ar" not in objective_terms(ours.objective):
        # The AR half is kept as it is: so are the settings that it decodes with.
        for name, then in vars(whole.decode.ar).items():
            now = config.decode.ar[name]
            if now != then and f"decode.ar.{name}" not in overridden:
                config.decode.ar[name] = then
                changed.append(f"decode.ar.{name} {then!r} instead of {now!r}")
    return f"training follows {origin}: {', '.join(changed)}" if changed else ""


def _has_ar(config: Config) -> bool:
    return "ar" in OBJECTIVES[config.objective.name]


def _has_masks(config: Config) -> bool:
    """Whether a model has learned what rows of masks read."""
    terms = trained_terms(config)
    return bool(terms & {"nar", "aux"}) or ("ar" in terms and config.model.ar_stream == "query")


def _newest_config(workdir: str) -> Config:
    """The settings of a run's newest checkpoint that can be read, as the run itself resumes from it.

    Raises:
      CheckpointError: none can be read.
    """
    steps = checkpoint.step_directories(workdir)
    for step in reversed(steps):
        try:
            return checkpoint.config(step)
        except CheckpointError:
            if step == steps[0]:
                raise
    return checkpoint.config(workdir)  # a step directory itself


def _adopt_all(config: ml_collections.ConfigDict, stored: Config, overridden: Set[str]) -> None:
    """Takes everything of a checkpoint's settings into a run that trains draft heads for it, but what `overridden` names."""
    # Mode speculative has one output a sentence, and knows no n-grams.
    possible = stored.decode.nbest == 1 and not stored.decode.ar.no_repeat_ngram
    parts = {"model": _FREE, "objective": [*_SCHEDULED, "weights.heads"], "decode": ["mode"] * possible}
    for part, free in parts.items():
        for name, value in leaves(getattr(stored, part)):
            group = config[part]
            *inner, last = name.split(".")
            if name in free or f"{part}.{name}" in overridden or name.startswith("speculative."):
                continue
            for step in inner:
                group = group[step]
            with config.unlocked():
                group[last] = value


def check_model(ours: ModelConfig, theirs: ModelConfig, init_from: str, names: Sequence[str] = _EQUAL) -> None:
    """Compares settings of the model of a run with those of the checkpoint `init_from`.

    Raises:
      ConfigError: some differ; it names all of them.
    """
    differing = {
        name: (getattr(ours, name), getattr(theirs, name))
        for name in names
        if getattr(ours, name) != getattr(theirs, name)
    }
    if differing:
        said = "; ".join(
            f"config.model.{name}: {mine!r}, but {init_from} has {other!r}" for name, (mine, other) in differing.items()
        )
        flags = " ".join(f"--config.model.{name}={other}" for name, (_, other) in differing.items())
        raise ConfigError(f"{said}; set {flags}")


def initial_params(net: Janus, config: Config, tokenizer: bytes) -> tuple[Params, list[str]]:
    """The parameters of `config.init_from` in the shapes of this run's model.

    Args:
      net: the model of the run. Its tables of positions and lengths may be longer or shorter than those of the checkpoint. If only
        one of the two has CTC, the blank is initialised or left out.
      config: of the run.
      tokenizer: of the run's data; must equal that of the checkpoint.

    Returns:
      Parameters (numpy), and notes for the log: what was not copied.

    Raises:
      ConfigError: another tokenizer, or an architecture that the parameters do not fit.
      CheckpointError: the checkpoint can't be read.
    """
    try:
        loaded = checkpoint.load(config.init_from)
    except CheckpointError as error:
        raise CheckpointError(f"config.init_from: {error}") from error
    setting = f"config.init_from: {config.init_from}"
    if loaded.tokenizer != tokenizer:
        raise ConfigError(
            f"{setting} has another tokenizer than {config.data.prepared}; prepare the data with this init_from (or with "
            "text.model naming the same checkpoint), and --overwrite"
        )
    source, target = loaded.config.model, net.config
    if not source.vocab_size:  # it is that of the tokenizer, which both have
        source = dataclasses.replace(source, vocab_size=target.vocab_size)
    kept = (_AR_FORM if _has_ar(config) else []) + (_MASK_FORM if _has_masks(loaded.config) else [])
    check_model(target, source, config.init_from, _EQUAL + (kept if config.train.only else []))
    fresh = jax.device_get(jax.jit(net.init)(jax.random.key(config.train.seed)))
    stored = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params)}
    absent: list[str] = []
    learns = dict.fromkeys(_AR_FORM, "the AR half has") if _has_ar(config) else {}
    learns |= dict.fromkeys(_MASK_FORM, "rows of masks have") if _has_masks(loaded.config) else {}
    learns |= dict.fromkeys(_CTC_FORM, "the CTC half has") if source.ctc_ratio and target.ctc_ratio else {}
    notes = [
        f"model.{name}: {getattr(target, name)!r} instead of {getattr(source, name)!r}, which {half} to learn"
        for name, half in learns.items()
        if getattr(target, name) != getattr(source, name)
    ]

    def initial(path: Any, new: np.ndarray) -> np.ndarray:
        name = _name(path)
        old = stored.get(name)
        if old is None:
            absent.append(name)
            return new
        if name.startswith("embed_tokens/") and output_classes(source) != output_classes(target):
            # Even where the shapes are equal: the blank's row in one model may be padding, all zero, in the other.
            blank = "new: train it before decoding mode ctc" if target.ctc_ratio else "left out: no CTC rows here"
            notes.append(f"{name}: row {target.vocab_size}, CTC's blank, is {blank}")
            return np.concatenate([old[: target.vocab_size], new[target.vocab_size :]])
        if old.shape == new.shape:
            return old
        if name.split("/")[-2] not in _TABLES or old.shape[1:] != new.shape[1:]:
            raise ConfigError(f"{setting}: {name} has shape {old.shape}, this model needs {new.shape}")
        rows = min(len(old), len(new))
        notes.append(f"{name}: {rows} rows of {len(old)}, {len(new) - rows} new")
        return np.concatenate([old[:rows], new[rows:]])

    params = jax.tree_util.tree_map_with_path(initial, fresh)
    left = sorted(stored.keys() - {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(fresh)})
    return params, _by_kind(absent, "new") + _by_kind(left, "left out, this model has none") + notes


def _by_kind(names: Sequence[str], text: str) -> list[str]:
    """A note for each name; layers have the same names, and one note for all of them."""
    kinds = collections.Counter(re.sub(r"layers_\d+", "layers_*", name) for name in names)
    return [f"{name}: {text}" + (f" ({count})" if count > 1 else "") for name, count in kinds.items()]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
