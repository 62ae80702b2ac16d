"""A decoder layer, and what its cross-attention reads.

Legend: B sentences, N rows of a search (a multiple of B), R query rows, S source length or key rows, D model width, H heads,
K head width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from janus_jax.model.attention import Attention, attention_of
from janus_jax.model.layers import Layer, layer_norm
from janus_jax.model.layout import AttentionBlock, SourceBlock
from janus_jax.parallel import BATCH, constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Source:
    """Encoder states as every layer's cross-attention reads them: projected once, whatever number of passes follows."""

    keys: tuple[jax.Array, ...]  # per layer [B, S, H, K]
    values: tuple[jax.Array, ...]
    mask: jax.Array  # [B, S] bool

    def of(self, layer: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Keys, values and mask [B, 1, S] for a layer's attention."""
        return self.keys[layer], self.values[layer], self.mask[:, None]


class DecoderLayer(Layer):
    """Self-attention, cross-attention, feed-forward, with residuals; post-LN or pre-LN."""

    def setup(self) -> None:
        c = self.config
        self.self_attn = attention_of(c, self.dtype)
        self.self_attn_layer_norm = layer_norm(self.dtype)
        self.encoder_attn = attention_of(c, self.dtype)
        self.encoder_attn_layer_norm = layer_norm(self.dtype)
        self.setup_feed_forward()

    def content(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Self-attention keys and values of the memory rows, projected from the layer input [B, R, D]."""
        pre = self.config.norm == "pre"
        return self.self_attn.keys_values(self.self_attn_layer_norm(memory) if pre else memory)

    def cross(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cross-attention keys and values of encoder states [B, S, D]."""
        return self.encoder_attn.keys_values(states)

    def joint(
        self,
        x: jax.Array,
        memory: jax.Array,
        blocks: tuple[AttentionBlock, ...],
        source_blocks: tuple[SourceBlock, ...],
    ) -> jax.Array:
        """The layer for the rows of the joint pass.

        Args:
          x: [B, R, D] query rows.
          memory: [B, R', D] rows that give keys and values.
          blocks: self-attention; source_blocks: cross-attention. Each covers the query rows in order.
        """
        keys, values = self.content(memory)
        attention = [(b.start, b.stop, keys[:, b.first : b.last], values[:, b.first : b.last], b.mask) for b in blocks]
        over_source = [(b.start, b.stop, *self.cross(b.encoded.states), b.encoded.mask[:, None]) for b in source_blocks]
        return constrain(self.advance(x, attention, over_source), BATCH)

    def advance(self, x: jax.Array, attention: list, over_source: list) -> jax.Array:
        """Rows x [N, R, D] through the layer, with keys and values at hand.

        Args:
          attention, over_source: (start, stop, keys, values, mask) for query rows [start, stop) of self-attention and
            of cross-attention. Keys of B sentences may serve N = B * n rows, those of a sentence adjacent.
        """
        pre = self.config.norm == "pre"
        for module, norm, groups in (
            (self.self_attn, self.self_attn_layer_norm, attention),
            (self.encoder_attn, self.encoder_attn_layer_norm, over_source),
        ):
            q = module.queries(norm(x) if pre else x)
            rows = [_attend(module, q[:, start:stop], k, v, mask) for start, stop, k, v, mask in groups]
            attended = rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)
            x = x + self.drop(module.output(attended))
            x = x if pre else norm(x)
        return self.feed_forward(x)


def _attend(module: Attention, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention of rows [N, R, H, K] over keys of B = N / n sentences: a sentence's n * R rows are queries side by side."""
    if q.shape[0] == k.shape[0]:
        return module.attend(q, k, v, mask)
    folded = q.reshape(k.shape[0], -1, *q.shape[2:])
    return module.attend(folded, k, v, mask).reshape(q.shape)
