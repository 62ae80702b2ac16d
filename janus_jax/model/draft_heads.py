"""Draft heads: they predict the tokens behind the next one from a single AR row, without a pass of the decoder.

Head 1 reads the AR row that predicts token y_1, and y_1 itself, and predicts y_2; head d reads what head d-1 made, and y_d, and
predicts y_{d+1}. Speculative decoding drafts with them (`decode.search.drafters`). Their rows are residual, as in Medusa (Cai
et al. 2024, arXiv 2401.10774); that they read the drafted tokens is as in Hydra (Ankner et al. 2024, arXiv 2402.05109). All heads
share their parameters, so that they are one small recurrent network. The vocabulary logits come from the token table.

Legend: U AR slots, B sentences, k heads, D model width.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from janus_jax.config import ModelConfig
from janus_jax.model.layers import Table, dense


class DraftHeads(nn.Module):
    """The heads: row + V silu(W [row; token] + b). V starts at zero, so that a row starts as it is."""

    config: ModelConfig
    dtype: jnp.dtype

    def setup(self) -> None:
        width = self.config.d_model
        self.inner = dense(2 * width, self.dtype)
        self.outer = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.zeros)

    def step(self, table: Table, rows: jax.Array, tokens: jax.Array) -> jax.Array:
        """The rows of the next head: rows [..., D] of the head before it, and the tokens [...] int32 that they predict."""
        return self._next(rows, self._vectors(table, tokens))

    def rows(self, table: Table, rows: jax.Array, tokens: jax.Array) -> jax.Array:
        """The rows of all heads where the tokens are known.

        Args:
          table: of the tokens.
          rows: [B, U, D] AR rows.
          tokens: [B, U] int32, the token that each of them predicts.

        Returns:
          [B, U, k, D]: of slot t and head d, the row that predicts token t+d of `tokens`. In the last slots there is none.
        """
        vectors, made = self._vectors(table, tokens), []
        for distance in range(self.config.draft_heads):
            missing = min(distance, tokens.shape[1])
            rows = self._next(rows, jnp.pad(vectors[:, distance:], ((0, 0), (0, missing), (0, 0))))
            made.append(rows)
        return jnp.stack(made, axis=2)

    def _vectors(self, table: Table, tokens: jax.Array) -> jax.Array:
        scale = math.sqrt(self.config.d_model) if self.config.scale_embedding else 1.0
        return (scale * table(tokens)).astype(self.dtype)

    def _next(self, rows: jax.Array, vectors: jax.Array) -> jax.Array:
        return rows + self.outer(nn.silu(self.inner(jnp.concatenate([rows, vectors], axis=-1))))
