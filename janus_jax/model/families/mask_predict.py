"""Rows of the masked target (NAR, a conditional masked language model): mask rows predict all masked tokens at once
from the visible ones (docs/method.md, section 2).

Legend: B sentences, N targets (a multiple of B), T target length, M masked tokens at most.
"""

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig
from janus_jax.model.layout import RowGroup, bidirectional_mask
from janus_jax.types import Batch, Specials


def groups(batch: Batch, config: ModelConfig, specials: Specials) -> tuple[RowGroup, ...]:
    """The T rows of each masked target; a loss reads the M mask rows."""
    return (target_rows(masked_tokens(batch, specials), config, specials, read=batch.masked),)


def target_rows(tokens: jax.Array, config: ModelConfig, specials: Specials, read: jax.Array | None = None) -> RowGroup:
    """The NAR rows of targets that hold mask tokens.

    Args:
      tokens: [N, T] int32 targets, masked and padded.
      config: the architecture.
      specials: ids of the special tokens.
      read: [N, M] int32, indices of the rows that the caller reads; None: all rows.
    """
    positions = jnp.arange(tokens.shape[1])[None]
    attends = {"nar": bidirectional_mask(tokens != specials.pad)}
    return RowGroup("nar", "nar", positions, attends, tokens, read, layernorm=config.nar_layernorm_embedding)


def masked_tokens(batch: Batch, specials: Specials) -> jax.Array:
    """The target with its masked tokens replaced by the mask token, [B, T]."""
    flags = masked_flags(batch.masked, batch.masked_count, batch.parallel.shape[1])
    return jnp.where(flags, specials.mask, batch.parallel)


def masked_flags(masked: jax.Array, masked_count: jax.Array, length: int) -> jax.Array:
    """Flags [B, T], True at the masked positions; masked [B, M], masked_count [B] int32."""
    rank = jnp.arange(masked.shape[1])
    hits = (masked[:, :, None] == jnp.arange(length)) & (rank[:, None] < masked_count[:, None, None])
    return hits.any(axis=1)
