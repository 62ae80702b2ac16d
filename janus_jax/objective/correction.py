"""Rows that learn to correct tokens of their own (CMLMC, Huang et al. 2022): what NAR rows read in place of masks.

Legend: B sentences, T target length, M masked tokens at most, D model width, V' padded vocabulary.
"""

import jax
import jax.numpy as jnp

from janus_jax.config import ObjectiveConfig
from janus_jax.model import Janus
from janus_jax.model.families.mask_predict import masked_tokens
from janus_jax.objective.logits import likeliest
from janus_jax.types import Batch, Encoded, Params


def own_tokens(
    net: Janus, objective: ObjectiveConfig, params: Params, encoded: Encoded, batch: Batch, *, share: jax.Array,
    rng: jax.Array,
) -> jax.Array:  # fmt: skip
    """The tokens that NAR rows read in place of some masks, [B, T] int32; -1: the row keeps its usual input.

    A first pass of the decoder, without gradient and without dropout, predicts the masked tokens. (The encoder's states
    are those of the joint pass, with its dropout.) A random share of the masks is then replaced by these predictions.
    The loss of these rows stays: they learn to keep right tokens and to replace wrong ones, as each pass of decoding
    with `decode.nar.revise` asks of them.

    Args:
      net, objective: the model and the objective.
      params: parameters.
      encoded: what the NAR rows attend to.
      batch: one micro-batch.
      share: [] float32, of the masks to replace.
      rng: random key of the choice.
    """
    params, encoded = jax.lax.stop_gradient((params, encoded))
    rows = net.nar_rows(params, encoded, masked_tokens(batch, net.specials), batch.masked)
    table, special = params["embed_tokens"]["embedding"], net.specials
    never = (special.bos, special.pad, special.eos, special.mask)
    best = likeliest(rows, table, net.config, objective.projection_rows, net.dtype, never=never)
    real = jnp.arange(batch.masked.shape[1]) < batch.masked_count[:, None]
    chosen = real & (jax.random.uniform(rng, real.shape) < share)
    length = batch.parallel.shape[1]
    sentences = jnp.arange(best.shape[0])[:, None]
    nothing = jnp.full((best.shape[0], length), -1, jnp.int32)
    return nothing.at[sentences, jnp.where(chosen, batch.masked, length)].set(best, mode="drop")
