"""DAG rows: the vertices of a graph. A sentence has ceil(`dag_ratio` * its source tokens) of them. They attend to each
other, each predicts a token, and links lead from each to the vertices behind it (docs/method.md, section 11).

Legend: B sentences, S source length, R vertices.
"""

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig
from janus_jax.model.layout import RowGroup, bidirectional_mask, real_source_rows, source_row_counts
from janus_jax.types import Batch, Specials


def groups(batch: Batch, config: ModelConfig, specials: Specials) -> tuple[RowGroup, ...]:
    """The R vertices of each source; a loss reads all of them."""
    return (source_rows(batch.source, config, specials),)


def source_rows(source: jax.Array, config: ModelConfig, specials: Specials) -> RowGroup:
    """The vertices of sources [B, S]. The first reads bos, the last eos, and all others read the mask token.

    Raises:
      ValueError: the model has no DAG rows.
    """
    if not config.dag_ratio:
        raise ValueError("this model has no DAG rows; set model.dag_ratio, for example to 4.0")
    real = source != specials.pad
    row = jnp.arange(config.dag_slots(source.shape[1]))
    ends = jnp.where(row == row_counts(real, config)[:, None] - 1, specials.eos, specials.mask)
    tokens = jnp.where(row == 0, specials.bos, ends).astype(jnp.int32)
    attends = {"dag": bidirectional_mask(real_rows(real, config))}
    # AR rows teach the shared table that position p is the p-th target token. Vertices that read it would form one path
    # through the first vertices, and the others would never be visited.
    return RowGroup("dag", "dag", row[None], attends, tokens, position_table="dag")


def row_counts(source: jax.Array, config: ModelConfig) -> jax.Array:
    """The number of real vertices of each sentence: source [..., S], True at real tokens -> [...] int32."""
    return source_row_counts(source, config.dag_ratio)


def real_rows(source: jax.Array, config: ModelConfig) -> jax.Array:
    """Flags [..., R], True at the real vertices, which come first; source [..., S], True at real tokens."""
    return real_source_rows(source, config.dag_ratio)
