"""Multi-head attention as separate steps, so that groups of rows can share projections and differ in what they see.

Legend: B sentences, R query rows, S key rows, D model width, H heads, K head width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from janus_jax.config import ModelConfig
from janus_jax.model.layers import Dropout, dense

NEGATIVE = -1e9  # finite, so that a row which may attend to nothing (padding) gives numbers, not NaN


class Attention(nn.Module):
    """Projections of queries, keys, values and output, all with biases (docs/method.md, section 3)."""

    heads: int
    d_model: int
    dropout: float
    dtype: jnp.dtype
    fused: bool = False

    def setup(self) -> None:
        self.q_proj = dense(self.d_model, self.dtype)
        self.k_proj = dense(self.d_model, self.dtype)
        self.v_proj = dense(self.d_model, self.dtype)
        self.out_proj = dense(self.d_model, self.dtype)
        self.drop = Dropout(self.dropout)

    def queries(self, x: jax.Array) -> jax.Array:
        """[B, R, D] -> [B, R, H, K], scaled by K^-0.5 after the bias."""
        return self._split(self.q_proj(x)) * (self.d_model // self.heads) ** -0.5

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, S, D] -> keys and values, [B, S, H, K] each."""
        return self._split(self.k_proj(x)), self._split(self.v_proj(x))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        """Weighted values of the rows that `mask` allows.

        Args:
          q: [B, R, H, K]; k, v: [B, S, H, K].
          mask: bool, broadcastable to [B, R, S]; True where row R may attend to row S.

        Returns:
          [B, R, H, K], before the output projection.
        """
        if self.fused:
            return _fused(q, k, v, mask)
        logits = jnp.einsum("brhk,bshk->bhrs", q, k, preferred_element_type=jnp.float32)
        logits = jnp.where(mask[:, None], logits, NEGATIVE)
        weights = self.drop(jax.nn.softmax(logits, axis=-1)).astype(self.dtype)
        return jnp.einsum("bhrs,bshk->brhk", weights, v)

    def output(self, x: jax.Array) -> jax.Array:
        """[B, R, H, K] -> [B, R, D]."""
        return self.out_proj(x.reshape(*x.shape[:-2], self.d_model))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, self.d_model // self.heads)


def attention_of(config: ModelConfig, dtype: jnp.dtype) -> Attention:
    """The attention module that a configuration asks for."""
    return Attention(config.heads, config.d_model, config.attention_dropout, dtype, config.attention == "fused")


def _fused(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`Attention.attend` by JAX's own function: cuDNN's kernel, which makes no [R, S] array, where there is one for the type."""
    cudnn = jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16)
    allowed = jnp.broadcast_to(mask, (q.shape[0], q.shape[1], k.shape[1]))[:, None]
    return jax.nn.dot_product_attention(
        q, k.astype(q.dtype), v.astype(q.dtype), mask=allowed, scale=1.0, implementation="cudnn" if cudnn else "xla"
    )
