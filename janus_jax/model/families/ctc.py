"""CTC rows: a sentence has ceil(`ctc_ratio` * its source tokens) of them. They attend to each other, and each predicts
a token or the blank (docs/method.md, section 8).

Legend: B sentences, S source length, R CTC rows.
"""

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig
from janus_jax.model.layout import RowGroup, bidirectional_mask, real_source_rows, source_row_counts
from janus_jax.types import Batch, Specials


def groups(batch: Batch, config: ModelConfig, specials: Specials) -> tuple[RowGroup, ...]:
    """The R CTC rows of each source; a loss reads all of them."""
    return (source_rows(batch.source, config, specials),)


def source_rows(source: jax.Array, config: ModelConfig, specials: Specials) -> RowGroup:
    """The CTC rows of sources [B, S]. They read the mask token, alone or with evenly spaced encoder states, or evenly
    spaced source tokens (`ctc_input`).

    Raises:
      ValueError: the model has no CTC rows.
    """
    if not config.ctc_ratio:
        raise ValueError("this model has no CTC rows; set model.ctc_ratio, for example to 2.0")
    real = source != specials.pad
    places = origins(real, config)
    tokens = jnp.take_along_axis(source, places, axis=1) if config.ctc_input == "source" else None
    copies = places if config.ctc_input == "encoder" else None
    positions = jnp.arange(config.ctc_slots(source.shape[1]))[None]
    attends = {"ctc": bidirectional_mask(real_rows(real, config))}
    table = "ctc" if config.ctc_positions == "own" else ""
    return RowGroup("ctc", "ctc", positions, attends, tokens, copies=copies, position_table=table)


def row_counts(source: jax.Array, config: ModelConfig) -> jax.Array:
    """The number of real CTC rows of each sentence: source [..., S], True at real tokens -> [...] int32."""
    return source_row_counts(source, config.ctc_ratio)


def real_rows(source: jax.Array, config: ModelConfig) -> jax.Array:
    """Flags [..., R], True at the real CTC rows, which come first; source [..., S], True at real tokens."""
    return real_source_rows(source, config.ctc_ratio)


def origins(source: jax.Array, config: ModelConfig) -> jax.Array:
    """Indices [B, R] of the source tokens that CTC rows copy, evenly spaced; source [B, S], True at real tokens."""
    row = jnp.arange(config.ctc_slots(source.shape[1]))
    length, count = source.sum(axis=1, keepdims=True), row_counts(source, config)[:, None]
    index = jnp.minimum(row * length // jnp.maximum(count, 1), jnp.maximum(length - 1, 0))
    return jnp.argmax(source, axis=1)[:, None] + index  # padding may be on the left
