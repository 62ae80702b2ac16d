"""The encoder, and the embedding of rows that it shares with the decoder.

Legend: B sentences, R rows, S source length, D model width.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from janus_jax.config import ModelConfig
from janus_jax.model.attention import attention_of
from janus_jax.model.layers import Dropout, Layer, Table, layer_norm
from janus_jax.parallel import BATCH, constrain

RESERVED_POSITIONS = 2  # row 0 of a position table is unused, row 1 is padding: position p is row p + 2


def remat_layer(layer: type[nn.Module], config: ModelConfig, method: str) -> type[nn.Module]:
    """The class `layer`, its `method` rematerialised in the backward pass according to config.remat."""
    if config.remat == "none":
        return layer
    policy = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}[config.remat]
    return nn.remat(layer, policy=policy, methods=[method])


def position_table(config: ModelConfig) -> Table:
    """A table of config.max_positions learned positions."""
    rows = config.max_positions + RESERVED_POSITIONS
    return Table(rows, config.d_model, used=rows, zero_rows=RESERVED_POSITIONS)


class Embedder(nn.Module):
    """The part that encoder and decoder share: position table, embedding layer norm, input dropout."""

    config: ModelConfig
    dtype: jnp.dtype

    def setup_embedding(self) -> None:
        c = self.config
        self.embed_positions = position_table(c)
        if c.layernorm_embedding:
            self.layernorm_embedding = layer_norm(self.dtype)
        self.drop = Dropout(c.dropout)

    def embed(
        self,
        vectors: jax.Array,
        positions: jax.Array,
        normalise: bool = True,
        states: jax.Array | None = None,
        table: Table | None = None,
    ) -> jax.Array:
        """dropout(scale * token vector + position vector) [B, R, D]; layer norm before dropout if configured.

        Args:
          vectors: [B, R, D] rows of the token table.
          positions: [B, R] or [R] int32, 0-based.
          normalise: False skips the embedding layer norm, as the released pretraining code does in NAR rows.
          states: [B, R, D] encoder states, added to the sum.
          table: of the positions; None: the module's own.
        """
        scale = math.sqrt(self.config.d_model) if self.config.scale_embedding else 1.0
        table = self.embed_positions if table is None else table
        x = (scale * vectors + table(positions + RESERVED_POSITIONS)).astype(self.dtype)
        if states is not None:
            x = x + states.astype(self.dtype)
        if self.config.layernorm_embedding and normalise:
            x = self.layernorm_embedding(x)
        return self.drop(x)


class EncoderLayer(Layer):
    """Self-attention and feed-forward with residuals, post-LN or pre-LN."""

    def setup(self) -> None:
        c = self.config
        self.self_attn = attention_of(c, self.dtype)
        self.self_attn_layer_norm = layer_norm(self.dtype)
        self.setup_feed_forward()

    def forward(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, S, D]; mask [B, 1, S] is True at real tokens."""
        pre = self.config.norm == "pre"
        h = self.self_attn_layer_norm(x) if pre else x
        attended = self.self_attn.attend(self.self_attn.queries(h), *self.self_attn.keys_values(h), mask)
        x = x + self.drop(self.self_attn.output(attended))
        x = x if pre else self.self_attn_layer_norm(x)
        x = self.feed_forward(x)
        return constrain(x, BATCH)


class Encoder(Embedder):
    """The encoder: source token vectors [B, S, D] -> states [B, S, D]."""

    def setup(self) -> None:
        self.setup_embedding()
        layer = remat_layer(EncoderLayer, self.config, "forward")
        self.layers = [layer(self.config, self.dtype) for _ in range(self.config.encoder_layers)]
        if self.config.norm == "pre":
            self.layer_norm = layer_norm(self.dtype)

    def __call__(self, vectors: jax.Array, mask: jax.Array) -> jax.Array:
        """States [B, S, D] of token vectors [B, S, D]; mask [B, S] is True at real tokens.

        The first real token has position 0, on whichever side the padding is.
        """
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        x = constrain(self.embed(vectors, positions), BATCH)
        for layer in self.layers:
            x = layer.forward(x, mask[:, None])
        return self.layer_norm(x) if self.config.norm == "pre" else x
