"""Parameters of another checkpoint that a run starts from (`init_from`).

Tables may change their number of rows, and CTC's blank, row `vocab_size` of the token table, may be new or left out.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from janus_jax import checkpoint
from janus_jax.checkpoint import CheckpointError
from janus_jax.config import Config, ConfigError
from janus_jax.model import Janus, output_classes
from janus_jax.types import Params

# Settings that decide what the parameters mean: they must be equal in both models.
_EQUAL = (
    "vocab_size d_model ffn_dim heads encoder_layers decoder_layers norm activation scale_embedding layernorm_embedding"
).split()
# Tables whose number of rows may change: common rows are copied, the others are initialised.
_TABLES = ("embed_positions", "embed_ctc_positions", "embed_dag_positions", "embed_length", "embed_tokens")


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
    differing = {
        name: (getattr(target, name), getattr(source, name))
        for name in _EQUAL
        if getattr(target, name) != getattr(source, name)
    }
    if differing:
        said = "; ".join(
            f"config.model.{name}: {ours!r}, but {config.init_from} has {theirs!r}"
            for name, (ours, theirs) in differing.items()
        )
        flags = " ".join(f"--config.model.{name}={theirs}" for name, (_, theirs) in differing.items())
        raise ConfigError(f"{said}; set {flags}")
    fresh = jax.device_get(jax.jit(net.init)(jax.random.key(config.train.seed)))
    stored = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.params)}
    notes: list[str] = []

    def initial(path: Any, new: np.ndarray) -> np.ndarray:
        name = _name(path)
        old = stored.get(name)
        if old is None:
            notes.append(f"{name}: new")
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

    return jax.tree_util.tree_map_with_path(initial, fresh), notes


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
