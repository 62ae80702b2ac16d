"""Blocks that encoder and decoder share: dense layers, dropout, layer norm, feed-forward, embeddings.

Legend: D model width, F feed-forward width, V vocabulary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from janus_jax.config import ModelConfig
from janus_jax.parallel import constrain

_INIT = nn.initializers.normal(0.02)
# On a CPU, the product of at most _ROWS_IN_PARTS rows is computed row by row, each row in _PARTS parts.
_ROWS_IN_PARTS, _PARTS = 3, 4


def dense(
    features: int, dtype: jnp.dtype, use_bias: bool = True, kernel_init: nn.initializers.Initializer | None = None
) -> nn.Dense:
    """A dense layer, by default with the released initialisation: weights N(0, 0.02), biases 0."""
    return nn.Dense(features, use_bias, dtype=dtype, kernel_init=kernel_init or _INIT, dot_general=_product)


def _product(x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None) -> jax.Array:
    """x [..., K] times kernel [K, N], called as `lax.dot_general`; `dimensions` are always those of this product.

    On a CPU, XLA computes the product of one row on one core. It computes a batch of products, each with a part of K,
    on several. For two and three rows, row by row, that is faster than their common product too.
    """
    count, width = math.prod(x.shape[:-1]), x.shape[-1]
    if jax.default_backend() != "cpu" or not 0 < count <= _ROWS_IN_PARTS or width % _PARTS:
        return lax.dot_general(x, kernel, dimensions, precision=precision)
    parts = kernel.reshape(_PARTS, width // _PARTS, -1)
    sum_type = jnp.promote_types(x.dtype, jnp.float32)  # so that the sums of bfloat16 are rounded once

    def of_row(row: jax.Array) -> jax.Array:
        row = row.reshape(_PARTS, -1)
        return jnp.einsum("pk,pkn->pn", row, parts, precision=precision, preferred_element_type=sum_type).sum(axis=0)

    products = jnp.stack([of_row(row) for row in x.reshape(count, width)])
    return products.astype(x.dtype).reshape(*x.shape[:-1], -1)


class Adapter(nn.Module):
    """A low-rank addition to a dense layer: x W_down W_up (LoRA, Hu et al. 2021). It starts at zero."""

    rank: int
    features: int
    dtype: jnp.dtype

    def setup(self) -> None:
        zeros = nn.initializers.zeros
        self.down = dense(self.rank, self.dtype, use_bias=False)
        self.up = dense(self.features, self.dtype, use_bias=False, kernel_init=zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., features]."""
        return self.up(self.down(x))


def adapted(y: jax.Array, x: jax.Array, adapter: Adapter | None, start: int | None) -> jax.Array:
    """The output y [B, R, F] of a dense layer; rows from `start` on have the adapter's output added.

    Args:
      y: output of the dense layer.
      x: its input [B, R, D].
      adapter: None: y as it is.
      start: the first row that uses the adapter; None: no row does.
    """
    if adapter is None or start is None or start >= y.shape[1]:
        return y
    if start == 0:
        return y + adapter(x)
    return jnp.concatenate([y[:, :start], y[:, start:] + adapter(x[:, start:])], axis=1)


def layer_norm(dtype: jnp.dtype) -> nn.LayerNorm:
    """Layer norm with epsilon 1e-5; statistics in float32."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype)


class Dropout(nn.Module):
    """Zeroes elements with probability `rate` when a `dropout` random stream is given, and rescales the others.

    One 32-bit random word serves two elements. This halves the random bits, which take a tenth of a training step on a
    CPU. The rate is rounded to a multiple of 2^-16, and the scale follows the rounded rate.
    """

    rate: float

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        threshold = min(round(self.rate * 2**16), 2**16 - 1)
        bits = _half_words(self.make_rng("dropout"), x.shape)
        return jnp.where(bits >= threshold, x * (2**16 / (2**16 - threshold)), jnp.zeros_like(x))


def _half_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform integers in [0, 2^16), two from each 32-bit word."""
    width = math.ceil(shape[-1] / 2)
    words = jax.random.bits(key, (*shape[:-1], width), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)
    return halves[..., : shape[-1]]


class Layer(nn.Module):
    """The part that encoder and decoder layers share: the feed-forward block W2 dropout(act(W1 x))."""

    config: ModelConfig
    dtype: jnp.dtype

    def setup_feed_forward(self, rank: int = 0) -> None:
        c = self.config
        self.fc1_adapter = Adapter(rank, c.ffn_dim, self.dtype) if rank else None
        self.fc2_adapter = Adapter(rank, c.d_model, self.dtype) if rank else None
        self.fc1 = dense(self.config.ffn_dim, self.dtype)
        self.fc2 = dense(self.config.d_model, self.dtype)
        self.final_layer_norm = layer_norm(self.dtype)
        self.drop = Dropout(self.config.dropout)
        self.activation_drop = Dropout(self.config.activation_dropout)

    def feed_forward(self, x: jax.Array, start: int | None = None) -> jax.Array:
        """[B, R, D] -> [B, R, D] with residual and layer norm, post-LN or pre-LN; adapters from row `start` on."""
        pre = self.config.norm == "pre"
        act = jax.nn.relu if self.config.activation == "relu" else lambda y: jax.nn.gelu(y, approximate=False)
        inputs = self.final_layer_norm(x) if pre else x
        hidden = self.activation_drop(act(adapted(self.fc1(inputs), inputs, self.fc1_adapter, start)))
        x = x + self.drop(adapted(self.fc2(hidden), hidden, self.fc2_adapter, start))
        return x if pre else self.final_layer_norm(x)


class Table(nn.Module):
    """A learned table [rows, D]. The first `zero_rows` rows, and all rows from `used` on, start at zero."""

    rows: int
    features: int
    used: int
    zero_rows: int = 0
    split: bool = False  # rows are split over the mesh axis tensor

    def setup(self) -> None:
        def init(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
            row = jnp.arange(shape[0])[:, None]
            return jnp.where((row < self.used) & (row >= self.zero_rows), _INIT(key, shape, dtype), 0.0)

        self.embedding = self.param("embedding", init, (self.rows, self.features))

    def gathered(self) -> jax.Array:
        """The table, gathered over the mesh axis fsdp.

        Without this constraint the compiler would exchange rows of the batch instead.
        """
        return constrain(self.embedding, "tensor" if self.split else None, None)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Rows `ids`, [...] int32 -> [..., D] float32."""
        return jnp.take(self.gathered(), ids, axis=0, mode="clip")
