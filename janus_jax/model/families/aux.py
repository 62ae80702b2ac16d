"""Auxiliary (AUX) rows: a query row predicts a masked token. It sees the visible tokens, the gold tokens of the masked
positions to its left, and the mask rows at its own position and to its right (docs/method.md, section 2). So it sees
what an AR row sees on its left, and what a NAR row sees elsewhere.

Legend: B sentences, N targets, T target length, M masked tokens at most, k new tokens, r rank (index of a masked
position among the masked positions of its sentence, from left to right).
"""

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig
from janus_jax.model.families.mask_predict import masked_flags
from janus_jax.model.layout import RowGroup
from janus_jax.types import Batch, Specials


def groups(batch: Batch, config: ModelConfig, specials: Specials) -> tuple[RowGroup, ...]:
    """The gold rows of the masked positions, and the AUX query rows: M rows each. Both also attend to the NAR rows."""
    length, masked = batch.parallel.shape[1], batch.masked.shape[1]
    mask = bridge_mask(batch.parallel != specials.pad, batch.masked, batch.masked_count)
    gold_attends, query_attends = (
        {"nar": part[:, :, :length], "aux_gold": part[:, :, length:]} for part in (mask[:, :masked], mask[:, masked:])
    )
    gold_tokens = jnp.take_along_axis(batch.parallel, batch.masked, axis=1)
    layernorm = config.nar_layernorm_embedding
    gold = RowGroup("aux_gold", "aux", batch.masked, gold_attends, gold_tokens, predicts=False, layernorm=layernorm)
    return gold, RowGroup("aux_query", "aux", batch.masked, query_attends, memory=False, layernorm=layernorm)


def bridge_mask(real: jax.Array, masked: jax.Array, masked_count: jax.Array) -> jax.Array:
    """Attention mask [B, 2M, T + M]. Its rows are gold rows, then AUX query rows; its columns NAR rows, then gold rows.

    A gold row of rank r attends to visible NAR rows, masked NAR rows of rank > r and gold rows of rank <= r. A query
    row of rank r attends to visible NAR rows, masked NAR rows of rank >= r and gold rows of rank < r. Masked positions
    ascend with rank, so the code compares positions instead of the ranks of NAR rows.

    Args:
      real: [B, T] True at target tokens.
      masked, masked_count: the masked positions [B, M], and their number [B].
    """
    length = real.shape[1]
    rank = jnp.arange(masked.shape[1])
    is_masked = masked_flags(masked, masked_count, length)[:, None]
    position = jnp.arange(length)
    visible = real[:, None] & ~is_masked
    mask_rows = real[:, None] & is_masked
    gold_to_nar = visible | (mask_rows & (position > masked[:, :, None]))
    query_to_nar = visible | (mask_rows & (position >= masked[:, :, None]))
    real_gold = rank < masked_count[:, None, None]
    gold_to_gold = (rank[:, None] >= rank) & real_gold
    query_to_gold = (rank[:, None] > rank) & real_gold
    gold_mask = jnp.concatenate([gold_to_nar, gold_to_gold], axis=2)
    query_mask = jnp.concatenate([query_to_nar, query_to_gold], axis=2)
    return jnp.concatenate([gold_mask, query_mask], axis=1)


def gap_mask(
    real: jax.Array,
    masked: jax.Array,
    masked_count: jax.Array,
    query_positions: jax.Array,
    gold_positions: jax.Array,
    slots: jax.Array,
) -> jax.Array:
    """Attention mask [N, 2k, T + M + 1] of AUX query rows, then new gold rows, when gaps are filled step by step.

    The columns are NAR rows, then the slots of gold rows; what a row attends to is as in `bridge_mask`. Slot t holds
    the gold row of rank t - 1. Slot 0 holds no gold token, and no row attends to it.

    Args:
      real: [N, T] True at target tokens.
      masked, masked_count: positions of the gaps [N, M], and their number [N].
      query_positions: [N, k] positions of the tokens that the query rows predict.
      gold_positions: [N, k] positions of the gold rows.
      slots: [N, k] slots of the gold rows; the query row that belongs to slot t has rank t.
    """
    length = real.shape[1]
    is_masked = masked_flags(masked, masked_count, length)[:, None]
    visible, mask_rows = real[:, None] & ~is_masked, real[:, None] & is_masked
    position = jnp.arange(length)
    query_to_nar = visible | (mask_rows & (position >= query_positions[:, :, None]))
    gold_to_nar = visible | (mask_rows & (position > gold_positions[:, :, None]))
    slot = jnp.arange(masked.shape[1] + 1)
    to_gold = jnp.tile((slot > 0) & (slot <= slots[:, :, None]), (1, 2, 1))
    return jnp.concatenate([jnp.concatenate([query_to_nar, gold_to_nar], axis=1), to_gold], axis=2)
