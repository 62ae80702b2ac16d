"""Auxiliary rows: a query row predicts a masked token from the visible tokens, the gold tokens before it and the masks from
it on. They see what AR sees on the left and what NAR sees elsewhere (docs/method.md, section 2).

Legend: B sentences, N targets, T target length, M masked tokens at most, k new tokens, r rank (the order of a masked
position in its sentence).
"""

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig
from janus_jax.model.families.mask_predict import masked_flags
from janus_jax.model.layout import RowGroup
from janus_jax.types import Batch, Specials


def groups(batch: Batch, config: ModelConfig, specials: Specials) -> tuple[RowGroup, ...]:
    """The gold tokens of the masked positions, and the AUX query rows: M rows each. Both attend to the rows "nar"."""
    length, masked = batch.target.shape[1], batch.masked.shape[1]
    mask = bridge_mask(batch.target != specials.pad, batch.masked, batch.masked_count)
    of_gold, of_query = (
        {"nar": part[:, :, :length], "aux_gold": part[:, :, length:]} for part in (mask[:, :masked], mask[:, masked:])
    )
    gold_tokens = jnp.take_along_axis(batch.target, batch.masked, axis=1)
    layernorm = config.nar_layernorm_embedding
    gold = RowGroup("aux_gold", "aux", batch.masked, of_gold, gold_tokens, predicts=False, layernorm=layernorm)
    return gold, RowGroup("aux_query", "aux", batch.masked, of_query, memory=False, layernorm=layernorm)


def bridge_mask(real: jax.Array, masked: jax.Array, masked_count: jax.Array) -> jax.Array:
    """What gold rows and AUX query rows attend to, [B, 2M, T+M]: columns NAR rows, then gold rows.

    A gold row of rank r attends to visible rows, mask rows of rank > r and gold rows of rank <= r. A query row of rank r
    attends to visible rows, mask rows of rank >= r and gold rows of rank < r. Masked positions ascend with their rank, so
    ranks of mask rows are compared by position.

    Args:
      real: [B, T] True at target tokens.
      masked, masked_count: the masked positions [B, M], and how many they are [B].
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
    of_gold = jnp.concatenate([gold_to_nar, gold_to_gold], axis=2)
    of_query = jnp.concatenate([query_to_nar, query_to_gold], axis=2)
    return jnp.concatenate([of_gold, of_query], axis=1)


def gap_mask(
    real: jax.Array, masked: jax.Array, masked_count: jax.Array, asked: jax.Array, fed: jax.Array, slots: jax.Array
) -> jax.Array:
    """What AUX query rows and new gold rows attend to when gaps are filled step by step, [N, 2k, T + M + 1].

    As in `bridge_mask`: columns NAR rows, then the slots of gold rows. Slot t holds the gold row of rank t - 1, and slot 0
    nothing.

    Args:
      real: [N, T] True at target tokens.
      masked, masked_count: positions of the gaps [N, M], and how many they are [N].
      asked: [N, k] positions that the query rows ask for.
      fed: [N, k] positions of the gold rows.
      slots: [N, k] slots of the gold rows; the query row beside slot t has rank t.
    """
    length = real.shape[1]
    is_masked = masked_flags(masked, masked_count, length)[:, None]
    visible, mask_rows = real[:, None] & ~is_masked, real[:, None] & is_masked
    position = jnp.arange(length)
    query_to_nar = visible | (mask_rows & (position >= asked[:, :, None]))
    gold_to_nar = visible | (mask_rows & (position > fed[:, :, None]))
    slot = jnp.arange(masked.shape[1] + 1)
    to_gold = jnp.tile((slot > 0) & (slot <= slots[:, :, None]), (1, 2, 1))
    return jnp.concatenate([jnp.concatenate([query_to_nar, gold_to_nar], axis=1), to_gold], axis=2)
