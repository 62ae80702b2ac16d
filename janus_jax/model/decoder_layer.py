"""A decoder layer, and the projected encoder states that its cross-attention reads.

Legend: B sentences, N hypotheses of all sentences (a multiple of B), R query rows, S source length or key rows, D model
width, H heads, K head width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from janus_jax.model.attention import Attention, attention_of
from janus_jax.model.layers import Layer, layer_norm
from janus_jax.model.layout import AttentionBlock, ParallelRows, SourceBlock
from janus_jax.parallel import BATCH, constrain, row_major


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Source:
    """Cross-attention keys and values of the encoder states, for every layer. Several passes can share them."""

    keys: tuple[jax.Array, ...]  # per layer [B, H, K, S], as `kept` makes them
    values: tuple[jax.Array, ...]  # per layer [B, H, S, K]
    mask: jax.Array  # [B, S] bool

    def of(self, layer: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Keys and values [B, S, H, K], and mask [B, 1, S], for a layer's attention."""
        return *read(self.keys[layer], self.values[layer]), self.mask[:, None]


def kept(keys: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, S, H, K] as decoding keeps them between steps: keys [B, H, K, S], values [B, H, S, K].

    In this order the products of attention read them in place. In another order each step would copy all of them first.
    """
    return row_major(jnp.transpose(keys, (0, 2, 3, 1))), row_major(jnp.transpose(values, (0, 2, 1, 3)))


def read(keys: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inverts `kept`."""
    return jnp.transpose(keys, (0, 3, 1, 2)), jnp.transpose(values, (0, 2, 1, 3))


class DecoderLayer(Layer):
    """Self-attention, cross-attention, feed-forward, with residuals; post-LN or pre-LN."""

    def setup(self) -> None:
        c = self.config
        rank = c.parallel_adapter_rank
        self.self_attn = attention_of(c, self.dtype, rank)
        self.self_attn_layer_norm = layer_norm(self.dtype)
        self.encoder_attn = attention_of(c, self.dtype, rank)
        self.encoder_attn_layer_norm = layer_norm(self.dtype)
        self.setup_feed_forward(rank)

    def self_keys_values(self, memory: jax.Array, start: int | None = None) -> tuple[jax.Array, jax.Array]:
        """Self-attention keys and values of the memory rows, projected from the layer's input [B, S, D].

        Args:
          memory: the rows.
          start: the first row that uses the adapters; None: no row does.
        """
        pre = self.config.norm == "pre"
        return self.self_attn.keys_values(self.self_attn_layer_norm(memory) if pre else memory, start)

    def cross_keys_values(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cross-attention keys and values of encoder states [B, S, D]."""
        return self.encoder_attn.keys_values(states)

    def joint(
        self,
        x: jax.Array,
        memory: jax.Array,
        blocks: tuple[AttentionBlock, ...],
        source_blocks: tuple[SourceBlock, ...],
        parallel: ParallelRows,
    ) -> jax.Array:
        """Applies the layer to the rows of the joint pass.

        Args:
          x: [B, R, D] query rows.
          memory: [B, S, D] rows that give keys and values.
          blocks: blocks of self-attention, which cover the query rows in order.
          source_blocks: blocks of cross-attention, which cover the query rows in order.
          parallel: the rows that use the adapters.
        """
        keys, values = self.self_keys_values(memory, parallel.memory)
        attention = [
            (b.start, b.stop, keys[:, b.key_start : b.key_stop], values[:, b.key_start : b.key_stop], b.mask)
            for b in blocks
        ]
        over_source = [
            (b.start, b.stop, *self.cross_keys_values(b.encoded.states), b.encoded.mask[:, None]) for b in source_blocks
        ]
        return constrain(self.forward(x, attention, over_source, parallel.queries), BATCH)

    def forward(self, x: jax.Array, attention: list, over_source: list, start: int | None = None) -> jax.Array:
        """Applies the layer to rows x [N, R, D], with keys and values that are already projected.

        Keys of B sentences may serve N = B * n hypotheses. The n hypotheses of one sentence must be adjacent.

        Args:
          x: [N, R, D].
          attention: tuples (start, stop, keys, values, mask) of self-attention, for query rows [start, stop).
          over_source: the same for cross-attention.
          start: the first row that uses the adapters; None: no row does.
        """
        pre = self.config.norm == "pre"
        for module, norm, groups in (
            (self.self_attn, self.self_attn_layer_norm, attention),
            (self.encoder_attn, self.encoder_attn_layer_norm, over_source),
        ):
            q = module.queries(norm(x) if pre else x, start)
            rows = [_attend(module, q[:, first:stop], k, v, mask) for first, stop, k, v, mask in groups]
            attended = rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)
            x = x + self.drop(module.output(attended, start))
            x = x if pre else norm(x)
        return self.feed_forward(x, start)


def _attend(module: Attention, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention of queries [N, R, H, K] to keys [B, S, H, K]; N = B * n, n * R queries share the keys of a sentence."""
    if q.shape[0] == k.shape[0]:
        return module.attend(q, k, v, mask)
    folded = q.reshape(k.shape[0], -1, *q.shape[2:])
    return module.attend(folded, k, v, mask).reshape(q.shape)
