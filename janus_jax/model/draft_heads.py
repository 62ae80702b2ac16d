"""Draft heads predict the tokens behind the next one from an AR row and the encoder, without a pass of the decoder.

Head 1 reads the AR row that predicts token y_1, and y_1 itself, and predicts y_2; head d reads what head d-1 made, and
y_d, and predicts y_{d+1}. Before the first token there is no such row: a learned vector takes its place, and bos that
of y_1. Each head also looks once more at the source: one attention over the encoder states. A row has read what the
next token needs, and without it the heads would know little of the source's other words. Speculative decoding drafts
with them (`decode.search.drafters`). Their rows are residual, as in Medusa (Cai et al. 2024, arXiv 2401.10774); that
they read the drafted tokens is as in Hydra (Ankner et al. 2024, arXiv 2402.05109). All heads share their parameters, so
that they are one small recurrent network. The vocabulary logits come from the token table.

Legend: T slots behind which heads draft (bos, and all tokens of a target but the last), B sentences, S source tokens, k
heads, D model width.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from janus_jax.config import ModelConfig
from janus_jax.model.attention import NEGATIVE
from janus_jax.model.layers import Table, dense
from janus_jax.types import Encoded


def draft_query_width(config: ModelConfig) -> int:
    """Outputs of Q, by which a draft head compares what it has read with the encoder states."""
    return min(64, config.d_model)


class DraftHeads(nn.Module):
    """The heads: row + U silu(W [row; token; context] + b).

    The context is softmax(P Q [row; token] . states / sqrt(D)) states.

    U starts at zero, so that a row starts as it is. Q has few outputs: that is faster, and costs no accepted draft.
    P is applied to the query and not, transposed, to the encoder states, which gives the same scores with less work.
    """

    config: ModelConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        width, lecun = self.config.d_model, nn.initializers.lecun_normal()
        self.start = nn.Embed(1, width, dtype=self.dtype, embedding_init=nn.initializers.zeros)
        self.query = dense(draft_query_width(self.config), self.dtype, use_bias=False, kernel_init=lecun)
        self.key = dense(width, self.dtype, use_bias=False, kernel_init=lecun)
        self.inner = dense(2 * width, self.dtype)
        self.outer = dense(width, self.dtype, use_bias=False, kernel_init=nn.initializers.zeros)

    def first(self, sentences: int) -> jax.Array:
        """What heads read in place of a row before the first token, [B, D]."""
        return self.start(jnp.zeros(sentences, jnp.int32))

    def step(self, table: Table, encoded: Encoded, rows: jax.Array, tokens: jax.Array) -> jax.Array:
        """The rows of the next head: rows [B, D] of the head before it, and the tokens [B] int32 that they predict."""
        return self._next(encoded, rows[:, None], self._vectors(table, tokens[:, None]))[:, 0]

    def rows(self, table: Table, encoded: Encoded, rows: jax.Array, tokens: jax.Array) -> jax.Array:
        """The rows of all heads where the tokens are known.

        Args:
          table: of the tokens.
          encoded: the source.
          rows: [B, T-1, D] AR rows, which predict the tokens behind the first.
          tokens: [B, T] int32, bos first.

        Returns:
          [B, T, k, D]: of slot t and head d, the row that predicts token t+d of `tokens`. The last slots have none.
        """
        rows = jnp.concatenate([self.first(len(rows))[:, None], rows], axis=1)
        vectors, made = self._vectors(table, tokens), []
        for distance in range(self.config.draft_heads):
            missing = min(distance, tokens.shape[1])
            rows = self._next(encoded, rows, jnp.pad(vectors[:, distance:], ((0, 0), (0, missing), (0, 0))))
            made.append(rows)
        return jnp.stack(made, axis=2)

    def _vectors(self, table: Table, tokens: jax.Array) -> jax.Array:
        scale = math.sqrt(self.config.d_model) if self.config.scale_embedding else 1.0
        return (scale * table(tokens)).astype(self.dtype)

    def _next(self, encoded: Encoded, rows: jax.Array, vectors: jax.Array) -> jax.Array:
        """Rows and token vectors [B, T, D] -> rows [B, T, D]."""
        read = jnp.concatenate([rows, vectors], axis=-1)
        query = self.key(self.query(read))
        scores = jnp.einsum("btd,bsd->bts", query, encoded.states, preferred_element_type=jnp.float32)
        scores = jnp.where(encoded.mask[:, None], scores / math.sqrt(self.config.d_model), NEGATIVE)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        context = jnp.einsum("bts,bsd->btd", weights, encoded.states)
        return rows + self.outer(nn.silu(self.inner(jnp.concatenate([read, context], axis=-1))))
