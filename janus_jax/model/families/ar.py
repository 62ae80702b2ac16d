"""Autoregressive rows: slot t predicts the next token from the inputs of slots 0 to t (docs/method.md, section 2).

With `ar_stream="query"`, query rows that read the mask token predict; content rows only give keys and values. With
`ar_stream="content"`, there are no query rows, and the content rows predict.

Legend: B sentences, T target length, U AR slots (T-1, or T with an eos start).
"""

import jax
import jax.numpy as jnp

from janus_jax.config import ModelConfig
from janus_jax.model.layout import RowGroup
from janus_jax.types import Batch, Specials


def groups(batch: Batch, config: ModelConfig, specials: Specials) -> tuple[RowGroup, ...]:
    """The AR query rows, if the model has them, and the AR content rows: U rows each."""
    tokens = inputs(batch.target, config, specials)
    positions = slot_positions(jnp.arange(tokens.shape[1]), config)[None]
    attends = {"ar_content": causal_mask(tokens.shape[1])}
    queries = config.ar_stream == "query"
    content = RowGroup("ar_content", "ar", positions, attends, tokens, predicts=not queries, parallel=False)
    query = RowGroup("ar_query", "ar", positions, attends, memory=False, parallel=False)
    return (query, content) if queries else (content,)


def inputs(target: jax.Array, config: ModelConfig, specials: Specials) -> jax.Array:
    """Tokens of the AR content rows [B, U]: y_0..y_{T-2}, or eos, y_0..y_{T-2} with BART's shift.

    bos a b eos  ->  bos a b        (ar_start "bos": slot t predicts y_{t+1})
    bos a b eos  ->  eos bos a b    (ar_start "eos": slot t predicts y_t)
    """
    if config.ar_start == "bos":
        return target[:, :-1]
    return jnp.concatenate([jnp.full_like(target[:, :1], specials.eos), target[:, :-1]], axis=1)


def targets(target: jax.Array, config: ModelConfig) -> jax.Array:
    """The token that each AR slot predicts, [B, U]."""
    return target[:, 1:] if config.ar_start == "bos" else target


def slot_positions(slots: jax.Array, config: ModelConfig) -> jax.Array:
    """The positions at which AR slots are embedded, in the shape of `slots`.

    With `ar_slot_position="target"` it is that of the predicted token, with "input" that of the input token. With
    BART's shift (`ar_start="eos"`) slot t always has position t.
    """
    return slots + 1 if config.ar_start == "bos" and config.ar_slot_position == "target" else slots


def slot_of(positions: jax.Array, config: ModelConfig) -> jax.Array:
    """The AR slot that predicts the token at a target position."""
    return positions - 1 if config.ar_start == "bos" else positions


def predicted_position(slots: jax.Array, config: ModelConfig) -> jax.Array:
    """The target position of the token that an AR slot predicts."""
    return slots + 1 if config.ar_start == "bos" else slots


def causal_mask(length: int) -> jax.Array:
    """Attention mask [1, U, U]: slot t attends to slots 0..t."""
    return jnp.tril(jnp.ones((1, length, length), bool))
