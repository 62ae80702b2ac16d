"""Parameters that a run starts from: those of another checkpoint, where the config names one (`init_from`).

Legend: V' padded vocabulary (with CTC's blank, where there is one), P rows of a position table, C length classes, D model
width.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from janus_jax import checkpoint
from janus_jax.config import Config, ConfigError
from janus_jax.model import Janus, outputs
from janus_jax.types import Params

# Settings that decide what the parameters mean: they must be those that the parameters were trained with.
_SAME = (
    "vocab_size d_model ffn_dim heads encoder_layers decoder_layers norm activation scale_embedding layernorm_embedding"
).split()
# Tables whose number of rows may change: rows in common are taken over, others start fresh.
_TABLES = ("embed_positions", "embed_length", "embed_tokens")


def initial_params(net: Janus, config: Config, tokenizer: bytes) -> tuple[Params, list[str]]:
    """The parameters of `config.init_from` in the shapes of this run's model.

    Args:
      net: the run's model; tables of positions and lengths may be longer or shorter than the checkpoint's, and only one of
        both may have CTC rows: a blank that the checkpoint lacks starts fresh, one that the run lacks is left out.
      config: the run's.
      tokenizer: of the run's data; ids must mean what they meant.

    Returns:
      Parameters (numpy), and what differs from the checkpoint's, for the log.

    Raises:
      ConfigError: another tokenizer, or an architecture that the parameters do not fit.
      CheckpointError: nothing to read there.
    """
    loaded = checkpoint.load(config.init_from)
    where = f"config.init_from: {config.init_from}"
    if loaded.tokenizer != tokenizer:
        raise ConfigError(
            f"{where} has another tokenizer than {config.data.prepared}; prepare the data with this init_from (or with "
            "text.model naming the same checkpoint), and --overwrite"
        )
    theirs, ours = loaded.config.model, net.config
    if not theirs.vocab_size:  # it is the tokenizer's, which is the same
        theirs = dataclasses.replace(theirs, vocab_size=ours.vocab_size)
    wrong = [name for name in _SAME if getattr(theirs, name) != getattr(ours, name)]
    if wrong:
        name = wrong[0]
        raise ConfigError(
            f"config.model.{name}: {getattr(ours, name)!r}, but {config.init_from} has {getattr(theirs, name)!r}; set it to that"
        )
    fresh = jax.device_get(jax.jit(net.init)(jax.random.key(config.train.seed)))
    notes: list[str] = []

    def taken(path: Any, mine: np.ndarray) -> np.ndarray:
        keys = [key.key for key in path]
        name, node = "/".join(keys), loaded.params
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        if node is None:
            notes.append(f"{name}: new")
            return mine
        node = np.asarray(node)
        if keys[0] == "embed_tokens" and outputs(theirs) != outputs(ours):
            # Whatever the shapes: the row of one's blank may be padding, all zero, in the other.
            became = "new: train it before decoding mode ctc" if ours.ctc_ratio else "left out: no CTC rows here"
            notes.append(f"{name}: row {ours.vocab_size}, CTC's blank, is {became}")
            return np.concatenate([node[: ours.vocab_size], mine[ours.vocab_size :]])
        if node.shape == mine.shape:
            return node
        if keys[-2] not in _TABLES or node.shape[1:] != mine.shape[1:]:
            raise ConfigError(f"{where}: {name} has shape {node.shape}, this model wants {mine.shape}")
        rows = min(len(node), len(mine))
        notes.append(f"{name}: {rows} rows of {len(node)}, {len(mine) - rows} new")
        return np.concatenate([node[:rows], mine[rows:]])

    return jax.tree_util.tree_map_with_path(taken, fresh), notes
