"""Multi-head attention as separate steps, so that groups of rows can share projections and differ in what they see.

Legend: B sentences, R query rows, S key rows, D model width, H heads, K head width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from janus_jax.config import ModelConfig
from janus_jax.model.layers import Adapter, Dropout, adapted, dense

NEGATIVE = -1e9  # finite, so that a row which may attend to nothing (padding) gives numbers, not NaN


class Attention(nn.Module):
    """Projections of queries, keys, values and output, all with biases (docs/method.md, section 3)."""

    heads: int
    d_model: int
    dropout: float
    dtype: jnp.dtype
    fused: bool = False
    rank: int = 0  # of the adapters

    def setup(self) -> None:
        self.q_proj = dense(self.d_model, self.dtype)
        self.k_proj = dense(self.d_model, self.dtype)
        self.v_proj = dense(self.d_model, self.dtype)
        self.out_proj = dense(self.d_model, self.dtype)
        for name in ("q", "k", "v", "out"):
            setattr(self, f"{name}_adapter", Adapter(self.rank, self.d_model, self.dtype) if self.rank else None)
        self.drop = Dropout(self.dropout)

    def queries(self, x: jax.Array, start: int | None = None) -> jax.Array:
        """[B, R, D] -> [B, R, H, K], scaled by K^-0.5 after the bias; adapters from row `start` on."""
        q = adapted(self.q_proj(x), x, self.q_adapter, start)
        return self._split(q) * (self.d_model // self.heads) ** -0.5

    def keys_values(self, x: jax.Array, start: int | None = None) -> tuple[jax.Array, jax.Array]:
        """[B, S, D] -> keys and values, [B, S, H, K] each; adapters from row `start` on."""
        k = adapted(self.k_proj(x), x, self.k_adapter, start)
        v = adapted(self.v_proj(x), x, self.v_adapter, start)
        return self._split(k), self._split(v)

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
        # In this order of the output the weights are the first operand of the product, and cached values are read in place.
        return jnp.swapaxes(jnp.einsum("bhrs,bshk->bhrk", weights, v), 1, 2)

    def output(self, x: jax.Array, start: int | None = None) -> jax.Array:
        """[B, R, H, K] -> [B, R, D]; adapters from row `start` on."""
        x = x.reshape(*x.shape[:-2], self.d_model)
        return adapted(self.out_proj(x), x, self.out_adapter, start)

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, self.d_model // self.heads)


def attention_of(config: ModelConfig, dtype: jnp.dtype, rank: int = 0) -> Attention:
    """The attention module that a configuration asks for, with adapters of a rank."""
    return Attention(config.heads, config.d_model, config.attention_dropout, dtype, config.attention == "fused", rank)


def _fused(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`Attention.attend` by JAX's own function: cuDNN's kernel in 16 bits, for heads of at most 128 numbers.

    That kernel makes no [B, H, R, S] array of logits, only one [B, 1, R, S] of the mask.
    """
    k, v = k.astype(q.dtype), v.astype(q.dtype)
    mask = jnp.broadcast_to(mask, (q.shape[0], q.shape[1], k.shape[1]))
    width = q.shape[-1]
    if jax.default_backend() != "gpu" or q.dtype not in (jnp.bfloat16, jnp.float16) or width % 8 or width > 128:
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=1.0, implementation="xla")
    rows = q.shape[1]
    if rows > 1:  # a step of decoding has no gradient, and would copy the cached keys and values
        q, k, v, mask = _even(q, k, v, mask)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=1.0, implementation="cudnn")
    return out[:, :rows]


def _even(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Queries, keys, values and mask with even numbers of rows and of keys, as cuDNN's gradient with a mask needs them.

    No row sees the key that is added. The row that is added sees the others, and is to be cut off.
    """
    rows, keys = q.shape[1] % 2, k.shape[1] % 2
    q = jnp.pad(q, ((0, 0), (0, rows), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, keys), (0, 0), (0, 0))) for x in (k, v))
    mask = jnp.pad(mask, ((0, 0), (0, rows), (0, 0)), constant_values=True)
    return q, k, v, jnp.pad(mask, ((0, 0), (0, 0), (0, keys)))
